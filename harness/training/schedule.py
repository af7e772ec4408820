"""The learning rate as a function of the step."""

from math import cos, pi


def learning_rate(step: int, *, steps: int, peak: float, minimum: float, warmup_steps: int) -> float:
    """Linear warm-up to `peak`, then half a cosine down to `minimum`.

        warm-up:  peak · (step + 1) / warmup_steps                                 for step < warmup_steps
        cosine:   minimum + (peak - minimum) · (1 + cos(π · progress)) / 2         progress from 0 to 1

    step: the optimiser step, counted from 0; steps: how many there are in all
    Source: Loshchilov & Hutter 2017, equation 5 (one period, no restart); warm-up as in Vaswani et al. 2017.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return minimum + (peak - minimum) * (1 + cos(pi * min(1.0, progress))) / 2
