"""AdamW after clipping: the equations of a step and what people get wrong in it.

A step is no pair of a forward and a backward pass. Its parts are functions of what they read, by role:

gradient: before clipping; norm: of all gradients together; adamw: beta1, beta2, eps, weight_decay, max_norm
weight, m, v: of one tensor. The moments read m and v of before the step, the weight those of after it
step: counted from 1; rate: its learning rate; decays: whether the weight does
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np

from numpy_llm.adam import clip_gradients, update_piece
from operations.clipping import CLIPPING, NORM, clipped, joint_norm
from operations.operation import Mistake, one_form, replaced, wrong_forward


class Step(NamedTuple):
    """equation: of one part of a step; right: inputs by role -> result; mistakes: of the same inputs and others"""

    equation: str
    right: Callable
    mistakes: tuple[Mistake, ...]


# The moments, and mistakes of them: what of them, "m" or "v", is wrong, and "decays" where that is wrong, too


def _moments(gradient, norm, adamw, m=0.0, v=0.0, g=None, **_) -> dict[str, np.ndarray]:
    """Both moments after a step; g: what enters them in place of the clipped gradient."""
    g, beta1, beta2 = clipped(gradient, norm, adamw) if g is None else g, adamw["beta1"], adamw["beta2"]
    return {"m": beta1 * m + (1 - beta1) * g, "v": beta2 * v + (1 - beta2) * g**2}


def _decay_coupled(gradient, norm, adamw, weight, decays, **known):
    decay = adamw["weight_decay"] * decays * weight
    forms = clipped(gradient, norm, adamw) + decay, clipped(gradient + decay, norm, adamw)
    return [{**_moments(gradient, norm, adamw, **known, g=g), "decays": False} for g in forms]


def _other_betas(gradient, norm, adamw, m=0.0, v=0.0, **_):
    g, b1, b2 = clipped(gradient, norm, adamw), adamw["beta1"], adamw["beta2"]
    means = ((b2, 1 - b2), (b1, 1), (1 - b1, b1))
    squares = ((b1, 1 - b1), (b1, 1 - b2), (b2, 1 - b1), (b2, 1), (1 - b2, b2))
    wrong_means = [{"m": kept * m + new * g} for kept, new in means]
    return wrong_means + [{"v": kept * v + new * g**2} for kept, new in squares]


def _not_squared(gradient, norm, adamw, v=0.0, **_):
    g = clipped(gradient, norm, adamw)
    return [{"v": adamw["beta2"] * v + (1 - adamw["beta2"]) * each} for each in (np.abs(g), g)]


def _square_of_mean(gradient, norm, adamw, m=0.0, v=0.0, **_):
    mean = _moments(gradient, norm, adamw, m)["m"]
    return [{"v": adamw["beta2"] * v + (1 - adamw["beta2"]) * each**2} for each in (mean, m)]


def _either(moments):
    return [{role: moment} for role, moment in moments.items()]


def _corrected_in_place(adamw, step, **known):
    moments, betas = _moments(adamw=adamw, **known), {"m": adamw["beta1"], "v": adamw["beta2"]}
    return _either({role: moments[role] / (1 - beta**step) for role, beta in betas.items()})


_MOMENTS = (
    wrong_forward("decay_coupled", _decay_coupled,
        "weight decay is added to the gradient (Adam with L2); AdamW shrinks the weight alone",
        "the decay is added to the gradient and so enters m and v; that is Adam with L2. Here it bypasses them: "
        "weight -= learning_rate · weight_decay · weight"),
    wrong_forward("betas_swapped", _other_betas, "beta1 and beta2 are swapped, or 1 - beta is missing"),
    wrong_forward("square_missing", _not_squared,
        "the gradient is not squared", "v takes the gradient; it is a running mean of its square"),
    wrong_forward("square_of_mean", _square_of_mean, "v takes the square of m; it is a running mean of the gradient's"),
    wrong_forward("moment_forgotten", lambda m=0.0, v=0.0, **known: _either(_moments(**known)),
        "the moment is not kept from the step before: it starts from 0 each time"),
    wrong_forward("moment_corrected", _corrected_in_place,
        "the moment is divided by 1 - beta^t in place; keep it as it is and correct a copy"),
)  # fmt: skip


def _not_zeroed(adamw, sums=(), **known):
    return [_moments(adamw=adamw, **known, g=clipped(each, norm, adamw)) for each, norm in sums]


# No step shows it alone. sums: of this weight, as `not_zeroed` has them of all
GRADIENTS_NOT_ZEROED = wrong_forward("gradients_not_zeroed", _not_zeroed,
    "the gradients of earlier steps are still in it: zero them before each backward pass")  # fmt: skip


def _of_moment(role: str, mistake: Mistake) -> Mistake:
    """A mistake of clipping or of the moments, as one moment shows it."""

    def compute(gradient, norm, adamw, **known):
        if mistake in CLIPPING:
            forms = [
                _moments(gradient, norm, adamw, **known, g=g) for g in mistake.forms(gradient, norm, adamw)
            ]
        else:
            forms = mistake.forms(gradient=gradient, norm=norm, adamw=adamw, **known)
        return [form[role] for form in forms if role in form]

    return mistake._replace(compute=compute)


def _moment_step(role: str, equation: str) -> Step:
    """The part of a step that makes one moment, "m" or "v"."""
    mistakes = tuple(_of_moment(role, mistake) for mistake in (*CLIPPING, *_MOMENTS, GRADIENTS_NOT_ZEROED))
    return Step(equation, lambda **known: _moments(**known)[role], mistakes)


# The weight, and mistakes of it


def _weight(
    weight, m, v, rate, adamw, step, decays, *, steps=None, divisor=None, decay=None, last=False, **_
):
    """The weight after a step.

    What mistakes exchange: steps: those by which m and v are corrected, infinity for not at all; divisor: of m
    decay: what weight_decay is multiplied by, in place of the rate; last: whether the weight shrinks after Adam's step
    """
    at_m, at_v = steps or (step, step)
    if divisor is None:
        divisor = np.sqrt(v / (1 - adamw["beta2"] ** at_v)) + adamw["eps"]
    moved = rate * m / (1 - adamw["beta1"] ** at_m) / divisor
    kept = 1 - (rate if decay is None else decay) * adamw["weight_decay"] * decays
    return (weight - moved) * kept if last else weight * kept - moved


def _divided(divisors):
    """The mistake of dividing m by something else: divisors(v, root of v's correction, eps)."""

    def compute(v, adamw, step, **known):
        found = divisors(v, (1 - adamw["beta2"] ** step) ** 0.5, adamw["eps"])
        return [_weight(v=v, adamw=adamw, step=step, divisor=each, **known) for each in found]

    return compute


def _eps_inside(v, root, eps):
    return [
        inside + outside
        for a in (eps, eps**2)
        for outside in (0, eps)
        for inside in (np.sqrt(v / root**2 + a), np.sqrt(v + a) / root)
    ]


def _corrected(steps):
    """The mistake of correcting m and v as in other steps: steps(step)."""
    return lambda step, **known: [_weight(step=step, steps=each, **known) for each in steps(step)]


def _as_in(other, t):
    return [(other, other), (other, t), (t, other)] if other else []


def _other_eps(adamw, **known):
    return [_weight(adamw=adamw | {"eps": eps}, **known) for eps in (1e-8, 1e-6, 0) if eps != adamw["eps"]]


def _rate_shifted(step, rate, rates=(), **known):
    others = [rates[at] for at in (step - 2, step) if 0 <= at < len(rates)]
    return [_weight(step=step, rate=other, **known) for other in others]


def _rate_constant(step, rate, rates=(), **known):
    others = [other for other in (rates[0], max(rates)) if other != rate] if len(rates) else []
    return [_weight(step=step, rate=other, **known) for other in others]


def _largest_v(v, adamw, step, **known):
    before = {int(role[len("v_at_") :]): each for role, each in known.items() if role.startswith("v_at_")}
    if not before:
        return None
    scale = 1 - adamw["beta2"] ** step
    corrected = [each / (1 - adamw["beta2"] ** at) for at, each in before.items()]
    largest = [np.maximum.reduce([v, *before.values()]), np.maximum.reduce([v / scale, *corrected]) * scale]
    return [_weight(v=each, adamw=adamw, step=step, **known) for each in largest]


_WEIGHT = (
    wrong_forward("decay_on_vectors", lambda decays, **known: None if decays else _weight(decays=True, **known),
        "weight decay shrinks biases and layer norms too; it is for matrices alone"),
    wrong_forward("decay_missing", lambda decays, **known: _weight(decays=False, **known) if decays else None,
        "the weight decay is missing: weight -= learning_rate · weight_decay · weight"),
    wrong_forward("decay_without_rate", partial(_weight, decay=1.0),
        "the decay lacks the learning rate: weight -= learning_rate · weight_decay · weight"),
    wrong_forward("decay_after_step", partial(_weight, last=True),
        "weight decay shrinks the weight after Adam's step; shrink it before",
        "the decay takes the weight after Adam's step; it takes the old one, so nothing of the step decays"),
    wrong_forward("eps_inside", _divided(_eps_inside),
        "eps stands inside the root: √(v + eps); wanted √v + eps",
        "eps stands inside the root; it is added to √(v / (1 - beta2^step))"),
    wrong_forward("eps_before_correction", _divided(lambda v, root, eps: [(np.sqrt(v) + eps) / root]),
        "eps is added before √v is corrected: √v / √(1 - beta2^t) + eps is wanted"),
    wrong_forward("eps_other", _other_eps,
        "eps is another value than the pack's, such as 1e-8", "eps is another value, or missing"),
    wrong_forward("correction_missing", _corrected(lambda t: [(np.inf, np.inf)]),
        "the bias correction is missing: divide m by 1 - beta1^step and v by 1 - beta2^step"),
    wrong_forward("mean_uncorrected", _corrected(lambda t: [(np.inf, t)]),
        "m's bias is not corrected: m / (1 - beta1^step)"),
    wrong_forward("square_uncorrected", _corrected(lambda t: [(t, np.inf)]),
        "v's bias is not corrected: v / (1 - beta2^step)"),
    wrong_forward("correction_off_by_one", _corrected(lambda t: _as_in(t + 1, t)),
        "bias correction is a step off: t is 1 in the first update",
        "the bias correction is one step early: step counts this update already"),
    wrong_forward("correction_late", _corrected(lambda t: _as_in(t - 1, t)),
        "bias correction is a step late: t is 1 in the first update",
        "the bias correction is one step late: step counts this update, the first is 1"),
    wrong_forward("step_uphill", _divided(lambda v, root, eps: [-(np.sqrt(v) / root + eps)]),
        "the step goes uphill: subtract it"),
    wrong_forward("square_without_root", _divided(lambda v, root, eps: [v / root**2 + eps, v / root + eps]),
        "v is used without its root", "the root is missing: the step is divided by √v, not by v"),
    wrong_forward("moments_stale",
        lambda m, v, m_before=0.0, v_before=0.0, **known: _weight(m=m_before, v=v_before, **known),
        "the step uses the moments from before this gradient: update them first"),
    wrong_forward("rate_shifted", _rate_shifted,
        "the learning rate is the step before's or the one after's: rates count from the first step"),
    wrong_forward("rate_constant", _rate_constant,
        "the learning rate stays the first step's, or the schedule's largest: it has a value for each step"),
    wrong_forward("amsgrad", _largest_v,
        "v is the largest so far (AMSGrad); AdamW divides by the root of the present one"),
)  # fmt: skip

MISTAKES = (*NORM, *CLIPPING, *_MOMENTS, *_WEIGHT)
STEPS = {
    "gradient norm of a step":
        Step("√(Σ gradient²) over all weights together, before clipping", joint_norm, NORM),
    "AdamW mean":
        _moment_step("m", "m = beta1 · m + (1 - beta1) · g, g = gradient clipped by the joint norm"),
    "AdamW mean square":
        _moment_step("v", "v = beta2 · v + (1 - beta2) · g², g = gradient clipped by the joint norm"),
    "AdamW weight":
        Step("weight -= rate · weight_decay · weight (matrices only), "
             "then weight -= rate · (m / (1 - beta1^t)) / (√(v / (1 - beta2^t)) + eps), t counted from 1",
             _weight, _WEIGHT),
}  # fmt: skip


# Making a mistake


@contextmanager
def made_in_step(mistake: Mistake, form: int = 0) -> Iterator[list[int]]:
    """Make a mistake in every step that `numpy_llm.adam` takes; undone at the end.

    form: which of the mistake's forms; a step that does not allow it is made rightly
    yields: a list that gets, of each part in which the mistake was made, how many forms it has there
    """
    made_in = []
    clips = mistake in NORM or mistake in CLIPPING
    right, wrong = (clip_gradients, _wrong_clipping) if clips else (update_piece, _wrong_update)
    with replaced(right, wrong(mistake, one_form(mistake, form, made_in))):
        yield made_in


def _wrong_clipping(mistake: Mistake, compute: Callable) -> Callable:
    def clip(gradients, max_norm):
        norm = float(joint_norm(gradients, max_norm))
        if mistake in NORM:
            wrong = compute(gradients, max_norm)
            clip_gradients(gradients, max_norm)
            return norm if wrong is None else float(wrong)
        for each in gradients.values():
            wrong = compute(each, norm, {"max_norm": max_norm})
            each[...] = clipped(each, norm, {"max_norm": max_norm}) if wrong is None else wrong
        return norm

    return clip


def _wrong_update(mistake: Mistake, compute: Callable) -> Callable:
    past: dict[int, list[tuple]] = {}  # where a piece of v lies -> v and the rate of each step so far

    @np.errstate(all="ignore")
    def update(optimizer, weight, m, v, g, learning_rate, decays):
        adamw = {name: getattr(optimizer, name) for name in ("beta1", "beta2", "eps", "weight_decay")}
        adamw["max_norm"] = np.inf  # clipping is done
        if decays and not optimizer.decoupled:
            g, decays = g + optimizer.weight_decay * weight, False
        inputs = {"gradient": g, "norm": 0.0, "weight": weight, "m": m, "v": v, "adamw": adamw}
        inputs |= {"step": optimizer.step, "rate": learning_rate, "decays": decays}
        moments = _moments(**inputs)
        if mistake in _MOMENTS:
            moments |= compute(**inputs) or {}
        inputs |= {"m_before": m.copy(), "v_before": v.copy(), **moments}
        result = None
        if mistake in _WEIGHT:
            steps = past.setdefault(v.__array_interface__["data"][0], [])
            inputs |= {f"v_at_{at}": each for at, (each, _) in enumerate(steps, 1)}
            steps.append((moments["v"], learning_rate))
            result = compute(**inputs, rates=[rate for _, rate in steps])
        weight[...] = _weight(**inputs) if result is None else result
        m[...], v[...] = moments["m"], moments["v"]

    return update
