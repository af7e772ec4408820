"""One weight moved by ε, and the loss that follows: computed beforehand, so that the page needs no Python."""

from typing import NamedTuple

import numpy as np

from contract.numbers import central_difference
from learn.study.one_pass import Pass
from numpy_llm import GPT
from parity.cases import Inputs

POINTS = 31  # places of the slider, an odd number so that ε = 0 is one of them
_STEP = 1e-5  # of the central difference
_MAX_WORK = 7e9  # multiplications for all weights together, about 2 s; long texts and large models show fewer


class Sweep(NamedTuple):
    """The loss along one weight.

    name, index, value: which number is moved, and what it is
    gradient: of the loss, by hand; difference: the central difference that it should equal
    steps: float (POINTS,), ε; losses: float (POINTS,), nats per token with the weight at value + ε
    """

    name: str
    index: tuple[int, ...]
    value: float
    gradient: float
    difference: float
    steps: list[float]
    losses: list[float]


def sweeps(run: Pass) -> list[Sweep]:
    """A sweep of the number with the largest gradient in each weight, or in as many as `_MAX_WORK` allows."""
    inputs, gradients = run.inputs["float64"], run.by_hand("weight gradient")
    model = GPT(run.config, inputs.weights)
    most = max(4, int(_MAX_WORK / (model.weights.flat.size * len(run.tokens) * (POINTS + 4))))
    names = list(model.weights)
    chosen = np.linspace(0, len(names) - 1, min(most, len(names)), dtype=int)
    return [_sweep(model, names[at], gradients[names[at]], inputs) for at in chosen]


def opening(moved: list[Sweep]) -> int:
    """The place of the sweep to open on: its loss visibly leaves the tangent, which is not flat itself."""

    def bend(sweep: Sweep) -> float:
        losses, steps = np.array(sweep.losses), np.array(sweep.steps)
        low, high = losses.min(), losses.max()
        room = (high - low) * 0.2 or 1.0
        line = losses[POINTS // 2] + sweep.gradient * steps
        seen = (line > low - room) & (line < high + room)  # where the picture has the line
        apart = np.abs(losses - line)[seen].max() / room
        return apart * min(1.0, np.ptp(line) / room)

    return max(range(len(moved)), key=lambda at: bend(moved[at]))


def _sweep(model: GPT, name: str, gradient: np.ndarray, inputs: Inputs) -> Sweep:
    weight = model.weights[name]
    index = tuple(int(i) for i in np.unravel_index(np.abs(gradient).argmax(), gradient.shape))
    value = float(weight[index])
    # Far enough to see the loss bend away from its tangent, on the scale of the tensor's own numbers.
    radius = 6 * max(float(np.sqrt(np.mean(weight**2))), 0.1)
    steps = np.linspace(-radius, radius, POINTS)

    def loss(step):
        weight[index] = value + step
        try:
            return float(model.forward(inputs.tokens, inputs.targets)[1])
        finally:
            weight[index] = value

    difference = central_difference(loss, _STEP)
    losses = [loss(step) for step in steps]
    return Sweep(name, index, value, float(gradient[index]), difference, steps.tolist(), losses)
