"""A step of AdamW and the clipping before it: their equations and what people get wrong in them.

A step is no operation of the pass, so its functions take keywords: `gradient`, `norm` and the moment before, `m` or
`v`; or `weight`, `m`, `v` and `rate`; and the settings `adamw`, the `step`, counted from 1, and whether it
`decays`. A mistake gets more, such as the moments before the step, and takes what it needs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from operations.operation import Mistake, wrong_forward


class Step(NamedTuple):
    """equation: what it computes; right: computes it; mistakes: what people get wrong, the plainest first"""

    equation: str
    right: Callable
    mistakes: tuple[Mistake, ...]


def clipped(gradient, norm, adamw):
    """The gradient scaled by max_norm / norm where the norm exceeds max_norm."""
    return gradient * (adamw["max_norm"] / float(norm)) if norm > adamw["max_norm"] else gradient


class _Moment(NamedTuple):
    """role: "m", the mean of the gradients, or "v", that of their squares; before: the step's, 0.0 at first

    beta: how much of it is kept; other: the other moment's
    """

    role: str
    before: np.ndarray | float
    beta: float
    other: float

    @classmethod
    def named(cls, role: str, inputs: dict):
        """The moment as a step finds it."""
        betas = [inputs["adamw"][name] for name in ("beta1", "beta2")]
        return cls(role, inputs.get(role, 0.0), *(betas if role == "m" else reversed(betas)))

    def part(self, gradient):
        """What a gradient adds to it, before it is weighted."""
        return gradient if self.role == "m" else gradient**2

    def after(self, gradient):
        return self.beta * self.before + (1 - self.beta) * self.part(gradient)


def adamw_mean(gradient, norm, adamw, **others):
    return _Moment.named("m", others | {"adamw": adamw}).after(clipped(gradient, norm, adamw))


def adamw_square(gradient, norm, adamw, **others):
    return _Moment.named("v", others | {"adamw": adamw}).after(clipped(gradient, norm, adamw))


def joint_norm(gradients, max_norm):
    return np.sqrt(np.sum(gradients.flat**2))


def _corrected(m, v, step, adamw):
    return m / (1 - adamw["beta1"] ** step), v / (1 - adamw["beta2"] ** step)


def _direction(m, v, step, adamw):
    """The direction of a step: the corrected mean over the root of the corrected mean square."""
    m, v = _corrected(m, v, step, adamw)
    return m / (np.sqrt(v) + adamw["eps"])


def _stepped(weight, direction, rate, adamw, decays):
    return weight * (1 - rate * adamw["weight_decay"] * decays) - rate * direction


def adamw_weight(weight, m, v, rate, adamw, step, decays, **_):
    return _stepped(weight, _direction(m, v, step, adamw), rate, adamw, decays)


# Mistakes in a moment, whichever it is


@wrong_forward("the gradient is not clipped before the update: clip first, then update")
def clip_missing(moment, gradient, **_):
    return moment.after(gradient)


@wrong_forward("clipped by max_norm / (norm + 1e-6), as PyTorch's clip_grad_norm_ does; wanted: no 1e-6")
def clip_eps(moment, gradient, norm, adamw, **_):
    return moment.after(gradient * min(1.0, adamw["max_norm"] / (float(norm) + 1e-6)))


@wrong_forward("each gradient is clipped by its own norm; wanted: all by their joint norm")
def clip_each(moment, gradient, adamw, **_):
    norm = np.sqrt(np.sum(gradient**2))
    return moment.after(clipped(gradient, max(norm, 1e-300), adamw))


@wrong_forward("each number is clipped to ±max_norm; wanted: all scaled down together")
def clip_values(moment, gradient, adamw, **_):
    return moment.after(np.clip(gradient, -adamw["max_norm"], adamw["max_norm"]))


@wrong_forward("the gradient is always divided by its norm; only where the norm exceeds max_norm")
def clip_always(moment, gradient, norm, adamw, **_):
    return moment.after(gradient * adamw["max_norm"] / float(norm))


@wrong_forward(
    "weight decay is added to the gradient (Adam with L2); AdamW shrinks the weight alone",
    "the decay is added to the gradient and so enters m and v; that is Adam with L2. Here it bypasses them: "
    "weight -= learning_rate · weight_decay · weight",
)
def decay_coupled(moment, gradient, norm, adamw, weight, **_):
    decay = adamw["weight_decay"] * weight
    return [
        moment.after(clipped(gradient, norm, adamw) + decay),
        moment.after(clipped(gradient + decay, norm, adamw)),
    ]


@wrong_forward("beta1 and beta2 are swapped, or 1 - beta is missing")
def betas_swapped(moment, gradient, norm, adamw, **_):
    part, beta, other = moment.part(clipped(gradient, norm, adamw)), moment.beta, moment.other
    shares = ((other, 1 - other), (other, 1 - beta), (beta, 1 - other), (beta, 1), (1 - beta, beta))
    return [old * moment.before + new * part for old, new in shares]


@wrong_forward("the gradient is not squared")
def square_missing(moment, gradient, norm, adamw, **_):
    g = clipped(gradient, norm, adamw)
    return [moment.beta * moment.before + (1 - moment.beta) * each for each in (g, np.abs(g))]


@wrong_forward("the moment is not kept from the step before: it starts from 0 each time")
def moment_forgotten(moment, gradient, norm, adamw, **_):
    return moment._replace(before=0.0).after(clipped(gradient, norm, adamw))


@wrong_forward("the moment is divided by 1 - beta^t in place; keep it as it is and correct a copy")
def moment_corrected(moment, gradient, norm, adamw, step, **_):
    return moment.after(clipped(gradient, norm, adamw)) / (1 - moment.beta**step)


def _of(role: str, mistakes: tuple[Mistake, ...]) -> tuple[Mistake, ...]:
    """The mistakes made in one of the moments."""

    def made_in(mistake: Mistake) -> Mistake:
        return mistake._replace(
            compute=lambda **inputs: mistake.compute(_Moment.named(role, inputs), **inputs)
        )

    return tuple(map(made_in, mistakes))


# Mistakes in the norm


@wrong_forward("the norm is taken tensor by tensor and added up; wanted: the root of the sum of all squares")
def norm_of_norms(gradients, max_norm):
    return sum(np.sqrt(np.sum(gradient**2)) for gradient in gradients.values())


@wrong_forward("this is the squared norm: take the root")
def norm_squared(gradients, max_norm):
    return joint_norm(gradients, max_norm) ** 2


@wrong_forward("this is the norm after clipping: it is wanted before")
def norm_after_clipping(gradients, max_norm):
    return np.minimum(joint_norm(gradients, max_norm), max_norm)


# Mistakes in the weight


@wrong_forward("weight decay shrinks biases and layer norms too; it is for matrices alone")
def decay_on_vectors(decays, **inputs):
    return None if decays else adamw_weight(decays=True, **inputs)


@wrong_forward(
    "weight decay is missing", "the weight decay is missing: weight -= learning_rate · weight_decay · weight"
)
def decay_missing(decays, **inputs):
    return adamw_weight(decays=False, **inputs) if decays else None


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
    return [_stepped(weight, m / each, rate, adamw, decays) for each in roots]


@wrong_forward("eps is added before √v is corrected: √v / √(1 - beta2^t) + eps is wanted")
def eps_before_correction(weight, m, v, rate, adamw, step, decays, **_):
    root = (1 - adamw["beta2"] ** step) ** 0.5
    direction = m / (1 - adamw["beta1"] ** step) * root / (np.sqrt(v) + adamw["eps"])
    return _stepped(weight, direction, rate, adamw, decays)


@wrong_forward("eps is another value than the pack's, such as 1e-8")
def eps_other(adamw, **inputs):
    return [adamw_weight(adamw=adamw | {"eps": eps}, **inputs) for eps in (1e-8, 1e-6, 0)]


@wrong_forward(
    "bias correction is missing: divide m by 1 - beta1^t and v by 1 - beta2^t",
    "the bias correction is missing: divide m by 1 - beta1^step and v by 1 - beta2^step",
)
def correction_missing(weight, m, v, rate, adamw, step, decays, **_):
    mean, square = _corrected(m, v, step, adamw)
    return [
        _stepped(weight, first / (np.sqrt(second) + adamw["eps"]), rate, adamw, decays)
        for first, second in ((m, v), (mean, v), (m, square))
    ]


@wrong_forward("bias correction is a step off: t is 1 in the first update")
def correction_off_by_one(weight, m, v, rate, adamw, step, decays, **_):
    results = []
    for other in (step + 1, step - 1) if step > 1 else (step + 1,):
        for t1, t2 in ((other, other), (other, step), (step, other)):
            mean, square = _corrected(m, v, t1, adamw)[0], _corrected(m, v, t2, adamw)[1]
            results.append(_stepped(weight, mean / (np.sqrt(square) + adamw["eps"]), rate, adamw, decays))
    return results


@wrong_forward("the step goes uphill: subtract it")
def step_uphill(weight, m, v, rate, adamw, step, decays, **_):
    return _stepped(weight, -_direction(m, v, step, adamw), rate, adamw, decays)


@wrong_forward("v is used without its root", "the root is missing: the step is divided by √v, not by v")
def square_without_root(weight, m, v, rate, adamw, step, decays, **_):
    m, root, eps = m / (1 - adamw["beta1"] ** step), (1 - adamw["beta2"] ** step) ** 0.5, adamw["eps"]
    return [_stepped(weight, m / (v / each + eps), rate, adamw, decays) for each in (root**2, root)]


@wrong_forward("the step uses the moments from before this gradient: update them first")
def moments_stale(weight, rate, adamw, step, decays, m_before=0.0, v_before=0.0, **_):
    direction = _direction(np.asarray(m_before), np.asarray(v_before), step, adamw)
    return np.broadcast_to(_stepped(weight, direction, rate, adamw, decays), weight.shape)


@wrong_forward("the learning rate is the step before's or the one after's: rates count from the first step")
def rate_shifted(step, rates, rate, **inputs):
    others = [rates[at] for at in (step - 2, step) if 0 <= at < len(rates)]
    return [adamw_weight(step=step, rate=other, **inputs) for other in others]


@wrong_forward("v is the largest so far (AMSGrad); AdamW divides by the root of the present one")
def amsgrad(v, adamw, step, **others):
    before = {
        int(role.removeprefix("v_at_")): each for role, each in others.items() if role.startswith("v_at_")
    }
    if not before:
        return None
    raw = np.maximum.reduce([v, *before.values()])
    scale = 1 - adamw["beta2"] ** step
    corrected = [each / (1 - adamw["beta2"] ** at) for at, each in before.items()]
    largest = [raw, np.maximum.reduce([v / scale, *corrected]) * scale]
    return [adamw_weight(v=each, adamw=adamw, step=step, **others) for each in largest]


_MOMENT = (
    clip_missing, clip_eps, clip_each, clip_values, clip_always, decay_coupled, betas_swapped, moment_forgotten,
    moment_corrected,
)  # fmt: skip
_WEIGHT = (
    decay_on_vectors, decay_missing, decay_without_rate, decay_after_step, eps_inside, eps_before_correction, eps_other,
    correction_missing, correction_off_by_one, step_uphill, square_without_root, moments_stale, rate_shifted, amsgrad,
)  # fmt: skip
STEPS = {
    "AdamW mean": Step(
        "m = beta1 · m + (1 - beta1) · g, g = gradient clipped by the joint norm",
        adamw_mean,
        _of("m", _MOMENT),
    ),
    "AdamW mean square": Step(
        "v = beta2 · v + (1 - beta2) · g², g = gradient clipped by the joint norm",
        adamw_square,
        _of("v", (*_MOMENT, square_missing)),
    ),
    "AdamW weight": Step(
        "weight -= rate · weight_decay · weight (matrices only), "
        "then weight -= rate · (m / (1 - beta1^t)) / (√(v / (1 - beta2^t)) + eps), t counted from 1",
        adamw_weight,
        _WEIGHT,
    ),
    "gradient norm of a step": Step(
        "√(Σ gradient²) over all weights together, before clipping",
        joint_norm,
        (norm_of_norms, norm_squared, norm_after_clipping),
    ),
}
