"""The commands of `cli.py`, a file per kind of work. They parse, call the packages below, and print."""
