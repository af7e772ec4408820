"""Programs in bfloat16 and float16: honest ones agree, and one that rounds what it must not is told so."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")

from family_port import FamilyPort, turned  # noqa: E402
from torch.nn import functional  # noqa: E402

from contract.numbers import SIXTEEN_BITS, rounded  # noqa: E402
from contract.trace import Trace  # noqa: E402
from contract.weights import weight_table  # noqa: E402
from operations.catalogue import OPERATIONS  # noqa: E402
from operations.dataflow import Dataflow, record  # noqa: E402
from operations.replay import Change  # noqa: E402
from parity.golden.against import load_model, run_hooked  # noqa: E402
from parity.golden.check import Report, compare_dump  # noqa: E402
from parity.golden.export import export_pack  # noqa: E402
from parity.golden.making import make_pack  # noqa: E402
from parity.golden.origins import given_names, pass_origins  # noqa: E402
from parity.golden.packs import Pack, pack_names  # noqa: E402
from parity.golden.sixteen_bits import RoundedReplay  # noqa: E402
from torch_llm import GPT  # noqa: E402

FAMILY_PACKS = ["gemma3", "llama", "modern", "qwen2", "qwen3"]
GPT2_PACKS = ["gpt2-tied", "relu-sinusoidal", "untied-no-bias"]


# An honest port and three that are not


def _normed(port, x, weight, eps):
    return FamilyPort.normalised(port, x.float(), weight.float(), eps).to(x.dtype)


def _softmax(port, scores):
    return scores.float().softmax(-1).to(scores.dtype)


def _loss(port, logits):
    return functional.cross_entropy(logits.float(), port.targets.flatten())


def _angles_in_16_bits(port, x, rotary):
    T, D = x.shape[-2:]
    inverse = (rotary.theta ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)).to(x.dtype)
    angles = torch.arange(T, dtype=x.dtype)[:, None] * port.scaled(inverse, rotary)
    return turned(x, angles)


class _TimesSummed(torch.autograd.Function):
    """x · weight, whose weight's gradient is added up token by token in the type of x."""

    @staticmethod
    def forward(context, x, weight):
        context.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(context, dy):
        x, weight = context.saved_tensors
        total = torch.zeros_like(weight)
        for row in (dy * x).flatten(0, -2):
            total = total + row
        return dy * weight, total


def _weight_summed_in_16_bits(port, x, weight, eps):
    normal = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return _TimesSummed.apply(normal.to(x.dtype), weight)


HONEST = {"normalised": _normed, "softmax": _softmax, "loss": _loss}
WRONG = {
    "mean of squares": {"normalised": FamilyPort.normalised},
    "positions": {"rotate": _angles_in_16_bits},
    "weight's gradient": {"normalised": _weight_summed_in_16_bits},
}


def _port(pack: Pack, precision: str, **changes) -> dict[str, np.ndarray]:
    return FamilyPort(pack.config, pack.tensors, getattr(torch, precision), **HONEST | changes).dump()


def _told(report: Report) -> list[str]:
    return [each.name for fault in report.faults for each in fault.explanations[:1] if not fault.cause]


@pytest.fixture(scope="module")
def long_pack(packs):
    """A text of 300 tokens: above 256 not every whole number is one of bfloat16, and sums have many terms."""
    config = replace(packs["llama"].config, n_layer=1, context_length=512)
    return make_pack("long", config, B=1, T=300, steps=0)


@pytest.fixture(scope="module")
def large_batches(packs):
    """Packs of one model of each kind of norm whose sums have 512 terms."""
    layers = {"gpt2-tied": 1, "llama": 1, "gemma3": 2}
    models = [replace(packs[name].config, n_layer=count, context_length=33) for name, count in layers.items()]
    return [make_pack("large", config, B=16, T=32, steps=0) for config in models]


# Honest programs


@pytest.mark.parametrize("precision", SIXTEEN_BITS)
@pytest.mark.parametrize("autocast", [False, True], ids=["weights too", "autocast"])
@pytest.mark.parametrize("name", [*FAMILY_PACKS, *GPT2_PACKS])
def test_transformers_agrees(name, autocast, precision, packs, tmp_path):
    """Hugging Face's own classes, all that hooks see of them."""
    pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    pack, dtype = packs[name], getattr(torch, precision)
    export_pack(pack, "huggingface", tmp_path / "out")
    model = load_model(tmp_path / "out", torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        dump = run_hooked(model, pack)
    report = compare_dump(dump, pack, precision=precision)
    if name in GPT2_PACKS and not autocast:
        # On a CPU PyTorch adds up the gradients of a layer norm's weights in their own type.
        assert all(row.name.startswith("gradient.") and "norm" in row.name for row in report.diverging)
    else:
        assert report.diverging == []
    assert len(report.rows) > 50
    nearest = max(row.error / row.limit for row in report.rows if row.limit and row.holds)
    print(
        f"\n{name}, {precision}, {'autocast' if autocast else 'weights too'}: at most {nearest:.2f} of a limit"
    )


def test_pytorchs_layer_norm_on_a_cpu_is_told(large_batches, tmp_path):
    """It adds up its weights' gradients in their own type: seen in PyTorch 2.13.0, and the docs say so."""
    pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    export_pack(large_batches[0], "huggingface", tmp_path / "out")
    dump = run_hooked(load_model(tmp_path / "out", torch.bfloat16), large_batches[0])
    report = compare_dump(dump, large_batches[0], precision="bfloat16")
    assert {"gradient.final_norm.weight", "gradient.blocks.0.norm_1.bias"} <= {
        row.name for row in report.diverging
    }
    assert {*_told(report)} == {"dnorm_weight_in_16_bits", "dnorm_bias_in_16_bits"}


@pytest.mark.parametrize("name", pack_names())
def test_the_twin_agrees(name, packs):
    """In bfloat16 by autocast, everything that it traces."""
    pack, trace = packs[name], Trace()
    weights = {name: pack.tensors[name].astype(np.float32) for name in weight_table(pack.config)}
    model = GPT(pack.config, weights)
    with torch.autocast("cpu", torch.bfloat16):
        _, loss = model(
            *(torch.from_numpy(pack.tensors[each]) for each in ("tokens", "targets")), trace=trace
        )
    loss.backward()
    dump = trace.activations | {f"gradient.{each}": value for each, value in trace.gradients.items()}
    report = compare_dump(dump, pack, precision="bfloat16")
    assert report.diverging == []
    assert len(report.rows) > 30


@pytest.mark.parametrize(("precision", "seed"), [("bfloat16", 11), ("float16", 12)])
@pytest.mark.parametrize("name", FAMILY_PACKS)
def test_an_honest_port_agrees(name, precision, seed, packs):
    """With other weights and another batch, in every tensor of a pass."""
    pack = make_pack(name, packs[name].config, B=2, T=6, seed=seed, steps=0)
    report = compare_dump(_port(pack, precision), pack, precision=precision)
    assert report.diverging == []


@pytest.mark.parametrize("precision", SIXTEEN_BITS)
def test_an_honest_port_agrees_over_a_long_text(precision, long_pack):
    assert compare_dump(_port(long_pack, precision), long_pack, precision=precision).diverging == []


# Programs that round too early


@pytest.mark.parametrize("precision", SIXTEEN_BITS)
@pytest.mark.parametrize("name", FAMILY_PACKS)
def test_a_mean_of_squares_in_16_bits(name, precision, packs):
    """It leaves an error that the channels of a token share, told in the first of its faults."""
    report = compare_dump(
        _port(packs[name], precision, **WRONG["mean of squares"]), packs[name], precision=precision
    )
    kind = "rms" if packs[name].config.norm == "rms_norm" else "plus_one"
    assert _told(report)[:1] == [f"{kind}_in_16_bits"]
    assert "are off together" in report.diverging[0].problem


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("mean of squares", "rms_in_16_bits"),
        ("positions", "rotate_in_16_bits"),
        ("weight's gradient", "drms_weight_in_16_bits"),
    ],
)
@pytest.mark.parametrize("precision", SIXTEEN_BITS)
def test_a_long_text_shows_all_three(wrong, told, precision, long_pack):
    report = compare_dump(_port(long_pack, precision, **WRONG[wrong]), long_pack, precision=precision)
    assert _told(report)[:1] == [told]


def _kinds() -> list[tuple[str, str]]:
    return [(each.name, mistake.name) for each in OPERATIONS.values() for mistake in each.roundings]


@pytest.mark.parametrize(("operation", "mistake"), _kinds())
def test_every_known_one_is_named(operation, mistake, large_batches, long_pack):
    """Made everywhere in a pass that rounds each of its results to bfloat16."""
    # Up to place 32 an angle in bfloat16 is as good as any.
    able = [long_pack] if operation == "rotate" else large_batches
    pack = next(p for p in able if operation in {node.operation for node in record(p.config).nodes})
    known = OPERATIONS[operation]
    wrong = next(each for each in known.roundings if each.name == mistake)
    round, given = partial(rounded, precision="bfloat16"), given_names(pack.config)
    graph = Dataflow(record(pack.config).nodes, given.__contains__, pack.tensors.__getitem__)
    places = frozenset(id(node) for node in graph.nodes if node.operation == operation)
    form = [*SIXTEEN_BITS].index("bfloat16")
    replay = RoundedReplay(graph, round, Change(wrong, form, places))
    dump = {name: np.asarray(replay.make(name)) for name in pass_origins(pack.config)[1]}
    assert replay.made
    told = _told(compare_dump(dump, pack, precision="bfloat16"))
    assert told[:1] == [mistake]
