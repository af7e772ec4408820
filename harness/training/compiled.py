"""The loss of the PyTorch twin, compiled by `torch.compile`: one graph forward, one backward."""

import torch

from contract.checks import check_batch
from contract.errors import ConfigError, UserError

COMPILER = "inductor"  # of those that PyTorch knows


def compiled_loss(model):
    """`model.loss` as one compiled graph, without a break: in it nothing is checked and no device is waited for.

    It is compiled at the first call, and again for another shape, type or autocast. Its numbers are those of
    `model.loss` up to rounding. Tokens and targets are checked before they go to the model's device.

    returns: a function with the arguments of `model.loss`, tokens and targets on the CPU
    Raises ConfigError for a model with dropout, UserError if nothing can be compiled here.
    """
    if model.config.dropout:
        raise ConfigError(
            f"--compile does not go with dropout {model.config.dropout:g}, whose masks NumPy draws between the "
            "compiled parts; omit --compile, or train with --dropout 0"
        )
    try:
        torch.compile(torch.neg, backend=COMPILER)(torch.ones(2, device=model.device))
    except RuntimeError as error:  # what every error of the compiler is
        raise compiler_problem(error) from error
    compiled = torch.compile(model.loss, backend=COMPILER, fullgraph=True, dynamic=False)

    def loss(tokens, targets, *, dropout=None):
        check_batch(tokens.numpy(), targets.numpy(), model.config)
        tokens, targets = (ids.to(model.device, non_blocking=True) for ids in (tokens, targets))
        return compiled(tokens, targets, dropout=dropout)

    return loss


def compiler_problem(error: RuntimeError) -> UserError:
    """What to tell a user of an error of `torch.compile`."""
    reason = str(error).strip().partition("\n")[0]
    return UserError(
        f"torch.compile does not work here ({reason}); it needs a C++ compiler (or Triton on a GPU): install one, or "
        "omit --compile"
    )
