"""Mistakes of clipping and of AdamW. Each function is an operation of `parity/recompute.py` with one thing wrong."""

import numpy as np

from parity.explanations import mistake
from parity.recompute import (
    adam_direction,
    adamw_mean,
    adamw_square,
    adamw_weight,
    clipped,
    pass_of_step,
    step_norm,
)

_MEAN, _SQUARE, _WEIGHT, _NORM = "AdamW mean", "AdamW mean square", "AdamW weight", "gradient norm of a step"


def _moment(config, gradient, square, moment, adamw):
    """The right mean, or mean square, of a gradient that is not the right one; nothing is clipped."""
    compute, role = (adamw_square, "v") if square else (adamw_mean, "m")
    return compute(config, gradient, 1.0, adamw | {"max_norm": np.inf}, 0, False, **{role: moment})


def _moment_of(wrong_gradient):
    """Turns a function of (gradient, norm, adamw, weight, ...) into a mistake in both moments."""

    def compute(config, m=None, v=None, **inputs):
        adamw, results = inputs["adamw"], []
        gradients = wrong_gradient(config=config, **inputs)
        for each in gradients if isinstance(gradients, list) else [gradients]:
            for square in (False, True):
                moment = v if square else m
                results.append(_moment(config, each, square, 0.0 if moment is None else moment, adamw))
        return results

    compute.__name__ = wrong_gradient.__name__
    return compute


@mistake("the gradient is not clipped before the update: clip first, then update", _MEAN, _SQUARE)
@_moment_of
def clip_missing(gradient, **_):
    return gradient


@mistake(
    "clipped by max_norm / (norm + 1e-6), as PyTorch's clip_grad_norm_ does; wanted: no 1e-6", _MEAN, _SQUARE
)
@_moment_of
def clip_eps(gradient, norm, adamw, **_):
    return gradient * min(1.0, adamw["max_norm"] / (float(norm) + 1e-6))


@mistake("each gradient is clipped by its own norm; wanted: all by their joint norm", _MEAN, _SQUARE)
@_moment_of
def clip_each(gradient, adamw, **_):
    norm = np.sqrt(np.sum(gradient**2))
    return clipped(gradient, max(norm, 1e-300), adamw)


@mistake("each number is clipped to ±max_norm; wanted: all scaled down together", _MEAN, _SQUARE)
@_moment_of
def clip_values(gradient, adamw, **_):
    return np.clip(gradient, -adamw["max_norm"], adamw["max_norm"])


@mistake("the gradient is always divided by its norm; only where the norm exceeds max_norm", _MEAN, _SQUARE)
@_moment_of
def clip_always(gradient, norm, adamw, **_):
    return gradient * adamw["max_norm"] / float(norm)


@mistake(
    "weight decay is added to the gradient (Adam with L2); AdamW shrinks the weight alone", _MEAN, _SQUARE
)
@_moment_of
def decay_coupled(gradient, norm, adamw, weight, decays, **_):
    decay = adamw["weight_decay"]
    after = clipped(gradient, norm, adamw) + decay * weight
    return [after, clipped(gradient + decay * weight, norm, adamw)]


@mistake("beta1 and beta2 are swapped, or 1 - beta is missing", _MEAN, _SQUARE)
def betas_swapped(config, gradient, norm, adamw, step, decays, m=None, v=None, **_):
    g, b1, b2 = clipped(gradient, norm, adamw), adamw["beta1"], adamw["beta2"]
    m, v = (0.0 if each is None else each for each in (m, v))
    return [b2 * m + (1 - b2) * g, b1 * v + (1 - b1) * g**2, b1 * v + (1 - b2) * g**2, b2 * v + (1 - b1) * g**2,
            b1 * m + g, b2 * v + g**2,
            (1 - b1) * m + b1 * g, (1 - b2) * v + b2 * g**2]  # fmt: skip


@mistake("the gradient is not squared", _SQUARE)
def square_missing(config, gradient, norm, adamw, step, decays, v=0.0, **_):
    g = clipped(gradient, norm, adamw)
    return [adamw["beta2"] * v + (1 - adamw["beta2"]) * each for each in (g, np.abs(g))]


@mistake("the moment is not kept from the step before: it starts from 0 each time", _MEAN, _SQUARE)
def moment_forgotten(config, gradient, norm, adamw, step, decays, m=None, v=None, **_):
    g = clipped(gradient, norm, adamw)
    return [(1 - adamw["beta1"]) * g, (1 - adamw["beta2"]) * g**2]


@mistake("the moment is divided by 1 - beta^t in place; keep it as it is and correct a copy", _MEAN, _SQUARE)
def moment_corrected(config, gradient, norm, adamw, step, decays, m=None, v=None, **_):
    m, v = (0.0 if each is None else each for each in (m, v))
    mean = adamw_mean(config, gradient, norm, adamw, step, decays, m)
    square = adamw_square(config, gradient, norm, adamw, step, decays, v)
    return [mean / (1 - adamw["beta1"] ** step), square / (1 - adamw["beta2"] ** step)]


@mistake("the norm is taken tensor by tensor and added up; wanted: the root of the sum of all squares", _NORM)
def norm_of_norms(config, tokens, targets, max_norm, **weights):
    gradients = pass_of_step(config, tokens, targets, weights)[1]
    return sum(np.sqrt(np.sum(gradient**2)) for gradient in gradients.values())


@mistake("this is the squared norm: take the root", _NORM)
def norm_squared(config, tokens, targets, max_norm, **weights):
    return step_norm(config, tokens, targets, max_norm, **weights) ** 2


@mistake("this is the norm after clipping: it is wanted before", _NORM)
def norm_after_clipping(config, tokens, targets, max_norm, **weights):
    return np.minimum(step_norm(config, tokens, targets, max_norm, **weights), max_norm)


def _stepped(weight, direction, rate, adamw, decays):
    return weight * (1 - rate * adamw["weight_decay"] * decays) - rate * direction


@mistake("weight decay shrinks biases and layer norms too; it is for matrices alone", _WEIGHT)
def decay_on_vectors(config, weight, m, v, rate, adamw, step, decays, **_):
    return None if decays else adamw_weight(config, weight, m, v, rate, adamw, step, True)


@mistake("weight decay is missing", _WEIGHT)
def decay_missing(config, weight, m, v, rate, adamw, step, decays, **_):
    return adamw_weight(config, weight, m, v, rate, adamw, step, False) if decays else None


@mistake("weight decay is not multiplied by the learning rate", _WEIGHT)
def decay_without_rate(config, weight, m, v, rate, adamw, step, decays, **_):
    return weight * (1 - adamw["weight_decay"] * decays) - rate * adam_direction(m, v, step, adamw)


@mistake("weight decay shrinks the weight after Adam's step; shrink it before", _WEIGHT)
def decay_after_step(config, weight, m, v, rate, adamw, step, decays, **_):
    return (weight - rate * adam_direction(m, v, step, adamw)) * (1 - rate * adamw["weight_decay"] * decays)


@mistake("eps stands inside the root: √(v + eps); wanted √v + eps", _WEIGHT)
def eps_inside(config, weight, m, v, rate, adamw, step, decays, **_):
    eps, root = adamw["eps"], (1 - adamw["beta2"] ** step) ** 0.5
    m, roots = m / (1 - adamw["beta1"] ** step), []
    for inside in (eps, eps**2):
        alone, before = np.sqrt(v / root**2 + inside), np.sqrt(v + inside) / root
        roots += [alone, before, alone + eps, before + eps]
    return [_stepped(weight, m / each, rate, adamw, decays) for each in roots]


@mistake("eps is added before √v is corrected: √v / √(1 - beta2^t) + eps is wanted", _WEIGHT)
def eps_before_correction(config, weight, m, v, rate, adamw, step, decays, **_):
    root = (1 - adamw["beta2"] ** step) ** 0.5
    direction = m / (1 - adamw["beta1"] ** step) * root / (np.sqrt(v) + adamw["eps"])
    return _stepped(weight, direction, rate, adamw, decays)


@mistake("eps is another value than the pack's, such as 1e-8", _WEIGHT)
def eps_other(config, weight, m, v, rate, adamw, step, decays, **_):
    return [
        adamw_weight(config, weight, m, v, rate, adamw | {"eps": eps}, step, decays)
        for eps in (1e-8, 1e-6, 0)
    ]


@mistake("bias correction is missing: divide m by 1 - beta1^t and v by 1 - beta2^t", _WEIGHT)
def correction_missing(config, weight, m, v, rate, adamw, step, decays, **_):
    b1, b2 = 1 - adamw["beta1"] ** step, 1 - adamw["beta2"] ** step
    forms = ((m, v), (m / b1, v), (m, v / b2))
    return [
        _stepped(weight, mean / (np.sqrt(square) + adamw["eps"]), rate, adamw, decays)
        for mean, square in forms
    ]


@mistake("bias correction is a step off: t is 1 in the first update", _WEIGHT)
def correction_off_by_one(config, weight, m, v, rate, adamw, step, decays, **_):
    results = []
    for other in (step + 1, step - 1) if step > 1 else (step + 1,):
        for t1, t2 in ((other, other), (other, step), (step, other)):
            m_corrected, v_corrected = m / (1 - adamw["beta1"] ** t1), v / (1 - adamw["beta2"] ** t2)
            direction = m_corrected / (np.sqrt(v_corrected) + adamw["eps"])
            results.append(_stepped(weight, direction, rate, adamw, decays))
    return results


@mistake("the step goes uphill: subtract it", _WEIGHT)
def step_uphill(config, weight, m, v, rate, adamw, step, decays, **_):
    return _stepped(weight, -adam_direction(m, v, step, adamw), rate, adamw, decays)


@mistake("v is used without its root", _WEIGHT)
def square_without_root(config, weight, m, v, rate, adamw, step, decays, **_):
    m, root, eps = m / (1 - adamw["beta1"] ** step), (1 - adamw["beta2"] ** step) ** 0.5, adamw["eps"]
    return [_stepped(weight, m / (v / each + eps), rate, adamw, decays) for each in (root**2, root)]


@mistake("the step uses the moments from before this gradient: update them first", _WEIGHT)
def moments_stale(config, weight, m, v, rate, adamw, step, decays, m_before=0.0, v_before=0.0, **_):
    direction = adam_direction(np.asarray(m_before), np.asarray(v_before), step, adamw)
    return np.broadcast_to(_stepped(weight, direction, rate, adamw, decays), weight.shape)


@mistake(
    "the learning rate is the step before's or the one after's: rates count from the first step", _WEIGHT
)
def rate_shifted(config, weight, m, v, rate, adamw, step, decays, rates, **_):
    others = [rates[at] for at in (step - 2, step) if 0 <= at < len(rates)]
    return [adamw_weight(config, weight, m, v, other, adamw, step, decays) for other in others]


@mistake("v is the largest so far (AMSGrad); AdamW divides by the root of the present one", _WEIGHT)
def amsgrad(config, weight, m, v, rate, adamw, step, decays, **others):
    before = {
        int(role.removeprefix("v_at_")): each for role, each in others.items() if role.startswith("v_at_")
    }
    if not before:
        return None
    raw = np.maximum.reduce([v, *before.values()])
    scale = 1 - adamw["beta2"] ** step
    corrected = [each / (1 - adamw["beta2"] ** at) for at, each in before.items()]
    largest = [raw, np.maximum.reduce([v / scale, *corrected]) * scale]
    return [adamw_weight(config, weight, m, each, rate, adamw, step, decays) for each in largest]
