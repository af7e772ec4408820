"""Programs with a mistake: what people get wrong when they port the model, each made in the reference or its dump."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

import numpy_llm
from contract.weights import Weights
from operations import adamw
from operations.catalogue import OPERATIONS
from operations.dataflow import Dataflow
from operations.operation import Mistake, Operation, made
from parity.fault_table import FAULTS
from parity.faults import Fault, injected
from parity.golden.check import Report, compare_dump
from parity.golden.making import computed
from parity.golden.origins import Origin, pass_origins
from parity.golden.packs import Pack, load_pack


class Port(NamedTuple):
    """A program with a mistake.

    explanation: name of the mistake that a check has to find
    operation: the one that has it; "adamw" for a step, "uses" for the sum of a tensor's gradients
    run: pack -> context in which the mistake is made, with the package to run
    """

    explanation: str
    operation: str
    run: Callable[[Pack], AbstractContextManager[ModuleType]]


class WrongDump(NamedTuple):
    """A right program whose dump is wrong. tensor, change: what of the dump is changed, and how"""

    explanation: str
    tensor: str
    change: Callable


def dump_of(
    pack: Pack, dtype="float32", port: Port | None = None, texts=True, steps: int | None = None
) -> dict[str, np.ndarray]:
    """What a program that computes in `dtype` would dump: what the pack gives, and all that it computes.

    texts: whether it writes new tokens, too; steps: of AdamW, the most that it takes; None for all
    """
    given = Weights.zeros(pack.config, dtype)
    for name, weight in given.items():
        weight[...] = pack.tensors[name]
    dump = {name: pack.tensors[name] for name in ("tokens", "targets")}
    with port.run(pack) if port else nullcontext(numpy_llm) as package:
        adamw = pack.manifest["adamw"]
        adamw = adamw if steps is None else adamw | {"steps": min(steps, adamw["steps"])}
        return dump | dict(given) | computed(pack.config, given, *dump.values(), adamw, package, texts)


@cache
def right_dump(name: str, dtype: str, steps: int | None = None) -> dict[str, np.ndarray]:
    """The dump of a program without a mistake."""
    return dump_of(load_pack(name), dtype, steps=steps)


@cache
def pass_of(name: str) -> tuple[Dataflow, dict[str, Origin]]:
    """The dataflow of a pack's pass, and what makes each of its tensors."""
    return pass_origins(load_pack(name).config)


def first_shown(port: Port, packs: dict[str, Pack]) -> Report | None:
    """The check of the first dump that shows the mistake; None where none does.

    It shows where the first tensor to diverge is one that the operation makes. In float32 a small mistake may drown,
    and come out later where errors grow, so float64 is tried after it.
    """
    small_first = sorted(packs.items(), key=lambda item: item[1].manifest["adamw"]["steps"] == 0)
    steps = None if port.operation == "adamw" else 2
    for dtype in ("float32", "float64"):
        for name, pack in small_first:
            if name != ONLY_IN.get(port.explanation, name):
                continue
            graph, origins = pass_of(name)
            if port.operation in OPERATIONS and not any(n.operation == port.operation for n in graph.nodes):
                continue
            dump, right = dump_of(pack, dtype, port, texts=False, steps=steps), right_dump(name, dtype, steps)
            if all(np.array_equal(value, right[each]) for each, value in dump.items()):
                continue  # the mistake changes nothing here, and a right program agrees
            report = compare_dump(dump, pack)
            if report.diverging and port.operation in _makers(report.diverging[0].name, origins):
                return report
    return None


def _makers(name: str, origins: dict[str, Origin]) -> tuple[str, ...]:
    if name.startswith("adamw."):
        return ("adamw",)
    return (*origins[name].operations, "uses") if name in origins else ()


# Ports


def _of_operation(operation: Operation, mistake: Mistake) -> Port:
    @contextmanager
    def run(pack: Pack) -> Iterator[ModuleType]:
        at_hand = {"scale": pack.config.score_scale, "tokens": pack.tensors["tokens"]}
        others = {name: at_hand[name] for name in mistake.reads if name in at_hand}
        with made(operation, mistake, **others):
            yield numpy_llm

    return Port(mistake.name, operation.name, run)


def _of_step(mistake: Mistake) -> Port:
    @contextmanager
    def run(pack: Pack) -> Iterator[ModuleType]:
        with adamw.made_in_step(mistake):
            yield numpy_llm

    return Port(mistake.name, "adamw", run)


def of_fault(explanation: str, operation: str, fault: Fault) -> Port:
    """A mistake in a line of the reference."""

    @contextmanager
    def run(pack: Pack) -> Iterator[ModuleType]:
        with injected(fault) as twins:
            yield twins.reference

    return Port(explanation, operation, run)


# What an operation's arguments do not show: which tensor it is given, and what becomes of its result.
_BY_TITLE = {fault.title: fault for fault in FAULTS}
PLUMBING = [
    of_fault("residual_of_norm", "residual", _BY_TITLE["residual: branch added to the norm"]),
    of_fault("use_missing", "uses", _BY_TITLE["tied: the output's gradient lost"]),
    of_fault("use_of_other", "uses", Fault(
        "", "numpy_llm.block.block_backward", "_add_backward(dx, cache.add_1, trace)",
        "dy, *_add_backward(dx, cache.add_1, trace)[1:]"
    )),
]  # fmt: skip
# No pack has dropout, a key/value cache or a part of a batch: these mistakes leave every tensor as it is.
UNSEEN = {
    "dropout_unscaled", "ddropout_without_mask", "ddropout_unscaled", "position_of_window", "dposition_from_zero",
    "mask_without_cached", "dloss_ignored",
    "scores_masked",  # where the loss determines nothing
}  # fmt: skip
# They read a tensor that their operation's arguments do not hold: the ports of the family in PyTorch make them.
IN_FAMILY_PORTS = {
    ("gelu_tanh", "gelu_of_up"), ("rms_norm", "rms_after_rotation"), ("rms_norm_plus_one", "plus_one_after_rotation"),
    ("rms_norm_plus_one", "plus_one_of_residual"), ("silu", "silu_of_up"),
}  # fmt: skip
# Elsewhere no number of a gradient exceeds the largest norm, so that nothing is clipped, which is told instead.
ONLY_IN = {"clip_values": "relu-sinusoidal"}

_IN_TEXT = {port.explanation for port in PLUMBING}
PORTS = [
    _of_operation(operation, mistake)
    for operation in OPERATIONS.values()
    for mistake in operation.mistakes
    if mistake.name not in _IN_TEXT and (operation.name, mistake.name) not in IN_FAMILY_PORTS
]
PORTS += [_of_step(mistake) for mistake in adamw.MISTAKES] + PLUMBING

# A right program whose dump is wrong, mostly in what any operation can have.
_HEADS, _WEIGHT = "gradient.blocks.0.attention.heads", "blocks.0.attention.query_key_value.weight"
WRONG_DUMPS = [
    WrongDump("uses_averaged", "gradient.token_embedding.weight", lambda x: x / 2),
    WrongDump("sign", "gradient.logits", lambda x: -x),
    WrongDump("zeros", "gradient.final_norm", np.zeros_like),
    WrongDump("twice", "gradient.final_norm.weight", lambda x: 2 * x),
    WrongDump("half", "gradient.final_norm.bias", lambda x: x / 2),
    WrongDump("factor_batch", _HEADS, lambda x: x * 3),
    WrongDump("factor_time", _HEADS, lambda x: x / 5),
    WrongDump("factor_tokens", _HEADS, lambda x: x * 15),
    WrongDump("factor_root_head", _HEADS, lambda x: x * 3**0.5),
    WrongDump("constant_factor", _HEADS, lambda x: x * 0.7),
    WrongDump("transposed", _WEIGHT, np.transpose),
    WrongDump("column_major", _WEIGHT, lambda x: x.T.reshape(x.shape)),
    WrongDump("time_first", "blocks.0.norm_1", lambda x: x.swapaxes(0, 1)),
    WrongDump("heads_last", "blocks.0.attention.heads", lambda x: x.swapaxes(1, 2)),
    WrongDump("shifted", "final_norm", lambda x: np.roll(x, 1, axis=1)),
    WrongDump("flattened", "final_norm", lambda x: x.reshape(15, 6)),
]
