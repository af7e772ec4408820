"""Training runs with either backend: settings, the loop, checkpoints, run folders, evaluation."""
