"""What is one model family's own in its published format, a file for each family."""
