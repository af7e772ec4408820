"""The clipping of gradients: what people get wrong in their joint norm, and in scaling them down by it."""

import numpy as np

from operations.operation import wrong_forward


def clipped(gradient, norm, adamw):
    """The gradient scaled by max_norm / norm where the norm exceeds max_norm."""
    return gradient * (adamw["max_norm"] / float(norm)) if norm > adamw["max_norm"] else gradient


def joint_norm(gradients, max_norm):
    """The norm of all gradients together, whatever the largest one is."""
    return np.sqrt(np.sum(gradients.flat**2))


# Mistakes of the joint norm
NORM = (
    wrong_forward("norm_of_norms",
        lambda gradients, max_norm: sum(np.sqrt(np.sum(each**2)) for each in gradients.values()),
        "the norm is taken tensor by tensor and added up; wanted: the root of the sum of all squares"),
    wrong_forward("norm_squared", lambda gradients, max_norm: joint_norm(gradients, max_norm) ** 2,
        "this is the squared norm: take the root"),
    wrong_forward("norm_after_clipping",
        lambda gradients, max_norm: np.minimum(joint_norm(gradients, max_norm), max_norm),
        "this is the norm after clipping: it is wanted before"),
)  # fmt: skip


def not_zeroed(gradients, max_norm):
    """The gradients, flat, and their norm in a program that adds them to those of the steps before.

    Two of them: where clipping makes a copy, and where it scales in place what the next step adds to.

    gradients: of each step, the present one last
    """
    left = np.zeros(())
    for each in gradients[:-1]:
        left = left + each
        left = left * min(1.0, max_norm / max(_root(left), 1e-300))
    return [(each, _root(each)) for each in (sum(gradients), left + gradients[-1])]


def _root(flat):
    return np.sqrt(np.sum(flat**2))


# Beside those of the joint norm, one that no step shows alone
NORM_NOT_ZEROED = wrong_forward("norm_not_zeroed", lambda sums: [norm for _, norm in sums],
    "this is the norm of the gradients of all steps so far: zero them before each backward pass")  # fmt: skip

# Mistakes of clipping: the gradient that enters both moments
CLIPPING = (
    wrong_forward("clip_missing", lambda gradient, norm, adamw: gradient,
        "the gradient is not clipped before the update: clip first, then update"),
    wrong_forward("clip_eps",
        lambda gradient, norm, adamw: gradient * min(1.0, adamw["max_norm"] / (float(norm) + 1e-6)),
        "clipped by max_norm / (norm + 1e-6), as PyTorch's clip_grad_norm_ does; wanted: no 1e-6"),
    wrong_forward("clip_each",
        lambda gradient, norm, adamw: clipped(gradient, max(np.sqrt(np.sum(gradient**2)), 1e-300), adamw),
        "each gradient is clipped by its own norm; wanted: all by their joint norm"),
    wrong_forward("clip_values",
        lambda gradient, norm, adamw: np.clip(gradient, -adamw["max_norm"], adamw["max_norm"]),
        "each number is clipped to ±max_norm; wanted: all scaled down together"),
    wrong_forward("clip_always", lambda gradient, norm, adamw: gradient * (adamw["max_norm"] / float(norm)),
        "the gradient is always divided by its norm; only where the norm exceeds max_norm"),
)  # fmt: skip
