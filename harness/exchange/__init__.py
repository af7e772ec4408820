"""Models from and for other programs: other people's formats, read and written."""
