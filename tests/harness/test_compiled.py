"""Compiled training steps: one graph without a break, the numbers of an uncompiled step, and what is refused."""

import shutil

import numpy as np
import pytest

from contract.errors import ConfigError, UserError
from contract.presets import preset
from contract.targets import NO_TARGET
from harness.training.backend import open_backend
from harness.training.checkpoint import load_checkpoint
from harness.training.runs import resume_run

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")

# These need PyTorch, so they come after the skip.
import torch_llm.losses  # noqa: E402
import torch_llm.model  # noqa: E402
from harness.training import compiled  # noqa: E402

SMALL = {"vocab_size": 50, "n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16}
MODELS = {
    "modern": preset("modern", **SMALL),
    "nano": preset("nano", **SMALL),
    "caps and windows": preset(
        "modern", **SMALL, score_cap=5.0, logit_cap=7.0, window=4, layer_pattern=("full", "sliding")
    ),
}
ROWS = np.random.default_rng(0).integers(50, size=(4, 17))
TOKENS, TARGETS = ROWS[:, :-1], np.where(ROWS[:, 1:] == 7, NO_TARGET, ROWS[:, 1:])


@pytest.fixture
def graphs(monkeypatch):
    """Compile into graphs of PyTorch's own kernels, which needs no C++ compiler. returns: the graphs made"""
    from torch._dynamo.backends.debugging import aot_eager

    made = []

    def keep(graph, inputs):
        made.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "COMPILER", keep)
    yield made
    torch._dynamo.reset()


def steps(config, count=2, **settings):
    """The losses and gradients' norms of some steps, and the weights after them."""
    backend = open_backend("torch", config, threads=1, **settings)
    numbers = []
    for step in range(count):
        loss = backend.loss_and_gradients(TOKENS, TARGETS, step=step, accumulate=2)
        numbers += [loss, backend.clip(1.0)]
        backend.update(1e-2)
    return numbers, backend.weights()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float32") for name in MODELS),
        ("modern", "bfloat16"),
        *(
            pytest.param(name, "bfloat16", marks=pytest.mark.endurance)
            for name in ("nano", "caps and windows")
        ),
    ],
)
def test_one_graph_with_the_same_numbers(name, dtype, graphs):
    """`fullgraph` refuses a break; micro-batches and steps share the one graph, in which no table is computed."""
    config = MODELS[name]
    wanted, weights = steps(config, dtype=dtype)
    assert not graphs
    found, theirs = steps(config, dtype=dtype, compile=True)
    [_, graph] = graphs  # the first tries whether anything can be compiled
    limit = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(found, wanted, rtol=limit)
    for name, value in weights.items():
        np.testing.assert_allclose(theirs[name], value, atol=limit, err_msg=name)
    names = {node.name.rpartition("_")[0] or node.name for node in graph.graph.nodes}
    assert not names & {"cos", "sin", "arange", "item"}, names


def test_a_loss_in_blocks_is_one_graph(graphs, monkeypatch):
    """Logits that are not held at once are computed in the same graph."""
    for module in (torch_llm.losses, torch_llm.model):
        monkeypatch.setattr(module, "MAX_LOGITS", 600)
    wanted, _ = steps(MODELS["modern"], count=1)
    found, _ = steps(MODELS["modern"], count=1, compile=True)
    assert len(graphs) == 2
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_ids_are_checked_before_they_reach_the_device(graphs):
    backend = open_backend("torch", MODELS["nano"], threads=1, compile=True)
    wrong = np.where(TOKENS[1, 3] == TOKENS, 50, TOKENS)
    with pytest.raises(ConfigError, match="but the vocabulary has the ids 0 to 49"):
        backend.loss_and_gradients(wrong, TARGETS, step=0, accumulate=1)


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"--compile does not go with dropout 0\.1, .* omit --compile"):
        open_backend("torch", preset("nano", **SMALL, dropout=0.1), compile=True)
    with pytest.raises(ConfigError, match=r"--compile is of PyTorch, .* choose --backend torch or omit it"):
        open_backend("numpy", MODELS["nano"], compile=True)

    def compile(*arguments, **options):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(UserError) as error:
        open_backend("torch", MODELS["nano"], compile=True)
    assert str(error.value) == (
        "torch.compile does not work here (InvalidCxxCompiler: No working C++ compiler found); it needs a C++ compiler "
        "(or Triton on a GPU): install one, or omit --compile"
    )


def test_a_run_keeps_it(start, graphs):
    """A resumed run compiles again, unless told otherwise or on NumPy, which then goes on."""
    trainer = start(backend="torch", compile=True, overrides={"dropout": 0.0})
    trainer.interrupted = lambda: trainer.step == 5
    trainer.train()
    assert load_checkpoint(trainer.run.latest).training["compile"] is True
    for given, wanted in (({}, True), ({"compile": False}, False), ({"backend": "numpy"}, False)):
        again = resume_run(trainer.run.path, **given)
        assert again.backend.compile is wanted
        again.run.unlock()
    assert again.train().finished


@pytest.mark.endurance  # parity/test_summary.py compiles so, too
@pytest.mark.filterwarnings("ignore")  # what PyTorch's compiler says about PyTorch
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (apt-get install g++)")
def test_compiled_by_inductor():
    """The compiler of a user's run makes the same numbers up to rounding."""
    config = preset("modern", **SMALL | {"n_layer": 1})
    wanted, _ = steps(config)
    found, _ = steps(config, compile=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
