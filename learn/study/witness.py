"""A small model with the choices of the page's, run once in float64, with every call's variables on record.

The derivations are checked on it: a symbol's number is what the variable of that name held when the tested
function returned.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple
from unittest.mock import patch

import numpy as np

from contract.config import ModelConfig
from contract.randomness import DropoutKey
from contract.trace import Trace
from learn.study.source import find_function
from numpy_llm import GPT, Adam, attend_in_blocks
from numpy_llm.block import block_backward, block_forward
from numpy_llm.layers import dropout_backward, dropout_forward
from numpy_llm.positions import rotary_table
from operations.dataflow import Dataflow
from parity.cases import Case

# All different, so that a shape tells which dimensions it has.
SIZES = {"B": 6, "T": 3, "C": 8, "H": 2, "D": 4, "F": 5, "V": 7, "P": 9}
_LEARNING_RATE = 0.1  # of Adam's steps, large enough for every term to count
MAX_COPY = (
    1 << 23
)  # numbers of an array in a large model: the gradient of a vocabulary's table is kept as it is
ADAM_CALL = 2  # of Adam's calls, two a step, the first of the second step: its running means are not 0


class Call(NamedTuple):
    """arguments: what a function was called with

    variables: what its local names held when it returned, the fields of its cache among them; results: its own
    """

    arguments: dict
    variables: dict
    results: tuple


class Witness(NamedTuple):
    """calls: by dotted function name, in the order of the calls; flow, B, T: of the pass; config: of the model"""

    calls: dict[str, list[Call]]
    flow: Dataflow
    config: ModelConfig
    B: int = SIZES["B"]
    T: int = SIZES["T"]


def run_witness(functions: Iterable[str], config: ModelConfig) -> Witness:
    """Run a pass forward and back and two steps of Adam, watching `functions`.

    config: of which the choices count, not the sizes
    """
    config = _small(config)
    inputs = Case("witness", config, B=SIZES["B"], T=SIZES["T"], seed=3).inputs("float64")
    trace = Trace()

    def run():
        _drop()
        model = GPT(config, inputs.weights)
        _, _, cache = model.forward(inputs.tokens, inputs.targets, trace=trace)
        gradients = model.backward(cache, trace=trace)
        _attend_in_blocks(trace, config)
        optimizer = Adam(model.weights, beta1=0.8, beta2=0.9)  # after the pass: the copies are made
        for _ in range(2):
            optimizer.update(gradients, _LEARNING_RATE)

    rotary_table.cache_clear()  # so that it is computed while it is watched
    calls = record_calls(run, functions)
    flow = Dataflow(trace.nodes, trace.activations.__contains__, trace.activations.get)
    return Witness(calls, flow, config)


def _attend_in_blocks(trace: Trace, config: ModelConfig):
    """The first layer's attention once more, in several blocks."""
    name, layer = "blocks.0.attention", config.layer(0)
    (node,) = (node for node in trace.nodes if node.results == (f"{name}.scores",))
    query, key = (trace.activations[each] for each in node.inputs)
    terms = config.score_scale, layer.window, config.score_cap
    with patch.multiple(attend_in_blocks, _QUERIES=2, _KEYS=2):
        value = trace.activations[f"{name}.value"]
        _, cache = attend_in_blocks.attend_in_blocks_forward(query, key, value, *terms)
        attend_in_blocks.attend_in_blocks_backward(trace.gradients[f"{name}.heads"], cache)


def _drop():
    """Dropout with a mask, which the pass is without, of what stands for a stream."""
    random = np.random.default_rng(0)
    x, dy = random.normal(size=(2, SIZES["B"], SIZES["T"], SIZES["C"]))
    _, cache = dropout_forward(x, 0.25, DropoutKey(0, 0), "embedding_dropout")
    dropout_backward(dy, cache)


def _small(config: ModelConfig) -> ModelConfig:
    """A model of one layer with the same choices. Where fewer heads have keys and values, sizes are apart again."""
    grouped = {"n_head": 4, "n_kv_head": 2, "head_size": 10}
    plain = {"n_head": SIZES["H"], "n_kv_head": SIZES["H"], "head_size": SIZES["D"]}
    return replace(
        config,
        n_layer=1,
        layer_pattern=("sliding",) if config.window else ("full",),
        window=2 if config.window else None,
        vocab_size=SIZES["V"],
        context_length=SIZES["P"],
        d_model=SIZES["C"],
        d_ff=SIZES["F"],
        dropout=0.0,
        **(grouped if config.n_kv_head < config.n_head else plain),
    )


def record_calls(
    run: Callable[[], object], functions: Iterable[str], block: str = "", shared: np.ndarray | None = None
) -> dict[str, list[Call]]:
    """Run `run` and keep copies of the arguments and variables of each call of the functions, by dotted name.

    block: the only one of the model's blocks whose calls are kept, such as "blocks.0."; "" keeps those of all
    shared: memory that nothing changes meanwhile: its arrays are kept as they are
    """
    found = {each: inspect.unwrap(find_function(each)) for each in functions}
    names = {function.__code__: each for each, function in found.items() if hasattr(function, "__code__")}
    calls: dict[str, list[Call]] = {name: [] for name in names.values()}
    open_calls: dict = {}
    others = []  # of the other blocks, the one that runs

    def watch(frame, event, result):
        if block and _other_block(frame, block):
            others[:] = [frame] if event == "call" else []
        name = None if others else names.get(frame.f_code)
        if name is None:
            return
        if event == "call":
            open_calls[frame] = _copies(frame.f_locals, shared)
        elif event == "return" and frame in open_calls:
            results = dict(enumerate(result if isinstance(result, tuple) else (result,)))
            cache = getattr(frame.f_locals.get("cache"), "_asdict", dict)()
            held = _copies(cache | frame.f_locals, shared)
            calls[name].append(Call(open_calls.pop(frame), held, tuple(_copies(results, shared).values())))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(before)
    return calls


def _other_block(frame, block: str) -> bool:
    """Whether a call is the forward or backward pass of another block than this."""
    if frame.f_code is block_forward.__code__:
        return f"{frame.f_locals['name']}." != block
    return frame.f_code is block_backward.__code__ and not frame.f_locals["cache"].attention.name.startswith(
        block
    )


def rerun(function: str, call: Call, changes: Mapping[str, np.ndarray]) -> Call:
    """A recorded call, made again with some arguments changed."""
    (again,) = record_calls(lambda: find_function(function)(**call.arguments | changes), [function])[function]
    return again


def _copies(variables: Mapping, shared: np.ndarray | None = None) -> dict:
    def copy(value):
        kept = shared is not None and (value.size > MAX_COPY or np.may_share_memory(value, shared))
        return value if kept else np.array(value)

    return {
        name: copy(value) if isinstance(value, np.ndarray) else value for name, value in variables.items()
    }
