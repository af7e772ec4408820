"""The commands of `cli.py`, a file for each kind of work: they parse, call the rooms below, and print."""
