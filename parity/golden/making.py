"""Making a golden pack: a pass of the model, what it writes, and steps of AdamW, every tensor of them."""

from collections.abc import Iterable
from dataclasses import replace
from types import ModuleType

import numpy as np

import numpy_llm
from contract.checks import check_adam, check_number
from contract.components import traced_numbers
from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.numbers import SIXTEEN_BITS
from contract.randomness import generator, uniform
from contract.sampling import sample
from contract.trace import Trace
from contract.weights import Weights, parameter_count, weight_table
from parity.cases import lively_weights
from parity.golden.manifest import manifest
from parity.golden.packs import Pack
from parity.golden.rounding import strays
from parity.golden.sixteen_bits import limits

LARGEST = 1 << 32  # bytes of a pack; a porter's tool should not fill a disk by mistake

# A large eps and strong decay: at the usual 1e-8 and 0.1 a mistake in them hides in float32's rounding.
ADAMW = {"steps": 10, "beta1": 0.9, "beta2": 0.95, "eps": 1e-4, "weight_decay": 0.5, "max_norm": 1.0}
# Such that each mistake of drawing gives another text in some pack of the project.
SAMPLING = {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "seed": 7}
NEW_TOKENS = {"greedy": 8, "sampled": 24}


def make_pack(
    name: str,
    config: ModelConfig,
    *,
    weights: Weights | None = None,
    B: int = 3,
    T: int | None = None,
    seed: int = 3,
    precisions: Iterable[str] = ("float32", *SIXTEEN_BITS),
    **adamw: float,
) -> Pack:
    """A pack of any model.

    config: its dropout is left out; weights: any precision, rounded to float32; None draws lively ones
    B, T: shape of the batch; T one less than the context, at most 64, where it is not given
    seed: of the weights and the batch
    precisions: those other than float64 to measure limits of
    adamw: settings other than those of `ADAMW`; its steps are 0 for none

    Raises ConfigError for an impossible batch or setting, or a pack of more than 4 GB.
    """
    config = replace(config, dropout=0.0)
    T = usual_tokens(config) if T is None else T
    adamw = _checked(ADAMW | adamw)
    _check_size(config, B, T, seed, adamw["steps"])
    given = Weights.zeros(config, "float64")
    source = lively_weights(config, seed, "float64") if weights is None else weights
    for each in given:
        # Rounded, so that a program in float32 starts from the very same numbers.
        given[each][...] = source[each].astype(np.float32)
    # Fewer symbols than places, so that tokens repeat.
    symbols = max(2, min(config.vocab_size, 2 * B * T // 3))
    batch = generator(seed, "golden.batch").integers(min(symbols, config.vocab_size), size=(B, T + 1))
    tensors = {"tokens": batch[:, :-1].copy(), "targets": batch[:, 1:].copy()}
    tensors |= {each: np.array(weight) for each, weight in given.items()}

    batch = tensors["tokens"], tensors["targets"]
    tensors |= computed(config, given, *batch, adamw)
    apart = {}
    if "float32" in precisions:
        apart = strays(
            config, given, tensors, lambda weights: _trained(config, weights, *batch, adamw, numpy_llm)[1]
        )
        apart |= dict.fromkeys(("greedy.logits", "sampled.logits"), apart["logits"])
    of_coarse = {each: limits(config, tensors, each) for each in precisions if each in SIXTEEN_BITS}
    return Pack(manifest(name, config, seed, adamw, SAMPLING, tensors, apart, of_coarse), config, tensors)


def _checked(adamw: dict) -> dict:
    """The settings, once they are known to be possible ones."""
    check_adam(**{name: adamw[name] for name in ("beta1", "beta2", "eps", "weight_decay")})
    check_number("clip", adamw["max_norm"], lambda norm: 0 < norm < np.inf, "a finite number above 0")
    return adamw


def _check_size(config: ModelConfig, B: int, T: int, seed: int, steps: int):
    for flag, value, least in (
        ("batch-size", B, 1),
        ("sequence-length", T, 1),
        ("steps", steps, 0),
        ("seed", seed, 0),
    ):
        if not least <= value < 2**63:
            raise ConfigError(f"--{flag} must be at least {least} and below 2^63, got {value}")
    if config.context_length < T:
        raise ConfigError(
            f"--sequence-length {T} is more than the model's context of {config.context_length}"
        )
    if (size := pack_bytes(config, B, T, steps)) > LARGEST:
        raise ConfigError(
            f"the pack would take about {size / 1e9:.1f} GB, more than {LARGEST / 1e9:.1f}; ask for fewer --steps, "
            "a smaller batch or a smaller model"
        )


def pack_bytes(config: ModelConfig, B: int, T: int, steps: int) -> int:
    """The size of a pack, in float64: weights and their gradients, three tensors for each step of AdamW, activations
    and their gradients.
    """
    return 8 * ((2 + 3 * steps) * parameter_count(config) + 2 * traced_numbers(config, B, T))


def usual_tokens(config: ModelConfig) -> int:
    """The sequence length of a pack where none is given: one less than the context, at most 64."""
    return min(max(config.context_length - 1, 1), 64)


def computed(
    config: ModelConfig,
    given: Weights,
    tokens,
    targets,
    adamw: dict,
    package: ModuleType = numpy_llm,
    texts=True,
) -> dict[str, np.ndarray]:
    """Everything in a pack that a program has to compute from the weights and the batch.

    given: the weights, whose precision is computed in; package: `numpy_llm` or a changed copy of it
    texts: whether new tokens are among it
    """
    model, record = _trained(config, given, tokens, targets, adamw, package)
    return record if not texts else record | _continuations(model, tokens[0, : max(1, tokens.shape[1] // 2)])


def _trained(config, given, tokens, targets, adamw, package) -> tuple:
    """The model, and the tensors of a pass forward and back and of the steps of AdamW."""
    trace, model = Trace(), package.GPT(config, given)
    _, _, cache = model.forward(tokens, targets, trace=trace)
    gradients = model.backward(cache, trace=trace)
    record = {"positions": model.positions} if config.position == "sinusoidal" else {}
    record |= trace.activations
    record |= {f"gradient.{name}": gradient for name, gradient in trace.gradients.items()}
    record |= {f"gradient.{name}": gradient for name, gradient in gradients.items()}
    steps = _steps(config, given, tokens, targets, adamw, package) if adamw["steps"] else {}
    return model, record | steps


def _steps(config, given, tokens, targets, adamw, package) -> dict[str, np.ndarray]:
    """Ten steps on the same batch; the rate rises for three and falls again."""
    table, steps = weight_table(config), adamw["steps"]
    weights = Weights(table, given.flat.copy())
    optimizer = package.AdamW(
        weights, **{name: adamw[name] for name in ("beta1", "beta2", "eps", "weight_decay")}
    )
    rows = {name: [] for name in ("learning_rate", "loss", "gradient_norm")}
    rows |= {f"{kind}.{name}": [] for kind in ("m", "v", "weights") for name in table}
    for step in range(1, steps + 1):
        model = package.GPT(config, weights)
        _, loss, cache = model.forward(tokens, targets)
        gradients = model.backward(cache)
        rate = 0.02 * min(step / 3, 3 / step)
        norm = package.clip_gradients(gradients, adamw["max_norm"])
        optimizer.update(gradients, rate)
        for name, value in (("learning_rate", rate), ("loss", loss), ("gradient_norm", norm)):
            rows[name].append(value)
        left = {"m": Weights(table, optimizer.m), "v": Weights(table, optimizer.v), "weights": weights}
        for kind, values in left.items():
            for name in table:
                rows[f"{kind}.{name}"].append(values[name].copy())
    return {f"adamw.{name}": np.array(values) for name, values in rows.items()}


def _continuations(model, prompt: np.ndarray) -> dict[str, np.ndarray]:
    """What the model writes after `prompt`, past the end of its context, so that the window slides."""
    record = {}
    for title, settings in (("greedy", {"temperature": 0}), ("sampled", SAMPLING)):
        tokens, logits, draws = prompt.tolist(), [], []
        for _ in range(NEW_TOKENS[title]):
            window = np.array([tokens[-model.config.context_length :]])
            logits.append(model.forward(window)[0][0, -1])
            draws.append(uniform(SAMPLING["seed"], "sampling", 0, len(tokens)))
            tokens.append(sample(logits[-1], **settings, position=len(tokens)))
        record[f"{title}.prompt"] = prompt.copy()
        if title == "sampled":
            record["sampled.draws"] = np.array(draws)
        record[f"{title}.logits"] = np.array(logits)
        record[f"{title}.tokens"] = np.array(tokens[len(prompt) :])
    return record
