"""What drives either backend, written once."""
