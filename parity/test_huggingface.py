"""The third witness: `transformers`' GPT-2, which nobody here wrote, before import and after export.

Its models hold random weights and pass through the files that users have; nothing is downloaded.
"""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")

import numpy_llm  # noqa: E402
import torch_llm  # noqa: E402
from contract.errors import UserError  # noqa: E402
from data.batches import evaluation_batches  # noqa: E402
from data.tokenizers import encoding_of, identity  # noqa: E402
from data.vocabulary import vocabulary_files  # noqa: E402
from harness.exchange.export import export  # noqa: E402
from harness.exchange.families.gpt2 import prefix, published_places  # noqa: E402
from harness.exchange.huggingface_import import import_folder  # noqa: E402
from harness.training.backend import open_backend  # noqa: E402
from harness.training.checkpoint import Checkpoint  # noqa: E402
from harness.training.evaluation import evaluate  # noqa: E402
from harness.training.lora import merged  # noqa: E402
from parity.cases import CASES, FAMILIES, Inputs  # noqa: E402
from parity.compare import Comparison, compare  # noqa: E402
from parity.families import lifted  # noqa: E402
from parity.passes import reference_pass, twin_pass  # noqa: E402

ROOT = Path(__file__).parents[1]
SEED = 5


class Shape(NamedTuple):
    """Fields of GPT2Config, over those of a small one, and how many tokens a sequence of the batch has."""

    title: str
    fields: dict
    T: int = 7


SMALL = {"vocab_size": 11, "n_positions": 80, "n_embd": 8, "n_layer": 2, "n_head": 2}
SHAPES = [
    Shape("small", {}),
    Shape("relu", {"activation_function": "relu"}),
    Shape("untied, one head", {"tie_word_embeddings": False, "n_head": 1}),
    Shape("odd widths", {"vocab_size": 13, "n_embd": 15, "n_head": 3, "n_inner": 7}),
    Shape("six layers, heads of size 1", {"n_layer": 6, "n_head": 8}),
    Shape("large epsilon", {"layer_norm_epsilon": 0.5}),
    Shape("the other name of the activation", {"activation_function": "gelu_pytorch_tanh"}),
    Shape("no dropout, wide", {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "n_inner": 64}),
    Shape("T of 1", {}, T=1),
]
GPT2 = Shape(
    "GPT-2 124M", {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.title)
each_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


def published_model(shape: Shape, dtype: str):
    """A model of `transformers`, its weights drawn so that every term of every gradient matters."""
    config = transformers.GPT2Config(**SMALL | {"bos_token_id": None, "eos_token_id": None} | shape.fields)
    model = transformers.GPT2LMHeadModel(config).to(getattr(torch, dtype)).eval()
    random = np.random.default_rng(SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            norm = ".ln_" in name and name.endswith("weight")
            deviation = 0.7 if "wte" in name or "wpe" in name else weight.shape[0] ** -0.5
            draws = random.normal(1.0 if norm else 0.0, 0.3 if weight.ndim == 1 else deviation, weight.shape)
            weight.copy_(torch.from_numpy(draws))
    return model


def symbols(count):
    """A tokenizer of so many single bytes."""
    return encoding_of("bytes", [bytes([97 + n]) for n in range(count)])


def publish(model, folder, tokenizer=None):
    """Save a model as `transformers` does, with vocabulary files beside it."""
    model.save_pretrained(folder)
    tokenizer = tokenizer or symbols(min(model.config.vocab_size, 26))
    for name, text in vocabulary_files(tokenizer, model.config.n_positions).items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return folder


def batch(shape, vocab_size, B=3):
    tokens = np.random.default_rng(SEED).integers(vocab_size, size=(B, shape.T + 1))
    return tokens[:, :-1], tokens[:, 1:]


def witness_pass(model, places, tokens, targets):
    """Logits and loss, and the gradients under our names, as `transformers` and autograd compute them."""
    model.zero_grad()
    logits = model(torch.from_numpy(tokens)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {}
    for ours, (names, transposed) in places.items():
        (theirs,) = names
        gradient = parameters[theirs if theirs in parameters else prefix + theirs].grad.numpy()
        gradients[ours] = gradient.T if transposed else gradient
    return {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}, gradients


def assert_same_function(model, checkpoint, shape, dtype):
    """Logits, loss and every gradient of both twins are within the suite's limits of the witness's."""
    config, weights = checkpoint.config, checkpoint.weights
    tokens, targets = batch(shape, config.vocab_size)
    outputs, gradients = witness_pass(model, published_places(config), tokens, targets)
    inputs = Inputs(weights, tokens, targets, None)
    passes = {
        "NumPy": reference_pass(numpy_llm, config, inputs),
        "PyTorch": twin_pass(torch_llm, config, inputs, traced=False),
    }
    for name, record in passes.items():
        found = {key: record.activations[key] for key in ("logits", "loss")}
        in_order = {key: gradients[key] for key in record.weight_gradients}
        assert in_order.keys() == gradients.keys()
        rows = compare("published model", found, outputs, dtype)
        rows += compare("published model", record.weight_gradients, in_order, dtype)
        Comparison(f"{shape.title}, {name} against transformers", dtype, SEED, rows).require()


@each_shape
@each_dtype
def test_import_computes_what_transformers_does(shape, dtype, tmp_path):
    """Logits, loss and all parameter gradients agree in both backends, whatever the shape."""
    model = published_model(shape, dtype)
    checkpoint = import_folder(publish(model, tmp_path))
    assert checkpoint.training["dtype"] == dtype
    assert_same_function(model, checkpoint, shape, dtype)


def logits_of(model, tokens):
    with torch.inference_mode():
        return model(torch.from_numpy(tokens)).logits.numpy()


def load_published(folder, **settings):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **settings).eval()


@each_shape
def test_import_and_export_change_no_logit(shape, tmp_path):
    """From transformers through import and export and back: the same bits, in logits and in weights."""
    model = published_model(shape, "float32")
    imported = import_folder(publish(model, tmp_path / "in"))
    export(imported, "huggingface", tmp_path / "out")
    again = load_published(tmp_path / "out")
    tokens, _ = batch(shape, model.config.vocab_size)
    if model.config.activation_function == again.config.activation_function:  # its synonyms round otherwise
        np.testing.assert_array_equal(logits_of(again, tokens), logits_of(model, tokens))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), value.numpy(), err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
@each_dtype
def test_export_computes_what_the_twins_do(case, dtype, tmp_path):
    """GPT-2's files can express fixed positions and absent biases, others their families; no model is approximated."""
    inputs, tokenizer = case.inputs(dtype), symbols(case.config.vocab_size)
    checkpoint = Checkpoint(case.config, inputs.weights, tokenizer, training={"dtype": dtype})
    wide = case.config.n_head * case.config.head_size != case.config.d_model
    odd = wide or case.config.norm != "layer_norm" or case.config.feed_forward == "gated"
    if case.title not in FAMILIES and odd:
        with pytest.raises(UserError, match="choose --format npz or torch"):
            export(checkpoint, "huggingface", tmp_path / "out")
        return
    export(checkpoint, "huggingface", tmp_path / "out")
    with lifted() if dtype == "float64" else nullcontext():
        model = load_published(tmp_path / "out", attn_implementation="eager")
        theirs = logits_of(model, inputs.tokens)
    assert model.dtype == getattr(torch, dtype)
    logits, _, _ = numpy_llm.GPT(case.config, inputs.weights).forward(inputs.tokens)
    rows = compare("published model", {"logits": logits}, {"logits": theirs}, dtype)
    Comparison(f"{case.title}, exported", dtype, case.seed, rows).require()
    if model.config.model_type == "gpt2":
        rates = {model.config.embd_pdrop, model.config.attn_pdrop, model.config.resid_pdrop}
        assert rates == {case.config.dropout}

    back, wanted = import_folder(tmp_path / "out"), merged(checkpoint)
    assert back.config == wanted.config
    assert identity(back.tokenizer) == identity(tokenizer)
    assert back.weights.keys() == wanted.weights.keys()
    for name, value in wanted.weights.items():
        np.testing.assert_array_equal(back.weights[name], value, err_msg=name, strict=True)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@each_shape
def test_greedy_tokens(shape, backend, tmp_path):
    """64 greedy tokens are those of transformers' own `generate`."""
    model = published_model(shape, "float32")
    checkpoint = import_folder(publish(model, tmp_path))
    prompt = [3, 1, 4]
    opened = open_backend(backend, checkpoint.config, checkpoint.weights, threads=1)
    assert list(opened.generate(prompt, 64, temperature=0)) == greedy(model, prompt, 64)


def greedy(model, prompt, count):
    ids = torch.tensor([prompt])
    settings = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(ids, do_sample=False, max_new_tokens=count, **settings)
    return found[0, len(prompt) :].tolist()


def plain_loss(model, tokens, stride):
    """The sliding window as Hugging Face's guide to perplexity has it, in a loop over windows, one at a time.

    Unlike there, each window also predicts the token behind it, so that none is left out between windows.
    """
    T, done, total = model.config.n_positions, 0, 0.0
    for start in range(0, len(tokens) - 1, stride):
        stop = min(start + T, len(tokens) - 1)
        log_p = torch.from_numpy(logits_of(model, tokens[None, start:stop])[0]).log_softmax(-1).numpy()
        for place in range(done, stop):
            total -= float(log_p[place - start, tokens[place + 1]])
        done = stop
        if stop == len(tokens) - 1:
            break
    assert done == len(tokens) - 1
    return total / done


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("stride", [1, 5, 16, 31, 32])
@pytest.mark.parametrize("count", [20, 33, 150])
def test_perplexity_with_a_sliding_window(stride, backend, count, tmp_path):
    """`evaluate` gives the perplexity of a plain computation with transformers, to 1e-5."""
    model = published_model(Shape("", {"n_positions": 32}), "float32")
    checkpoint = import_folder(publish(model, tmp_path))
    tokens = np.random.default_rng(SEED).integers(11, size=count)
    opened = open_backend(backend, checkpoint.config, checkpoint.weights, threads=1)
    found = evaluate(opened, tokens, 3, stride=stride)
    assert found.tokens == count - 1
    expected = plain_loss(model, tokens, stride)
    assert found.perplexity == pytest.approx(np.exp(expected), rel=1e-5)
    # The windows matter: another stride is another number, or this test would prove nothing.
    if count == 150 and stride < 32:
        assert abs(plain_loss(model, tokens, 32) - expected) > 1e-4
        assert len(list(evaluation_batches(tokens, 32, 1, stride=stride))) > 150 // 32


# --- the true size ---


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """A model of GPT-2's own shape as published, and its folder."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(SEED)
    config = transformers.GPT2Config(**GPT2.fields)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokenizer = encoding_of("ranks", [bytes([n]) for n in range(256)])
    return model, publish(model, folder, tokenizer)


@pytest.mark.slow
def test_full_size(full_size, tmp_path):
    """At 124M: the same function in both backends, the same 8 greedy tokens, the same bits after export."""
    model, folder = full_size
    checkpoint = import_folder(folder)
    assert_same_function(model, checkpoint, GPT2, "float32")
    prompt = [464, 3290, 318]
    expected = greedy(model, prompt, 8)
    for backend in ("numpy", "torch"):
        opened = open_backend(backend, checkpoint.config, checkpoint.weights)
        assert list(opened.generate(prompt, 8, temperature=0)) == expected
    export(checkpoint, "huggingface", tmp_path / "out")
    again = load_published(tmp_path / "out")
    tokens, _ = batch(GPT2, 50257)
    np.testing.assert_array_equal(logits_of(again, tokens), logits_of(model, tokens))


MEASURE = """
import json, os, sys
from pathlib import Path
from harness.training.checkpoint import save_checkpoint
from harness.exchange.huggingface_import import import_folder
from harness.training.runs import open_model

def peak():  # not of getrusage, which a process inherits from the one that started it
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

what, source, run = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
before = peak()
if what == "import":
    save_checkpoint(run / "latest", import_folder(source))
else:
    open_model(run)
times = os.times()
seconds = times.user + times.system  # of the CPU, however busy it is
print(json.dumps({"bytes": peak() - before, "seconds": seconds, "torch": "torch" in sys.modules}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="needs Linux (its /proc tells the peak memory)"
)
def test_loading_is_quick_and_lean(full_size, tmp_path):
    """Import, and opening what it made, take seconds and at most 1.3 times the file's size; NumPy alone."""
    _, folder = full_size
    size = (folder / "model.safetensors").stat().st_size
    for what in ("import", "open"):
        arguments = [sys.executable, "-c", MEASURE, what, folder, tmp_path / "run"]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        print(f"{what}: {found['seconds']:.1f} s, {found['bytes'] / size:.2f} times {size:,} bytes")
        assert size <= found["bytes"] < 1.3 * size
        assert not found["torch"]
        assert found["seconds"] < 30
