"""A real model: SmolLM2-135M-Instruct from its GGUF file, beside what `transformers` makes of the same file."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
pytest.importorskip("gguf", reason="needs gguf (pip install -e '.[dev]')")

import numpy_llm  # noqa: E402
import torch_llm  # noqa: E402
from contract.weights import Weights  # noqa: E402
from data.chat import chat_tokens  # noqa: E402
from harness.exchange.families import FAMILIES  # noqa: E402
from harness.exchange.gguf import import_gguf  # noqa: E402
from harness.training.backend import open_backend  # noqa: E402
from parity.cases import Inputs  # noqa: E402
from parity.families import lifted  # noqa: E402
from parity.passes import reference_pass, twin_pass  # noqa: E402
from tests.shared_files import SMOLLM2, needs_smollm2  # noqa: E402

pytestmark = [needs_smollm2, pytest.mark.slow]

QUESTIONS = """What is the capital of France?
Write a haiku about the sea.
Explain photosynthesis to a child.
List three uses of a paperclip.
1 + 1 = ? And 12 times 12?
Translate 'good morning' into Spanish.
Why is the sky blue?
Give me a Python function that reverses a string.
Who wrote Hamlet?
What should I cook with rice and eggs?
Tell me a short story about a fox.
Name five planets.
What does 'ephemeral' mean?
How do I tie a tie?
Summarise: The cat sat on the mat. It was happy.
¿Cómo estás?
日本語を話せますか？
Is 17 a prime number?  Answer yes or no.
Say nothing but the word 'ok' 🙂.
for i in range(3):    print(i)  # what does this print?""".splitlines()
SENTENCE = "A gradient that is off by a factor of two still learns, only worse."
TIE = 1e-4  # logits closer than this may be ordered by rounding


@pytest.fixture(scope="module")
def witness():
    where = {"pretrained_model_name_or_path": SMOLLM2.parent, "gguf_file": SMOLLM2.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(**where)


@pytest.fixture(scope="module")
def imported():
    return import_gguf(SMOLLM2)


def error(found, wanted):
    """Relative to the largest magnitude."""
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.fixture(scope="module")
def sentence(witness, imported):
    """A sentence's tokens, and by dtype its logits and every parameter's gradient of its loss by `transformers`."""
    model, tokenizer = witness
    tokens = imported.tokenizer.encode(SENTENCE)
    assert list(tokens) == tokenizer(SENTENCE)["input_ids"]
    ids = torch.from_numpy(tokens)[None]

    def run(model):
        logits = model(ids[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).backward()
        gradients = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
        return logits.detach().numpy(), gradients

    with lifted():
        wide = type(model)(model.config).double()
        wide.load_state_dict(model.state_dict())
        theirs = {"float64": run(wide)}
    return tokens, theirs | {"float32": run(model)}


PASSES = {"NumPy": partial(reference_pass, numpy_llm), "PyTorch": partial(twin_pass, torch_llm, traced=False)}


@pytest.mark.parametrize(
    ("twin", "dtype", "their_dtype", "limit"),
    [
        ("NumPy", "float32", "float64", 1e-4),
        ("PyTorch", "float32", "float32", 1e-4),
        ("NumPy", "float64", "float64", 1e-9),  # they read norm_eps as 9.99999975e-6, the float32 in the file
    ],
)
def test_logits_and_gradients(sentence, imported, twin, dtype, their_dtype, limit):
    """The float32 of NumPy beside their float64: on an AMD EPYC their own float32 is 4e-4 away from it, ours 3e-5."""
    tokens, theirs = sentence
    weights = Weights.zeros(imported.config, dtype)
    weights.flat[...] = imported.weights.flat
    record = PASSES[twin](imported.config, Inputs(weights, tokens[None, :-1], tokens[None, 1:], None))
    logits, gradients = theirs[their_dtype]
    assert error(record.activations["logits"], theirs[dtype][0]) <= limit
    assert error(record.activations["logits"], logits) <= limit
    ours, family = record.weight_gradients, FAMILIES["llama"]
    places = family.published_places(imported.config)
    assert ours.keys() == places.keys()
    for name, place in places.items():
        wanted = np.concatenate([gradients[family.prefix + each] for each in place.names])
        assert error(ours[name], wanted) <= limit, name


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_replies(witness, imported, name):
    """64 greedy tokens of 20 replies, or up to the end token: each is the likeliest for `transformers` too."""
    model, tokenizer = witness
    backend = open_backend(name, imported.config, imported.weights, threads=1)
    differing = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompt = list(chat_tokens(imported.tokenizer, messages))
        assert prompt == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        settings = {"temperature": 0, "stop": imported.tokenizer.ends}
        reply = [token for _, token in backend.generate_samples(prompt, 64, 1, **settings)]
        assert reply
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + reply[:-1]])).logits[0, len(prompt) - 1 :]
        behind = logits.max(dim=-1).values - logits[range(len(reply)), reply]
        differing += [question] if behind.max() > TIE else []
    assert len(QUESTIONS) == 20
    assert not differing
