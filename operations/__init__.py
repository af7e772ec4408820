"""What is known of each operation: its equations, its known mistakes, and its derivation (NAME.toml)."""
