"""The reference twin: every forward and backward pass and the optimiser by hand, in NumPy alone."""

from numpy_llm.adam import Adam, AdamW, clip_gradients
from numpy_llm.generate import generate, generate_samples
from numpy_llm.model import GPT

__all__ = ["GPT", "Adam", "AdamW", "clip_gradients", "generate", "generate_samples"]
