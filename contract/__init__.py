"""What both twins must honour. Imports NumPy and the standard library, nothing else."""
