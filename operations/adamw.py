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
from operations.operation import Mistake, replaced, wrong_forward


class Step(NamedTuple):
    """equation: of one part of a step; right: inputs by role -> result; mistakes: of the same inputs and others"""

    equation: str
    right: Callable
    mistakes: tuple[Mistake, ...]


# The parts of a step


def _moments(g, m, v, adamw) -> dict[str, np.ndarray]:
    """Both moments after a step on the gradient g."""
    beta1, beta2 = adamw["beta1"], adamw["beta2"]
    return {"m": beta1 * m + (1 - beta1) * g, "v": beta2 * v + (1 - beta2) * g**2}


def _mean(gradient, norm, adamw, step, decays, m=0.0):
    return _moments(clipped(gradient, norm, adamw), m, 0.0, adamw)["m"]


def _mean_square(gradient, norm, adamw, step, decays, v=0.0):
    return _moments(clipped(gradient, norm, adamw), 0.0, v, adamw)["v"]


def _weight(weight, m, v, rate, adamw, step, decays):
    return _moved(weight, _direction(m, v, step, adamw), rate, adamw, decays)


def _moved(weight, direction, rate, adamw, decays):
    return weight * (1 - rate * adamw["weight_decay"] * decays) - rate * direction


def _direction(m, v, step, adamw):
    """The corrected mean over the root of the corrected mean square."""
    m, v = m / (1 - adamw["beta1"] ** step), v / (1 - adamw["beta2"] ** step)
    return m / (np.sqrt(v) + adamw["eps"])


# Mistakes of the moments: what of them, "m" or "v", is wrong, and "decays" where that is wrong, too


@wrong_forward(
    "weight decay is added to the gradient (Adam with L2); AdamW shrinks the weight alone",
    "the decay is added to the gradient and so enters m and v; that is Adam with L2. Here it bypasses them: "
    "weight -= learning_rate · weight_decay · weight",
)
def decay_coupled(gradient, norm, adamw, weight, decays, m=0.0, v=0.0, **_):
    decay = adamw["weight_decay"] * decays * weight
    forms = clipped(gradient, norm, adamw) + decay, clipped(gradient + decay, norm, adamw)
    return [{**_moments(g, m, v, adamw), "decays": False} for g in forms]


@wrong_forward("beta1 and beta2 are swapped, or 1 - beta is missing")
def betas_swapped(gradient, norm, adamw, m=0.0, v=0.0, **_):
    g, b1, b2 = clipped(gradient, norm, adamw), adamw["beta1"], adamw["beta2"]
    means = ((b2, 1 - b2), (b1, 1), (1 - b1, b1))
    squares = ((b1, 1 - b1), (b1, 1 - b2), (b2, 1 - b1), (b2, 1), (1 - b2, b2))
    wrong_means = [{"m": kept * m + new * g} for kept, new in means]
    return wrong_means + [{"v": kept * v + new * g**2} for kept, new in squares]


@wrong_forward("the gradient is not squared", "v takes the gradient; it is a running mean of its square")
def square_missing(gradient, norm, adamw, v=0.0, **_):
    g = clipped(gradient, norm, adamw)
    return [{"v": adamw["beta2"] * v + (1 - adamw["beta2"]) * each} for each in (np.abs(g), g)]


@wrong_forward("the moment is not kept from the step before: it starts from 0 each time")
def moment_forgotten(gradient, norm, adamw, **_):
    fresh = _moments(clipped(gradient, norm, adamw), 0.0, 0.0, adamw)
    return [{role: fresh[role]} for role in fresh]


@wrong_forward("the moment is divided by 1 - beta^t in place; keep it as it is and correct a copy")
def moment_corrected(gradient, norm, adamw, step, m=0.0, v=0.0, **_):
    right = _moments(clipped(gradient, norm, adamw), m, v, adamw)
    betas = {"m": adamw["beta1"], "v": adamw["beta2"]}
    return [{role: right[role] / (1 - beta**step)} for role, beta in betas.items()]


# Mistakes of the weight


@wrong_forward("weight decay shrinks biases and layer norms too; it is for matrices alone")
def decay_on_vectors(weight, m, v, rate, adamw, step, decays, **_):
    return None if decays else _weight(weight, m, v, rate, adamw, step, True)


@wrong_forward(
    "weight decay is missing",
    "the weight decay is missing: weight -= learning_rate · weight_decay · weight",
)
def decay_missing(weight, m, v, rate, adamw, step, decays, **_):
    return _weight(weight, m, v, rate, adamw, step, False) if decays else None


@wrong_forward(
    "weight decay is not multiplied by the learning rate",
    "the decay lacks the learning rate: weight -= learning_rate · weight_decay · weight",
)
def decay_without_rate(weight, m, v, rate, adamw, step, decays, **_):
    return weight * (1 - adamw["weight_decay"] * decays) - rate * _direction(m, v, step, adamw)


@wrong_forward(
    "weight decay shrinks the weight after Adam's step; shrink it before",
    "the decay takes the weight after Adam's step; it takes the old one, so nothing of the step decays",
)
def decay_after_step(weight, m, v, rate, adamw, step, decays, **_):
    return (weight - rate * _direction(m, v, step, adamw)) * (1 - rate * adamw["weight_decay"] * decays)


@wrong_forward(
    "eps stands inside the root: √(v + eps); wanted √v + eps",
    "eps stands inside the root; it is added to √(v / (1 - beta2^step))",
)
def eps_inside(weight, m, v, rate, adamw, step, decays, **_):
    eps, root = adamw["eps"], (1 - adamw["beta2"] ** step) ** 0.5
    m, roots = m / (1 - adamw["beta1"] ** step), []
    for inside in (eps, eps**2):
        alone, before = np.sqrt(v / root**2 + inside), np.sqrt(v + inside) / root
        roots += [alone, before, alone + eps, before + eps]
    return [_moved(weight, m / each, rate, adamw, decays) for each in roots]


@wrong_forward("eps is added before √v is corrected: √v / √(1 - beta2^t) + eps is wanted")
def eps_before_correction(weight, m, v, rate, adamw, step, decays, **_):
    root = (1 - adamw["beta2"] ** step) ** 0.5
    direction = m / (1 - adamw["beta1"] ** step) * root / (np.sqrt(v) + adamw["eps"])
    return _moved(weight, direction, rate, adamw, decays)


@wrong_forward("eps is another value than the pack's, such as 1e-8", "eps is another value, or missing")
def eps_other(weight, m, v, rate, adamw, step, decays, **_):
    others = [adamw | {"eps": eps} for eps in (1e-8, 1e-6, 0) if eps != adamw["eps"]]
    return [_weight(weight, m, v, rate, other, step, decays) for other in others]


def _corrected(weight, m, v, rate, adamw, steps, decays):
    """A step whose moments are corrected as in other steps, infinity for not at all."""
    m, v = m / (1 - adamw["beta1"] ** steps[0]), v / (1 - adamw["beta2"] ** steps[1])
    return _moved(weight, m / (np.sqrt(v) + adamw["eps"]), rate, adamw, decays)


@wrong_forward(
    "bias correction is missing: divide m by 1 - beta1^t and v by 1 - beta2^t",
    "the bias correction is missing: divide m by 1 - beta1^step and v by 1 - beta2^step",
)
def correction_missing(weight, m, v, rate, adamw, step, decays, **_):
    return _corrected(weight, m, v, rate, adamw, (np.inf, np.inf), decays)


@wrong_forward(
    "m's bias is not corrected: m / (1 - beta1^t)", "m's bias is not corrected: m / (1 - beta1^step)"
)
def mean_uncorrected(weight, m, v, rate, adamw, step, decays, **_):
    return _corrected(weight, m, v, rate, adamw, (np.inf, step), decays)


@wrong_forward(
    "v's bias is not corrected: v / (1 - beta2^t)", "v's bias is not corrected: v / (1 - beta2^step)"
)
def square_uncorrected(weight, m, v, rate, adamw, step, decays, **_):
    return _corrected(weight, m, v, rate, adamw, (step, np.inf), decays)


def _off_by_one(weight, m, v, rate, adamw, step, decays, other) -> list:
    """Both moments corrected as in another step, or one of them."""
    pairs = ((other, other), (other, step), (step, other)) if other else ()
    return [_corrected(weight, m, v, rate, adamw, pair, decays) for pair in pairs]


@wrong_forward(
    "bias correction is a step late: t is 1 in the first update",
    "the bias correction is one step late: step counts this update, the first is 1",
)
def correction_late(weight, m, v, rate, adamw, step, decays, **_):
    return _off_by_one(weight, m, v, rate, adamw, step, decays, step - 1)


@wrong_forward(
    "bias correction is a step off: t is 1 in the first update",
    "the bias correction is one step early: step counts this update already",
)
def correction_off_by_one(weight, m, v, rate, adamw, step, decays, **_):
    return _off_by_one(weight, m, v, rate, adamw, step, decays, step + 1)


@wrong_forward("the step goes uphill: subtract it")
def step_uphill(weight, m, v, rate, adamw, step, decays, **_):
    return _moved(weight, -_direction(m, v, step, adamw), rate, adamw, decays)


@wrong_forward("v is used without its root", "the root is missing: the step is divided by √v, not by v")
def square_without_root(weight, m, v, rate, adamw, step, decays, **_):
    m, root, eps = m / (1 - adamw["beta1"] ** step), (1 - adamw["beta2"] ** step) ** 0.5, adamw["eps"]
    return [_moved(weight, m / (v / each + eps), rate, adamw, decays) for each in (root**2, root)]


@wrong_forward("the step uses the moments from before this gradient: update them first")
def moments_stale(weight, m, v, rate, adamw, step, decays, m_before=0.0, v_before=0.0, **_):
    direction = _direction(np.asarray(m_before), np.asarray(v_before), step, adamw)
    return np.broadcast_to(_moved(weight, direction, rate, adamw, decays), weight.shape)


@wrong_forward("the learning rate is the step before's or the one after's: rates count from the first step")
def rate_shifted(weight, m, v, rate, adamw, step, decays, rates=(), **_):
    others = [rates[at] for at in (step - 2, step) if 0 <= at < len(rates)]
    return [_weight(weight, m, v, other, adamw, step, decays) for other in others]


@wrong_forward("v is the largest so far (AMSGrad); AdamW divides by the root of the present one")
def amsgrad(weight, m, v, rate, adamw, step, decays, **others):
    before = {int(role[len("v_at_") :]): each for role, each in others.items() if role.startswith("v_at_")}
    if not before:
        return None
    raw = np.maximum.reduce([v, *before.values()])
    scale = 1 - adamw["beta2"] ** step
    corrected = [each / (1 - adamw["beta2"] ** at) for at, each in before.items()]
    largest = [raw, np.maximum.reduce([v / scale, *corrected]) * scale]
    return [_weight(weight, m, each, rate, adamw, step, decays) for each in largest]


_MOMENTS = (decay_coupled, betas_swapped, square_missing, moment_forgotten, moment_corrected)
_WEIGHT = (
    decay_on_vectors, decay_missing, decay_without_rate, decay_after_step, eps_inside, eps_before_correction,
    eps_other, correction_missing, mean_uncorrected, square_uncorrected, correction_off_by_one, correction_late,
    step_uphill, square_without_root, moments_stale, rate_shifted, amsgrad,
)  # fmt: skip
MISTAKES = (*NORM, *CLIPPING, *_MOMENTS, *_WEIGHT)


def _of_moment(role: str) -> tuple[Mistake, ...]:
    """What of one moment, "m" or "v", the mistakes of clipping and of the moments make."""

    def of_moment(mistake: Mistake) -> Mistake:
        def compute(gradient, norm, adamw, m=0.0, v=0.0, **others):
            if mistake in CLIPPING:
                forms = [_moments(g, m, v, adamw) for g in mistake.forms(gradient, norm, adamw)]
            else:
                forms = mistake.forms(gradient=gradient, norm=norm, adamw=adamw, m=m, v=v, **others)
            return [form[role] for form in forms if role in form]

        return mistake._replace(compute=compute)

    return tuple(map(of_moment, (*CLIPPING, *_MOMENTS)))


_EQUATIONS = {
    "gradient norm of a step": "√(Σ gradient²) over all weights together, before clipping",
    "AdamW mean": "m = beta1 · m + (1 - beta1) · g, g = gradient clipped by the joint norm",
    "AdamW mean square": "v = beta2 · v + (1 - beta2) · g², g = gradient clipped by the joint norm",
    "AdamW weight": "weight -= rate · weight_decay · weight (matrices only), "
    "then weight -= rate · (m / (1 - beta1^t)) / (√(v / (1 - beta2^t)) + eps), t counted from 1",
}
_KNOWN = ((joint_norm, NORM), (_mean, _of_moment("m")), (_mean_square, _of_moment("v")), (_weight, _WEIGHT))
STEPS = {
    title: Step(equation, *known) for (title, equation), known in zip(_EQUATIONS.items(), _KNOWN, strict=True)
}


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
    with replaced(right, wrong(mistake, partial(_form, mistake, form, made_in))):
        yield made_in


def _form(mistake: Mistake, form: int, made_in: list[int], right, *arguments, **inputs):
    """One of a mistake's forms, or what is right where there is none such."""
    forms = mistake.forms(*arguments, **inputs)
    if len(forms) <= form:
        return right
    made_in.append(len(forms))
    return forms[form]


def _wrong_clipping(mistake: Mistake, made: Callable) -> Callable:
    def clip(gradients, max_norm):
        norm = float(joint_norm(gradients, max_norm))
        if mistake in NORM:
            told = made(norm, gradients, max_norm)
            clip_gradients(gradients, max_norm)
            return float(told)
        settings = {"max_norm": max_norm}
        for each in gradients.values():
            each[...] = made(clipped(each, norm, settings), each, norm, settings)
        return norm

    return clip


def _wrong_update(mistake: Mistake, made: Callable) -> Callable:
    past: dict[int, list[tuple]] = {}  # where a piece of v lies -> v and the rate of each step so far

    @np.errstate(all="ignore")
    def update(optimizer, weight, m, v, g, learning_rate, decays):
        adamw = {name: getattr(optimizer, name) for name in ("beta1", "beta2", "eps", "weight_decay")}
        adamw["max_norm"] = np.inf  # clipping is done
        if decays and not optimizer.decoupled:
            g, decays = g + optimizer.weight_decay * weight, False
        inputs = {"gradient": g, "norm": 0.0, "weight": weight, "m": m, "v": v, "adamw": adamw}
        inputs |= {"step": optimizer.step, "rate": learning_rate, "decays": decays}
        moments = _moments(g, m, v, adamw)
        moments |= made({}, **inputs) if mistake in _MOMENTS else {}
        inputs |= {"m_before": m.copy(), "v_before": v.copy(), **moments}
        result = _weight(*(inputs[role] for role in ("weight", "m", "v", "rate", "adamw", "step", "decays")))
        if mistake in _WEIGHT:
            steps = past.setdefault(v.__array_interface__["data"][0], [])
            inputs |= {f"v_at_{at}": each for at, (each, _) in enumerate(steps, 1)}
            steps.append((moments["v"], learning_rate))
            result = made(result, **inputs, rates=[rate for _, rate in steps])
        weight[...], m[...], v[...] = result, moments["m"], moments["v"]

    return update
