"""The reference twin: every forward and backward pass and the optimiser by hand, in NumPy alone."""
