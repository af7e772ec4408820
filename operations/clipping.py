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


@wrong_forward("the norm is taken tensor by tensor and added up; wanted: the root of the sum of all squares")
def norm_of_norms(gradients, max_norm):
    return sum(np.sqrt(np.sum(gradient**2)) for gradient in gradients.values())


@wrong_forward("this is the squared norm: take the root")
def norm_squared(gradients, max_norm):
    return joint_norm(gradients, max_norm) ** 2


@wrong_forward("this is the norm after clipping: it is wanted before")
def norm_after_clipping(gradients, max_norm):
    return np.minimum(joint_norm(gradients, max_norm), max_norm)


# Mistakes of clipping: the gradient that enters both moments


@wrong_forward("the gradient is not clipped before the update: clip first, then update")
def clip_missing(gradient, norm, adamw):
    return gradient


@wrong_forward("clipped by max_norm / (norm + 1e-6), as PyTorch's clip_grad_norm_ does; wanted: no 1e-6")
def clip_eps(gradient, norm, adamw):
    return gradient * min(1.0, adamw["max_norm"] / (float(norm) + 1e-6))


@wrong_forward("each gradient is clipped by its own norm; wanted: all by their joint norm")
def clip_each(gradient, norm, adamw):
    return clipped(gradient, max(np.sqrt(np.sum(gradient**2)), 1e-300), adamw)


@wrong_forward("each number is clipped to ±max_norm; wanted: all scaled down together")
def clip_values(gradient, norm, adamw):
    return np.clip(gradient, -adamw["max_norm"], adamw["max_norm"])


@wrong_forward("the gradient is always divided by its norm; only where the norm exceeds max_norm")
def clip_always(gradient, norm, adamw):
    return gradient * (adamw["max_norm"] / float(norm))


NORM = (norm_of_norms, norm_squared, norm_after_clipping)
CLIPPING = (clip_missing, clip_eps, clip_each, clip_values, clip_always)
