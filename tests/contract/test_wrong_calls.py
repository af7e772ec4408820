"""Wrong calls of the Python API: each is one ConfigError in both twins, in the same words."""

from math import hypot, inf, nan

import numpy as np
import pytest

import numpy_llm
from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.randomness import DropoutKey
from contract.sampling import sample
from contract.weights import Weights, WeightSpec, initial_weights, parameter_count, weight_table
from data.batches import Windows, evaluation_batches, windows_per_epoch
from harness.training.backend import open_backend

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")

import torch_llm  # noqa: E402  (it needs PyTorch, so it comes after the skip)
from torch_llm.model import _check_batch  # noqa: E402

CONFIG = ModelConfig(
    vocab_size=7,
    context_length=4,
    n_layer=1,
    n_head=2,
    d_model=6,
    d_ff=5,
    activation="gelu_tanh",
    position="learned",
)
TOKENS = np.array([[1, 2, 3], [4, 5, 6]])


def changed(**fields) -> ModelConfig:
    return ModelConfig(**{**CONFIG.to_dict(), **fields})


def weights(config=CONFIG, *, without=None, **odd) -> Weights | dict:
    """Initial weights; with a name left out, or another value under a name, as a dict."""
    drawn = initial_weights(config, 0, "float32")
    return (
        {name: odd.get(name, drawn[name]) for name in drawn if name != without} if without or odd else drawn
    )


class Reference:
    """How each call is made in NumPy; a gradient is an argument."""

    package = numpy_llm

    @staticmethod
    def array(value):
        return value

    def optimizer(self, **settings):
        return numpy_llm.AdamW(weights(), **settings)

    def update(self, rate):
        self.optimizer().update(Weights.zeros(CONFIG, "float32"), rate)

    def clip(self, max_norm, gradients=None):
        gradients = gradients or weights()
        return numpy_llm.clip_gradients(gradients, max_norm), gradients


class Twin(Reference):
    """How it is made in PyTorch; a gradient lies on its weight."""

    package = torch_llm

    @staticmethod
    def array(value):
        return torch.tensor(value) if isinstance(value, np.ndarray) else value

    def optimizer(self, **settings):
        return torch_llm.AdamW(self._with_gradients(weights()), **settings)

    def update(self, rate):
        self.optimizer().update(rate)

    def clip(self, max_norm, gradients=None):
        parameters = self._with_gradients(gradients or weights())
        norm = torch_llm.clip_gradients(parameters, max_norm)
        return norm, {name: weight.grad.numpy() for name, weight in parameters.items()}

    @staticmethod
    def _with_gradients(gradients):
        parameters = {}
        for name, gradient in gradients.items():
            parameters[name] = torch.nn.Parameter(torch.zeros_like(torch.tensor(gradient)))
            parameters[name].grad = torch.tensor(gradient)
        return parameters


TWINS = (Reference(), Twin())


def forward(tokens, targets=None):
    return lambda twin: twin.package.GPT(CONFIG).forward(
        twin.array(tokens), None if targets is None else twin.array(targets)
    )


def generate(tokens, new=3, **sampling):
    return lambda twin: twin.package.generate(twin.package.GPT(CONFIG), tokens, new, **sampling)


def build(*arguments, **settings):
    return lambda twin: twin.package.GPT(CONFIG, *arguments, **settings)


def adamw(**settings):
    return lambda twin: twin.optimizer(**settings)


def update(rate):
    return lambda twin: twin.update(rate)


def clip(max_norm):
    return lambda twin: twin.clip(max_norm)


SHAPE = "tokens must be an array of integers, (B, T) with B at least 1 and T from 1 to the context length, 4, got "
TARGETS = "targets must be an array of integers of the tokens' shape, (2, 3), got "
SEED = "seed must be a whole number from 0 to 2^63 - 1, got "
BAD = weights()["final_norm.weight"].copy()
BAD[4] = nan

WRONG_CALLS = {
    "tokens, a list": (forward([[1, 2]]), SHAPE + "list"),
    "tokens, none": (forward(None), SHAPE + "NoneType"),
    "tokens, a number": (forward(1), SHAPE + "int"),
    "tokens, float": (forward(TOKENS.astype(np.float32)), SHAPE + "float32 (2, 3)"),
    "tokens, bool": (forward(TOKENS > 2), SHAPE + "bool (2, 3)"),
    "tokens, complex": (forward(TOKENS + 0j), SHAPE + "complex128 (2, 3)"),
    "tokens, 0-d": (forward(np.array(1)), SHAPE + "int64 ()"),
    "tokens, 1-d": (forward(TOKENS[0]), SHAPE + "int64 (3,)"),
    "tokens, 3-d": (forward(TOKENS[None]), SHAPE + "int64 (1, 2, 3)"),
    "tokens, no sequence": (forward(TOKENS[:0]), SHAPE + "int64 (0, 3)"),
    "tokens, no time": (forward(TOKENS[:, :0]), SHAPE + "int64 (2, 0)"),
    "tokens, too many": (forward(np.zeros((1, 5), int)), SHAPE + "int64 (1, 5)"),
    "tokens, V": (forward(TOKENS + 1), "tokens[1, 2] is 7, but the vocabulary has the ids 0 to 6"),
    "tokens, negative": (forward(TOKENS - 2), "tokens[0, 0] is -1, but the vocabulary has the ids 0 to 6"),
    "targets, V": (forward(TOKENS, TOKENS + 1), "targets[1, 2] is 7, but the vocabulary has the ids 0 to 6"),
    "targets, -1": (forward(TOKENS, TOKENS - 2), "targets[0, 0] is -1, but the vocabulary has"),
    "targets, -99": (forward(TOKENS, np.where(TOKENS > 5, -99, TOKENS)), "targets[1, 2] is -99, but the"),
    "targets, (T, B)": (forward(TOKENS, TOKENS.T), TARGETS + "int64 (3, 2)"),
    "targets, (B·T,)": (forward(TOKENS, TOKENS.ravel()), TARGETS + "int64 (6,)"),
    "targets, ()": (forward(TOKENS, np.array(1)), TARGETS + "int64 ()"),
    "targets, (1, T)": (forward(TOKENS, TOKENS[:1]), TARGETS + "int64 (1, 3)"),
    "targets, float": (forward(TOKENS, TOKENS * 1.0), TARGETS + "float64 (2, 3)"),
    "targets, a list": (forward(TOKENS, TOKENS.tolist()), TARGETS + "list"),
    "prompt, empty": (generate([]), "the prompt has no tokens"),
    "prompt, -1": (generate([3, -1]), "token 1 of the prompt must be a whole number from 0 to 6, got -1"),
    "prompt, V": (generate([7]), "token 0 of the prompt must be a whole number from 0 to 6, got 7"),
    "prompt, float": (generate([1.0]), "token 0 of the prompt must be a whole number from 0 to 6, got 1.0"),
    "prompt, bool": (generate([True]), "token 0 of the prompt must be a whole number from 0 to 6, got True"),
    "prompt, text": (generate("ab"), "token 0 of the prompt must be a whole number from 0 to 6, got 'a'"),
    "prompt, nested": (
        generate([[1, 2]]),
        "token 0 of the prompt must be a whole number from 0 to 6, got [1",
    ),
    "prompt, 2-d": (generate(TOKENS), "the prompt must be one sequence of token ids, got shape (2, 3)"),
    "prompt, a number": (generate(3), "the prompt must be a sequence of token ids, got 3"),
    "new tokens, -1": (generate([1], -1), "max_new_tokens must be a whole number from 0 to 2^63 - 1, got -1"),
    "new tokens, float": (
        generate([1], 2.0),
        "max_new_tokens must be a whole number from 0 to 2^63 - 1, got 2.0",
    ),
    "temperature, text": (
        generate([1], temperature="1"),
        "temperature must be 0 (greedy) or a positive number",
    ),
    "temperature, nan": (
        generate([1], temperature=nan),
        "temperature must be 0 (greedy) or a positive number",
    ),
    "top-k, float": (generate([1], top_k=1.5), "top-k must be a whole number of at least 1, got 1.5"),
    "top-k, 0": (generate([1], top_k=0), "top-k must be a whole number of at least 1, got 0"),
    "top-p, 0": (generate([1], top_p=0), "top-p must be above 0 and at most 1, got 0"),
    "top-p, text": (generate([1], top_p="all"), "top-p must be above 0 and at most 1, got 'all'"),
    "seed of draws": (generate([1], seed=2**64), SEED + str(2**64)),
    "seed of draws, greedy": (generate([1], seed=-1, temperature=0), SEED + "-1"),
    "sequence": (generate([1], sequence=-1), "sequence must be a whole number from 0 to 2^63 - 1, got -1"),
    "seed of weights": (build(seed=2**64), SEED + str(2**64)),
    "seed of weights, negative": (build(seed=-1), SEED + "-1"),
    "seed of weights, float": (build(seed=1.0), SEED + "1.0"),
    "dtype, int": (build(dtype="int32"), "dtype must be float32 or float64, got 'int32'"),
    "dtype, unknown": (build(dtype="float"[::-1]), "dtype must be float32 or float64, got 'taolf'"),
    "weights, a list": (build([1]), "weights must be arrays by name, got list"),
    "weights, of more layers": (
        build(weights(changed(n_layer=2))),
        "weights of another model: blocks.1.norm_1.weight: expected none, got (6,)",
    ),
    "weights, wider": (
        build(weights(changed(d_model=8))),
        "weights of another model: token_embedding.weight: expected (7, 6), got (7, 8)",
    ),
    "weights, untied": (
        build(weights(changed(tie_embeddings=False))),
        "weights of another model: output.weight: expected none, got (7, 6)",
    ),
    "weights, one missing": (
        build(weights(without="final_norm.bias")),
        "weights of another model: final_norm.bias: expected (6,), got none",
    ),
    "weights, nan": (build(weights(**{"final_norm.weight": BAD})), "but final_norm.weight[4] is nan"),
    "weights, inf": (
        build(weights(**{"final_norm.weight": BAD * 0 + inf})),
        "but final_norm.weight[0] is inf",
    ),
    "weights, integer": (
        build({name: value.astype(int) for name, value in weights().items()}),
        "dtype must be float32 or float64, got dtype('int64')",
    ),
    "weights, two dtypes": (
        build(weights(**{"final_norm.weight": np.ones(6)})),
        "weights of two dtypes: expected final_norm.weight in float32, got float64",
    ),
    "beta1, 1": (adamw(beta1=1), "beta1 must be a number of at least 0 and below 1, got 1"),
    "beta1, 1.5": (adamw(beta1=1.5), "beta1 must be a number of at least 0 and below 1, got 1.5"),
    "beta2, 1": (adamw(beta2=1.0), "beta2 must be a number of at least 0 and below 1, got 1.0"),
    "beta2, -0.1": (adamw(beta2=-0.1), "beta2 must be a number of at least 0 and below 1, got -0.1"),
    "beta2, nan": (adamw(beta2=nan), "beta2 must be a number of at least 0 and below 1, got nan"),
    "beta2, text": (adamw(beta2="0.9"), "beta2 must be a number of at least 0 and below 1, got '0.9'"),
    "eps, 0": (adamw(eps=0), "eps must be a finite number above 0, got 0"),
    "eps, -1": (adamw(eps=-1), "eps must be a finite number above 0, got -1"),
    "eps, inf": (adamw(eps=inf), "eps must be a finite number above 0, got inf"),
    "decay, nan": (adamw(weight_decay=nan), "weight_decay must be a finite number of at least 0, got nan"),
    "decay, -1": (adamw(weight_decay=-1), "weight_decay must be a finite number of at least 0, got -1"),
    "decay, inf": (adamw(weight_decay=inf), "weight_decay must be a finite number of at least 0, got inf"),
    "rate, nan": (update(nan), "learning rate must be a finite number of at least 0, got nan"),
    "rate, inf": (update(inf), "learning rate must be a finite number of at least 0, got inf"),
    "rate, -1": (update(-1), "learning rate must be a finite number of at least 0, got -1"),
    "rate, none": (update(None), "learning rate must be a finite number of at least 0, got None"),
    "norm, -1": (clip(-1), "max_norm must be a number above 0, got -1"),
    "norm, 0": (clip(0), "max_norm must be a number above 0, got 0"),
    "norm, nan": (clip(nan), "max_norm must be a number above 0, got nan"),
    "norm, true": (clip(True), "max_norm must be a number above 0, got True"),
}


@pytest.mark.parametrize(("call", "words"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_both_twins_refuse_in_the_same_words(call, words):
    """The call itself raises one line with place, value and range, equal in both twins."""
    messages = []
    for twin in TWINS:
        with pytest.raises(ConfigError) as error:
            call(twin)
        messages.append(str(error.value))
    assert words in messages[0]
    assert messages[1] == messages[0]
    assert "\n" not in messages[0]


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i8"]
)
def test_any_integers_are_tokens(dtype):
    """Ids of every kind of integer give the loss of int64, in PyTorch too."""
    for twin in TWINS:
        model = twin.package.GPT(CONFIG)
        wanted = model.forward(twin.array(TOKENS), twin.array(TOKENS))[1]
        if dtype == ">i8" and twin is TWINS[1]:
            continue  # PyTorch has no other byte order
        ids = twin.array(TOKENS.astype(dtype))
        assert model.forward(ids, ids)[1] == wanted


@pytest.mark.parametrize("prompt", [(1, 2), np.array([1, 2], np.uint8), torch.tensor([1, 2]), b"\x01\x02"])
def test_any_sequence_is_a_prompt(prompt):
    """A prompt may be a tuple, an array, a tensor or bytes; the numbers of the settings NumPy's."""
    settings = {"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.uint8(1)}
    for twin in TWINS:
        model = twin.package.GPT(CONFIG)
        assert model.generate(prompt, np.int32(5), **settings) == model.generate([1, 2], 5, **settings)


def test_a_foreign_array_is_named():
    """An array of the other twin is refused by its type's name."""
    with pytest.raises(ConfigError, match="got Tensor"):
        numpy_llm.GPT(CONFIG).forward(torch.tensor(TOKENS))
    with pytest.raises(ConfigError, match="got ndarray"):
        torch_llm.GPT(CONFIG).forward(TOKENS)


def test_weights_that_became_nan_generate_nothing():
    """Where training has diverged, the first token to be drawn says so."""
    for twin in TWINS:
        model = twin.package.GPT(CONFIG)
        if twin is TWINS[0]:
            model.weights["final_norm.bias"][:] = nan
        else:
            model.final_norm.bias.data[:] = nan
        for temperature in (0, 1.0):
            with pytest.raises(ConfigError, match="logits of the next token contain nan"):
                model.generate([1], 1, temperature=temperature)
    assert sample(np.array([-inf, 1.0, -inf]), seed=1) == 1


# NumPy's flat buffer


def test_a_flat_buffer_has_the_tables_size():
    """A buffer that is too long, too short or not flat is refused."""
    table, size = weight_table(CONFIG), parameter_count(CONFIG)
    for shape in (size + 1, size - 1, (1, size)):
        with pytest.raises(ConfigError, match=rf"must have the shape \({size},\), got"):
            Weights(table, np.zeros(shape))


def test_gradients_have_the_weights_layout():
    """Gradients of a larger model, of the same size in another order, or in no buffer are refused."""
    table = weight_table(CONFIG)
    turned = Weights(dict(reversed(table.items())), np.zeros(parameter_count(CONFIG), np.float32))
    larger = Weights.zeros(changed(n_layer=2), "float32")
    assert turned.flat.size == parameter_count(CONFIG)
    model = numpy_llm.GPT(CONFIG)
    cache = model.forward(TOKENS, TOKENS)[2]
    before = model.weights.flat.copy()
    for gradients, words in (
        (turned, r"expected token_embedding.weight \(7, 6\), got blocks.0.feed_forward.down.weight"),
        (larger, r"expected blocks.0.norm_1.weight \(6,\), got blocks.1.attention.query_key_value.weight"),
        (dict(turned), "gradients must be contract.weights.Weights, one buffer, got dict"),
    ):
        with pytest.raises(ConfigError, match=words):
            numpy_llm.AdamW(model.weights).update(gradients, 0.1)
        with pytest.raises(ConfigError, match=words):
            model.backward(cache, gradients=gradients)
    np.testing.assert_array_equal(model.weights.flat, before)
    with pytest.raises(ConfigError, match="weights of another layout"):
        numpy_llm.GPT(CONFIG, turned)
    with pytest.raises(ConfigError, match=r"weights must be contract\.weights\.Weights"):
        numpy_llm.GPT(CONFIG, dict(model.weights))


def test_a_weight_without_a_gradient_is_named():
    """PyTorch would leave it as it is in silence."""
    parameters = dict(torch_llm.GPT(CONFIG).named_parameters())
    optimizer = torch_llm.AdamW(parameters)
    for call in (lambda: optimizer.update(0.1), lambda: torch_llm.clip_gradients(parameters, 1.0)):
        with pytest.raises(ConfigError, match=r"token_embedding\.weight has no gradient"):
            call()
    assert optimizer.step == 0


# Norms


@pytest.mark.parametrize("twin", TWINS, ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 1e30), ("float32", 1e-30), ("float64", 1e200), ("float64", 1e-200)]
)
def test_squares_out_of_range(twin, dtype, size):
    """Where the squares overflow or vanish the norm is right all the same, and clipping keeps the direction."""
    given = Weights.zeros(CONFIG, dtype)
    given.flat[:] = np.random.default_rng(0).normal(size=given.flat.size) * size
    exact_norm = hypot(*given.flat.tolist())
    start = {name: gradient.copy() for name, gradient in given.items()}
    norm, clipped = twin.clip(exact_norm / 2, given)
    rtol = 1e-5 if dtype == "float32" else 1e-12
    assert norm == pytest.approx(exact_norm, rel=rtol)
    for name, before in start.items():
        np.testing.assert_allclose(clipped[name], before * 0.5, rtol=rtol)


@pytest.mark.parametrize("twin", TWINS, ids=["numpy", "torch"])
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_gradient_that_is_not_finite(twin, bad):
    """The norm says so, and no gradient is scaled by it."""
    given = weights()
    given["final_norm.bias"][2] = bad
    before = {name: gradient.copy() for name, gradient in given.items()}
    norm, left = twin.clip(1.0, given)
    np.testing.assert_equal(norm, abs(bad))
    for name in before:
        np.testing.assert_array_equal(left[name], before[name])


@pytest.mark.parametrize("twin", TWINS, ids=["numpy", "torch"])
def test_an_infinite_limit_clips_nothing(twin):
    """max_norm may be infinity."""
    before = weights()
    norm, left = twin.clip(inf)
    assert 0 < norm < inf
    for name in before:
        np.testing.assert_array_equal(left[name], before[name])


# Batches and backends


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Windows(np.arange(50), 0, 0), "sequence_length must be a whole number from 1 to"),
        (lambda: Windows(np.arange(50), 8.0, 0), "sequence_length must be a whole number from 1 to"),
        (lambda: Windows(np.arange(50), 8, 2**64), SEED + str(2**64)),
        (lambda: Windows(np.arange(50), 8, 0).batch(0, 0), "batch_size must be a whole number from 1 to"),
        (lambda: Windows(np.arange(50), 8, 0).batch(-1, 2), "step must be a whole number from 0 to"),
        (lambda: windows_per_epoch(50, 0), "sequence_length must be a whole number from 1 to"),
        (
            lambda: list(evaluation_batches(np.arange(50), 0, 2)),
            "sequence_length must be a whole number from 1",
        ),
        (
            lambda: list(evaluation_batches(np.arange(50), 8, 0)),
            "batch_size must be a whole number from 1 to",
        ),
        (
            lambda: list(evaluation_batches(np.arange(50), 8, 2, 0)),
            "max_windows must be a whole number from 1",
        ),
        (
            lambda: list(evaluation_batches(np.arange(50), 8, 2, stride=2.5)),
            "stride (at most the length of a sequence) must be a whole number from 1 to",
        ),
        (lambda: initial_weights(CONFIG, 0, None), "dtype must be float32 or float64, got None"),
    ],
)
def test_batches_and_weights_are_refused(call, words):
    """Sizes, steps and seeds out of range are one line."""
    with pytest.raises(ConfigError) as error:
        call()
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_backends_refuse(name):
    """Targets of an evaluation and weights that a backend converts are checked as the model's own."""
    backend = open_backend(name, CONFIG, threads=1)
    assert backend.evaluate(TOKENS, TOKENS[:, 1:]) > 0
    for targets, words in (
        (np.where(TOKENS > 5, -99, TOKENS), r"targets\[1, 2\] is -99"),
        (
            TOKENS.T,
            r"targets must be an array of integers of the tokens' shape, \(2, 2\), got int64 \(3, 2\)",
        ),
        (TOKENS.ravel(), r"got int64 \(6,\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            backend.evaluate(TOKENS, targets)
    with pytest.raises(ConfigError, match=r"targets\[0, 0\] is -1"):
        backend.loss_and_gradients(TOKENS, TOKENS - 2, step=0, accumulate=1)
    odd = weights(**{"final_norm.bias": np.zeros(1, np.float32)})
    for given, words in (
        (odd, r"final_norm.bias: expected \(6,\), got \(1,\)"),
        (weights(changed(n_layer=2)), "blocks.1.norm_1.weight: expected none"),
        (weights(without="final_norm.bias"), r"final_norm.bias: expected \(6,\), got none"),
        ({}, "token_embedding.weight: expected"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_backend(name, CONFIG, given, threads=1)


def test_what_lies_on_a_device_is_not_read():
    """Reading numbers would wait for the device: only kind and shape of such tensors are checked."""
    elsewhere = torch.zeros((2, 3), dtype=torch.int64, device="meta")
    _check_batch(elsewhere, elsewhere, CONFIG)
    with pytest.raises(ConfigError, match=r"got int64 \(3,\)"):
        _check_batch(elsewhere[0], None, CONFIG)


def test_dropout_keys_are_checked_where_they_are_made():
    """So that a model without dropout refuses them too; a changed copy is checked where it is used."""
    with pytest.raises(ConfigError, match="step must be a whole number"):
        DropoutKey(0, -1)
    key = DropoutKey(1, 2)._replace(step=-1)
    with pytest.raises(ConfigError, match=r"dropout.here must be .* got -1"):
        numpy_llm.layers.dropout_forward(np.ones((2, 3)), 0.5, key, "here")


def test_a_table_of_ones_own():
    """Optimisers train any table of weights, not a model's alone."""
    table = {"w": WeightSpec((2, 3), "zeros")}
    own = Weights(table, np.zeros(6))
    numpy_llm.AdamW(own).update(Weights(dict(table), np.ones(6)), 0.0)
    assert not own.flat.any()
