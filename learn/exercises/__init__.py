"""Steps from a linear layer to a whole block, each of which a student writes and `grade` judges."""
