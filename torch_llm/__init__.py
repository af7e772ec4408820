"""The PyTorch twin: the same GPT as in `numpy_llm`, with autograd and `torch.optim`."""

from torch_llm.adam import Adam, AdamW, clip_gradients
from torch_llm.generate import generate, generate_samples
from torch_llm.model import GPT

__all__ = ["GPT", "Adam", "AdamW", "clip_gradients", "generate", "generate_samples"]
