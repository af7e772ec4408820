"""The learning rate as a function of the step."""

from math import cos, pi

DECAY = 0.2  # the last part of a "wsd" schedule, in which the rate falls

# How much of the way from the minimum to the peak the rate keeps, by progress from 0 to 1 after the warm-up.
SCHEDULES = {
    "cosine": lambda progress: (1 + cos(pi * progress)) / 2,
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "wsd": lambda progress: min(1.0, (1 - progress) / DECAY),
}


def learning_rate(
    step: int, *, steps: int, peak: float, minimum: float, warmup_steps: int, schedule: str = "cosine"
) -> float:
    """Linear warm-up to `peak`, then `schedule` down to `minimum`, but for "constant", which stays at the peak.

        warm-up:  peak · (step + 1) / warmup_steps                                 for step < warmup_steps
        cosine:   minimum + (peak - minimum) · (1 + cos(π · progress)) / 2         progress from 0 to 1
        linear:   minimum + (peak - minimum) · (1 - progress)
        wsd:      peak, and for the last fifth of the steps linearly to minimum    "warm-up, stable, decay"

    step: the optimiser step, counted from 0; steps: how many there are in all
    Source: Loshchilov & Hutter 2017, equation 5 (one period, no restart); warm-up as in Vaswani et al. 2017;
        wsd: Hu et al. 2024 (MiniCPM), section 4, with a linear decay as in Hägele et al. 2024.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return minimum + (peak - minimum) * SCHEDULES[schedule](min(1.0, progress))
