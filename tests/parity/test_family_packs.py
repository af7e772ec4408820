"""The packs of the modern families: what each can see."""

import numpy as np
import pytest
from wrong_ports import PORTS, UNSEEN

from contract.trace import Trace
from contract.weights import Weights, weight_table
from operations.catalogue import OPERATIONS
from operations.dataflow import GRADIENT
from parity.golden.packs import GOLDEN, Pack
from parity.golden.tensors import Tensors

FAMILY_PACKS = ["gemma3", "llama", "modern", "qwen2", "qwen3"]
# Where a model has nothing that a mistake could touch, it changes no number. All five have fewer key/value heads than
# query heads, which these mistakes confuse with one another or transpose.
_NONE_HAS = {
    "scores_swapped", "dscores_transposed", "dscores_other_factor", "dvalue_transposed", "djoin_without_transpose",
    "djoin_interleaved", "djoin_transposed_again",
}  # fmt: skip
_OF_BIASES = {"bias_missing", "bias_twice", "dbias_mean", "dbias_one"}
NOT_HELD = {
    "gemma3": _OF_BIASES,
    "llama": _OF_BIASES | {"rms_over_heads", "use_missing"},  # heads not normed, untied
    "modern": _OF_BIASES
    | {"scaling_ignored", "plus_one_over_heads", "use_missing"},  # plain rotation besides
    "qwen2": {"scaling_ignored", "rms_over_heads"},
    "qwen3": _OF_BIASES | {"scaling_ignored"},
}
PASS_PORTS = [port for port in PORTS if port.operation != "adamw" and port.explanation not in UNSEEN]


def _pass(pack: Pack, weights: Weights, package) -> dict[str, np.ndarray]:
    """Every tensor of a pass, and every gradient, by the pack's names."""
    trace, model = Trace(), package.GPT(pack.config, weights)
    _, _, cache = model.forward(pack.tensors["tokens"], pack.tensors["targets"], trace=trace)
    gradients = {**model.backward(cache, trace=trace), **trace.gradients}
    return trace.activations | {GRADIENT + name: value for name, value in gradients.items()}


@pytest.mark.parametrize("name", FAMILY_PACKS)
def test_it_is_small_and_makes_no_steps(name, packs):
    """Each file is under 300 kB."""
    assert packs[name].manifest["adamw"]["steps"] == 0
    assert all(path.stat().st_size < 300_000 for path in GOLDEN.glob(f"{name}.*"))


@pytest.mark.parametrize("name", FAMILY_PACKS)
def test_it_is_made_to_see(name, packs):
    """Norm weights are random, texts longer than windows, heads grouped, and kinds of layers come more than once."""
    pack = packs[name]
    config, (_, T) = pack.config, pack.tensors["tokens"].shape
    assert 1 < config.n_kv_head < config.n_head
    assert config.head_size * config.n_head != config.d_model
    assert config.window is None or config.window < T - 1
    layers = [config.layer(place) for place in range(config.n_layer)]
    assert all(layers.count(layer) > 1 for layer in layers)
    for each in weight_table(config):
        if "norm" in each:
            assert np.ptp(pack.tensors[each]) > 0.1, each
    if config.rotary.scaling == "llama3":
        low, high = (
            config.rotary.original_context_length / factor
            for factor in (config.rotary.low_frequency_factor, config.rotary.high_frequency_factor)
        )
        places = np.arange(0, config.head_size, 2) / config.head_size
        lengths = 2 * np.pi * config.rotary.theta**places
        assert [(lengths < high).sum(), (lengths > low).sum()] == [1, 1]
        assert len(lengths) == 3, "one wave in each range: kept, between, stretched"
        assert config.rotary.original_context_length < T - 1


@pytest.mark.parametrize("name", FAMILY_PACKS)
def test_it_sees_every_mistake_that_its_model_can_hold(name, packs):
    """Each known mistake of each of its operations is out of some tensor's limit, those of float32 too."""
    pack = packs[name]
    golden = Tensors(pack, "float32", {})
    ran = {node.operation for node in golden.graph.nodes}
    weights = Weights.zeros(pack.config, "float64")
    for each, weight in weights.items():
        weight[...] = pack.tensors[each]
    unseen = set()
    for port in PASS_PORTS:
        if port.operation in OPERATIONS and port.operation not in ran:
            continue
        with port.run(pack) as package, np.errstate(all="ignore"):
            found = _pass(pack, weights, package)
        if not any(_differs(golden, each, value) for each, value in found.items()):
            unseen.add(port.explanation)
    assert unseen == _NONE_HAS | NOT_HELD[name]


def _differs(tensors: Tensors, name: str, found: np.ndarray) -> bool:
    golden = tensors.golden[name]
    if found.shape != golden.shape:
        return True
    error = np.abs(tensors.determined(name, found) - tensors.determined(name, golden)).max()
    return not error <= tensors.limits[name] * tensors.scales[name]
