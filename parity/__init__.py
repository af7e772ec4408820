"""The proof that the twins are one model: `pytest parity/`, and what `python cli.py parity` calls."""
