"""The twins: the same names, weights, draws and numbers in both, and neither knows the other."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.numbers import relative_error
from contract.randomness import DropoutKey
from contract.targets import NO_TARGET
from contract.trace import NO_TRACE, Trace
from contract.weights import Weights, initial_weights, parameter_count, weight_table

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")

# These need PyTorch, so they come after the skip.
import numpy_llm  # noqa: E402
import torch_llm  # noqa: E402
from harness.training.backend import open_backend  # noqa: E402
from numpy_llm.attend import causal_mask  # noqa: E402
from torch_llm.attend import causal_mask as torch_causal_mask  # noqa: E402
from torch_llm.generate import KeyValueCache  # noqa: E402

ROOT = Path(__file__).parents[2]
FILES = (
    "layers",
    "norms",
    "positions",
    "attend",
    "attend_in_blocks",
    "projection",
    "attention",
    "feed_forward",
    "block",
    "losses",
    "model",
    "adam",
    "generate",
)

# What PyTorch does unseen: it adds up gradients, and shares work out to threads.
NUMPY_FILES = ("gradients", "threads")
# NumPy has no bfloat16.
TORCH_FILES = ("precision",)
# What only a hand-written backward pass over a flat buffer needs.
NUMPY_ONLY = {
    "BLOCKS_FROM", "backward", "backward_layers", "sum_rows", "update_piece",
    "EmbeddingGradient", "embedding_weight_gradient", "LinearGradient", "linear_weight_gradient",
}  # fmt: skip
# What a function of NumPy is told with every call and a module of PyTorch holds.
HELD_BY_MODULE = {"weights", "name", "config", "layer"}
# The weights that a call of NumPy gets say it.
WIDTH = "width"
# NumPy knows one device.
TORCH_ONLY = {"device"}
# Of a pair: where to write.
BUFFERS = {"out"}
# PyTorch's fused attention has no soft cap.
NOT_FUSED = {"cap"}

SMALL = {"vocab_size": 11, "context_length": 7, "n_layer": 2, "n_head": 3, "d_model": 12, "d_ff": 20}
CONFIGS = {
    "relu, sinusoidal, tied": ModelConfig(**SMALL, activation="relu", position="sinusoidal"),
    "gelu, learned, untied, no bias": ModelConfig(
        **SMALL, activation="gelu_tanh", position="learned", bias=False, tie_embeddings=False
    ),
    "gelu, learned, dropout": ModelConfig(**SMALL, activation="gelu_tanh", position="learned", dropout=0.3),
    "relu, learned, low-rank": ModelConfig(**SMALL, activation="relu", position="learned", lora_rank=2),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


# Names


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def public_names(package: str, file: str) -> list[str]:
    """The names that a file itself defines at its top, in order."""
    names = []
    for node in ast.parse((ROOT / package / f"{file}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets]
    return [
        name
        for name in names
        if not name.startswith("_") and name not in NUMPY_ONLY
        if not (name.endswith("Cache") and name != "KeyValueCache")  # of a pair
    ]


def pairs(file: str) -> list[tuple]:
    """The public functions and classes of NumPy's file, a forward pass for its pair, and their twins."""
    numpy_module, torch_module = (
        importlib.import_module(f"{twin}_llm.{file}") for twin in ("numpy", "torch")
    )
    reference = [name for name in public_names("numpy_llm", file) if not name.endswith("_backward")]
    found = [
        (getattr(numpy_module, ours), getattr(torch_module, theirs))
        for ours, theirs in zip(reference, public_names("torch_llm", file), strict=True)
    ]
    return [pair for pair in found if callable(pair[0])]


def parameters(function, without=frozenset()) -> list[tuple]:
    """What a call can say: name, kind and default of each parameter."""
    return [
        (each.name, each.kind, each.default)
        for each in inspect.signature(function).parameters.values()
        if each.name not in without | {"self"}
    ]


def methods(cls) -> dict:
    own = {name: value for name, value in vars(cls).items() if inspect.isfunction(value)}
    return {
        name: method
        for name, method in own.items()
        if name == "__init__" or (not name.startswith("_") and name not in NUMPY_ONLY)
    }


def test_same_files():
    """Both packages have the same files."""
    for package in ("numpy_llm", "torch_llm"):
        found = {path.stem for path in (ROOT / package).glob("*.py")}
        own = NUMPY_FILES if package == "numpy_llm" else TORCH_FILES
        assert found == {"__init__", *FILES, *own}, package


@pytest.mark.parametrize("file", FILES)
def test_same_public_names_in_the_same_order(file):
    """`foo_forward` and `foo_backward` in NumPy are `foo` or `Foo` in PyTorch; all else has the same name."""
    reference = [
        name.removesuffix("_forward")
        for name in public_names("numpy_llm", file)
        if not name.endswith("_backward")
    ]
    twin = public_names("torch_llm", file)
    assert [snake_case(name) for name in twin] == [snake_case(name) for name in reference]


@pytest.mark.parametrize("file", FILES)
def test_same_signatures(file):
    """Twins are called alike; a gradient lives on its weight in PyTorch, so `gradients` become `weights`.

    `keep` says in NumPy what `torch.no_grad` says there.
    """
    for reference, twin in pairs(file):
        if inspect.isclass(reference):
            ours, theirs = methods(reference), methods(twin)
            assert list(ours) == list(theirs), twin
            for name in ours:
                assert parameters(ours[name], {"gradients", "keep"}) == parameters(
                    theirs[name], TORCH_ONLY
                ), (
                    twin,
                    name,
                )
        elif inspect.isclass(twin):
            assert {name for name, _, _ in parameters(twin)} <= HELD_BY_MODULE | {WIDTH}, twin
            assert parameters(reference, HELD_BY_MODULE) == parameters(twin.forward), twin
        else:
            ours = [
                ("weights" if row[0] == "gradients" else row[0], *row[1:])
                for row in parameters(
                    reference, BUFFERS | (NOT_FUSED if file == "attend_in_blocks" else set())
                )
            ]
            assert ours == parameters(twin, TORCH_ONLY), twin


@pytest.mark.parametrize("file", FILES)
def test_docstrings_name_the_twin(file):
    """Every public function and class of PyTorch names its twin, and every twin that is named exists."""
    for reference, twin in pairs(file):
        named = re.search(r"Twin: (numpy_llm\.\w+)\.(\w+)(?: and (\w+))?", inspect.getdoc(twin))
        assert named, f"{twin} names no twin"
        module, first, second = named.groups()
        assert getattr(importlib.import_module(module), first) is reference
        assert second is None or hasattr(importlib.import_module(module), second)
        for module, name in re.findall(r"Twin:\s+torch_llm\.(\w+)\.(\w+)", inspect.getdoc(reference)):
            assert snake_case(name) in map(snake_case, public_names("torch_llm", module)), reference


# Imports


@pytest.mark.parametrize(
    ("imported", "forbidden"),
    [
        (("contract", "numpy_llm"), None),
        (("torch_llm",), {"numpy_llm", "data", "harness"}),
        (("cli", "harness.training.runs", "harness.training.backend"), {"torch", "torch_llm"}),
    ],
    ids=["numpy_llm", "torch_llm", "harness"],
)
def test_imports_run_downwards(imported, forbidden):
    """The reference needs NumPy alone, the twins do not know each other, and nobody waits for PyTorch unasked.

    forbidden: top-level modules that must not be loaded; None allows NumPy and the standard library alone
    """
    program = (
        "import importlib, pkgutil, sys, numpy.random\n"  # NumPy's compiled parts register modules of their own
        "before = set(sys.modules)\n"
        f"for name in {imported}:\n"
        "    module = importlib.import_module(name)\n"
        "    if name in ('contract', 'numpy_llm', 'torch_llm'):\n"
        "        for each in pkgutil.iter_modules(module.__path__):\n"
        "            importlib.import_module(f'{name}.{each.name}')\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert loaded >= {name.partition(".")[0] for name in imported}
    if forbidden is None:
        assert loaded - sys.stdlib_module_names <= set(imported)
    else:
        assert not loaded & forbidden


# Weights


@each_config
def test_state_dict_is_the_weight_table(config):
    """Keys, shapes and order of the state are those of the table, and every parameter is in it."""
    model = torch_llm.GPT(config)
    found = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
    assert found == [(name, spec.shape) for name, spec in weight_table(config).items()]
    assert [name for name, _ in model.named_parameters()] == list(weight_table(config))
    assert sum(weight.numel() for weight in model.parameters()) == parameter_count(config)


@each_config
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_weights_are_bit_identical(config, dtype):
    """From one seed both twins start with the very same numbers, and another seed gives others."""
    reference, twin = numpy_llm.GPT(config, seed=5, dtype=dtype), torch_llm.GPT(config, seed=5, dtype=dtype)
    for name, value in twin.state_dict().items():
        assert value.numpy().dtype == dtype
        assert np.array_equal(value.numpy(), reference.weights[name]), name
    other = torch_llm.GPT(config, seed=6, dtype=dtype).state_dict()["token_embedding.weight"]
    assert not np.array_equal(other.numpy(), reference.weights["token_embedding.weight"])


def test_given_weights_are_copied():
    """A model trains its own copy: the arrays that it was given stay as they are."""
    config = CONFIGS["relu, sinusoidal, tied"]
    weights = initial_weights(config, 0, "float64")
    model = torch_llm.GPT(config, weights)
    weights.flat.fill(7)
    assert model.dtype == torch.float64
    assert not any((value == 7).any() for value in model.state_dict().values())


# Numbers


def example(config: ModelConfig, B=3, T=7):
    """Weights away from the zeros and ones of the start, and a batch with repeated tokens."""
    rng = np.random.default_rng(1)
    weights = initial_weights(config, 1, "float64")
    weights.flat += 0.2 * rng.standard_normal(weights.flat.size)
    return weights, rng.integers(0, config.vocab_size, (B, T)), rng.integers(0, config.vocab_size, (B, T))


def assert_close(found, wanted, name, limit=1e-12):
    found, wanted = (each.detach().numpy() if torch.is_tensor(each) else each for each in (found, wanted))
    assert found.shape == wanted.shape, name
    error = relative_error(found, wanted)
    assert error <= limit, f"{name}: error {error}, limit {limit}"


def run_torch(config, weights, tokens, targets, *, dropout=None, trace=NO_TRACE):
    model = torch_llm.GPT(config, weights)
    logits, loss = model(torch.tensor(tokens), torch.tensor(targets), dropout=dropout, trace=trace)
    loss.backward()
    return logits, {name: weight.grad for name, weight in model.named_parameters()}


@each_config
@pytest.mark.parametrize(("B", "T"), [(3, 7), (2, 4), (1, 1)])
def test_every_tensor_is_the_same(config, B, T):
    """Activations, their gradients and the weights' gradients agree in float64, under the same names."""
    weights, tokens, targets = example(config, B, T)
    key = DropoutKey(seed=3, step=4, first_sequence=5)
    reference, twin = Trace(), Trace()
    model = numpy_llm.GPT(config, weights)
    _, _, cache = model.forward(tokens, targets, dropout=key, trace=reference)
    gradients = model.backward(cache, trace=reference)
    _, twin_gradients = run_torch(config, weights, tokens, targets, dropout=key, trace=twin)

    assert list(twin.activations) == list(reference.activations)
    assert twin.gradients.keys() == reference.gradients.keys() == reference.activations.keys()
    for name in reference.activations:
        assert_close(twin.activations[name], reference.activations[name], name)
        assert_close(twin.gradients[name], reference.gradients[name], f"gradient of {name}")
    for name in gradients:
        assert_close(twin_gradients[name], gradients[name], f"gradient of {name}")


@each_config
def test_a_trace_changes_nothing(config):
    """The one kernel of the untraced pass computes what the traced pass writes out."""
    weights, tokens, targets = example(config)
    logits, gradients = run_torch(config, weights, tokens, targets)
    traced_logits, traced_gradients = run_torch(config, weights, tokens, targets, trace=Trace())
    assert_close(logits, traced_logits, "logits")
    for name in gradients:
        assert_close(gradients[name], traced_gradients[name], name)


def test_fused_attention_is_used(monkeypatch):
    """Without trace and dropout each layer is one fused call; with either, none."""
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def count(*arguments, **settings):
        calls.append(settings)
        return fused(*arguments, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    weights, tokens, targets = example(CONFIGS["gelu, learned, dropout"])
    for settings, wanted in (({}, 2), ({"dropout": DropoutKey(0, 0)}, 0), ({"trace": Trace()}, 0)):
        calls.clear()
        run_torch(CONFIGS["gelu, learned, dropout"], weights, tokens, targets, **settings)
        assert len(calls) == wanted, settings
    no_rate = CONFIGS["relu, sinusoidal, tied"]
    calls.clear()
    run_torch(no_rate, initial_weights(no_rate, 0, "float64"), tokens, targets, dropout=DropoutKey(0, 0))
    assert len(calls) == 2


@each_config
def test_a_cache_changes_nothing(config):
    """Tokens seen in pieces of every size, with a key/value cache, give the stream of the whole."""
    weights, tokens, _ = example(config, B=1)
    model, tokens = torch_llm.GPT(config, weights), torch.tensor(tokens)
    with torch.no_grad():
        whole = model.stream_forward(tokens)
        kv_cache = KeyValueCache(config)
        pieces = []
        for piece in tokens.split([2, 1, 3, 1], dim=1):
            pieces.append(model.stream_forward(piece, kv_cache=kv_cache))
            kv_cache.length += piece.shape[1]
    assert_close(torch.cat(pieces, dim=1), whole, "stream")


def test_causal_mask_of_both():
    """The mask hides the same places, also where earlier tokens stand before the queries."""
    for T, S in ((1, 1), (4, 4), (1, 5), (3, 5)):
        reference = causal_mask(T, S)
        assert np.array_equal(torch_causal_mask(T, S).numpy(), reference)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 3}, {"seed": 4, "top_k": 5, "top_p": 0.9}])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_the_same(sampling, use_cache):
    """Token for token, beyond the context's end; the prompt stays and gradients go on being recorded."""
    config = CONFIGS["gelu, learned, untied, no bias"]
    weights, prompt = example(config)[0], [1, 2]
    reference = numpy_llm.GPT(config, weights).generate(prompt, 20, **sampling)
    twin = torch_llm.GPT(config, weights)
    assert twin.generate(prompt, 20, use_cache=use_cache, **sampling) == reference
    assert prompt == [1, 2]
    tokens = torch_llm.generate(twin, prompt, 2)
    next(tokens)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_mistakes_are_named():
    """The twin refuses what the reference refuses, in the same words."""
    config = CONFIGS["relu, sinusoidal, tied"]
    reference, twin = numpy_llm.GPT(config), torch_llm.GPT(config)
    for tokens in (np.zeros((1, 8), int), np.zeros((1, 0), int), np.array([[11]]), np.array([[-1]])):
        with pytest.raises(ConfigError) as wanted:
            reference.forward(tokens)
        with pytest.raises(ConfigError, match=re.escape(str(wanted.value))):
            twin(torch.tensor(tokens))
    with pytest.raises(ConfigError, match="prompt has no tokens"):
        twin.generate([], 3)


# Optimiser


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_adam_is_the_same(kind):
    """40 steps with decay and clipping: norms, weights and moments agree."""
    config = CONFIGS["relu, sinusoidal, tied"]
    rng, weights = np.random.default_rng(0), example(config)[0]
    model = torch_llm.GPT(config, weights)
    parameters = dict(model.named_parameters())
    settings = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.3}
    reference = getattr(numpy_llm, kind)(weights, **settings)
    twin = getattr(torch_llm, kind)(parameters, **settings)
    for step in range(40):
        gradients = Weights(weight_table(config), rng.standard_normal(weights.flat.size) * (1 + step % 3))
        for name, weight in parameters.items():
            weight.grad = torch.tensor(gradients[name])
        max_norm = 1e3 if step % 4 == 0 else 20.0
        norm = numpy_llm.clip_gradients(gradients, max_norm)
        assert torch_llm.clip_gradients(parameters, max_norm) == pytest.approx(norm, rel=1e-13)
        for name in gradients:
            assert_close(parameters[name].grad, gradients[name], f"clipped gradient of {name}", 1e-13)
        reference.update(gradients, 0.01 / (1 + step))
        twin.update(0.01 / (1 + step))
    assert twin.step == reference.step == 40
    m, v = (Weights(weight_table(config), flat) for flat in (reference.m, reference.v))
    for name in weights:
        assert_close(parameters[name], weights[name], name)
        assert_close(twin.m[name], m[name], f"m of {name}")
        assert_close(twin.v[name], v[name], f"v of {name}")


# Backends


def train(backend, steps, accumulate=1):
    """returns: the losses of `steps`, each on a batch of its own; in every other one half of the targets count"""
    losses = []
    for step in steps:
        rng = np.random.default_rng(step)
        tokens, targets = (rng.integers(0, backend.config.vocab_size, (5, 7)) for _ in range(2))
        if step % 2:
            targets[0] = targets[1:, ::2] = NO_TARGET
        losses.append(backend.loss_and_gradients(tokens, targets, step=step, accumulate=accumulate))
        backend.clip(1.0 if step % 2 else None)
        backend.update(1e-3)
    return losses


@each_config
@pytest.mark.parametrize(("first", "second"), [("numpy", "torch"), ("torch", "numpy")])
def test_one_backend_goes_on_where_the_other_stopped(config, first, second):
    """A run handed over at step 4, moments included, has the losses of a run that stayed, batch cut or whole."""
    settings = {"seed": 2, "dtype": "float64", "threads": 2, "weight_decay": 0.1}
    stayed = open_backend(first, config, **settings)
    wanted = train(stayed, range(8))
    start = open_backend(first, config, **settings)
    losses = train(start, range(4), accumulate=5)
    goes_on = open_backend(second, config, start.weights(), **settings)
    goes_on.load_optimizer_state(start.optimizer_state(), 4)
    losses += train(goes_on, range(4, 8), accumulate=2)
    assert losses == pytest.approx(wanted, rel=1e-11)

    tokens = np.arange(14).reshape(2, 7) % 11
    assert goes_on.evaluate(tokens, tokens) == pytest.approx(stayed.evaluate(tokens, tokens), rel=1e-10)
    assert list(goes_on.generate([1], 5, temperature=0)) == list(stayed.generate([1], 5, temperature=0))
    assert goes_on.optimizer_state().keys() == stayed.optimizer_state().keys()


@pytest.mark.parametrize("device", ["tpu", "cuda", "mps"])
def test_an_absent_device_is_named(device):
    """A device that is not there is one line that says which are."""
    if (device == "cuda" and torch.cuda.is_available()) or (device == "mps" and torch.mps.is_available()):
        pytest.skip(f"needs a machine without {device}")
    with pytest.raises(ConfigError, match=rf"no device '{device}' .* choose .*cpu") as error:
        open_backend("torch", CONFIGS["relu, sinusoidal, tied"], device=device, threads=1)
    assert "\n" not in str(error.value)
