"""Hooks on any PyTorch module: the outputs of its modules, and their gradients, under the names that it gives them.

This file needs PyTorch and NumPy alone: copy it to where your model is.
"""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import torch


def record(model: torch.nn.Module, run: Callable[[torch.nn.Module], dict]) -> dict[str, np.ndarray]:
    """Run a model, and its backward pass, and keep what passed through it.

    run: calls the model once and returns tensors by name; where "loss" is one of them, its gradients are taken

    returns: by the name of each module NAME its output; NAME.1 ... further outputs; NAME.input the first input where no
        module gave it out; NAME@2 ... where it ran again; NAME.weight and the like; what `run` returned; each with the
        gradient of the loss under NAME.grad, for what `run` returned gradient.NAME
    """
    seen: dict[str, tuple[np.ndarray, torch.Tensor]] = {}
    ran: Counter = Counter()

    def hook(name: str) -> Callable:
        def after(module, inputs, output):
            ran[name] += 1
            called = name if ran[name] == 1 else f"{name}@{ran[name]}"
            given_out = {id(tensor) for _, tensor in seen.values()}
            for tensor in _tensors(inputs)[:1]:
                if id(tensor) not in given_out:
                    _keep(seen, f"{called}.input", tensor)
            for place, tensor in enumerate(_tensors(output)):
                _keep(seen, f"{called}.{place}" if place else called, tensor)

        return after

    handles = [each.register_forward_hook(hook(name)) for name, each in model.named_modules() if name]
    try:
        returned = run(model)
    finally:
        for handle in handles:
            handle.remove()
    for name, tensor in returned.items():
        _keep(seen, name, tensor)
    for name, parameter in model.named_parameters():
        seen[name] = _numbers(parameter), parameter
    if "loss" in returned:
        model.zero_grad()
        returned["loss"].backward()
    found = {name: values for name, (values, _) in seen.items()}
    for name, (_, tensor) in seen.items():
        if tensor.grad is not None:
            found[f"gradient.{name}" if name in returned else f"{name}.grad"] = _numbers(tensor.grad)
    return found


def _tensors(output) -> list[torch.Tensor]:
    """The tensors of real numbers in what a module returned: one, several, or several by name."""
    if isinstance(output, torch.Tensor):
        output = [output]
    elif hasattr(output, "values"):
        output = output.values()
    several: Iterable = output if isinstance(output, Iterable) else []
    return [each for each in several if isinstance(each, torch.Tensor) and each.is_floating_point()]


def _keep(seen: dict, name: str, tensor: torch.Tensor):
    """Keep the numbers as they are now, whatever is written over them later, and the tensor for its gradient."""
    if tensor.requires_grad and not tensor.is_leaf:
        tensor.retain_grad()
    seen[name] = _numbers(tensor), tensor


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    wide = (
        tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    )  # NumPy has no bfloat16
    return wide.numpy().copy()
