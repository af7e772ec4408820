"""Witnesses beside the twin: central differences, and the GPT-2 of Hugging Face's `transformers`."""

from collections.abc import Sequence

import numpy as np

from contract.components import COMPONENTS
from contract.config import ModelConfig
from contract.numbers import slope
from contract.presets import preset
from harness.exchange.families.gpt2 import output, prefix, published_config, published_places
from parity.cases import Case, small
from parity.compare import Comparison, ParityError, compare
from parity.passes import Twins, kink_distance, reference_pass

STEP = 3e-4  # h of the differences


def _tiny(title: str, B: int, T: int, seed: int = 22, *, L=1, H=2, C=6, F=5, **changes) -> Case:
    return Case(title, small(7, 4, L, H, C, F, **changes), B, T, seed, symbols=4)


TINY_CASES = [
    _tiny("gelu, learned, tied", 2, 4),
    _tiny("relu", 2, 4, seed=52, activation="relu"),
    _tiny("sinusoidal", 2, 3, position="sinusoidal"),
    _tiny("untied", 2, 3, tie_embeddings=False),
    _tiny("no bias", 2, 4, bias=False),
    _tiny("dropout", 3, 4, dropout=0.3),
    _tiny("one head, odd width", 2, 3, H=1, C=5, F=7),
    _tiny("three heads, odd width", 1, 4, H=3, C=9, F=3),
    _tiny("one token", 2, 1),
    *(_tiny(norm, 2, 3, norm=norm) for norm in COMPONENTS["norm"]),
    _tiny("low-rank pairs", 2, 3, lora_rank=2, lora_alpha=3),
    _tiny("two layers", 2, 3, L=2, H=1, C=4, F=3),
    _tiny("three layers, large eps", 2, 4, L=3, H=1, C=3, F=4, norm_eps=0.1),
    _tiny(
        "relu, sinusoidal, untied, no bias, dropout, two layers", 2, 4, seed=27, L=2, C=4,
        activation="relu", position="sinusoidal", tie_embeddings=False, bias=False, dropout=0.2,
    ),
]  # fmt: skip


def check_differences(twins: Twins, cases: Sequence[Case] = TINY_CASES):
    """In tiny models the gradient of every single weight is what the loss does when that weight is moved."""
    for case in cases:
        model, gradients, loss = _differentiated(twins, case)
        found = {name: np.empty_like(weight) for name, weight in model.weights.items()}
        for name, weight in model.weights.items():
            for index in np.ndindex(weight.shape):
                found[name][index] = slope(loss, weight, STEP, index=index)
        rows = compare("central difference", gradients, found, "float64")
        Comparison(f"differences of {case.title}", "float64", case.seed, rows).require()


def check_directions(twins: Twins):
    """At `nano` size each weight's gradient, along a random direction, is what the loss does along it."""
    case = Case("nano", preset("nano", vocab_size=65), B=1, T=16, symbols=65)
    model, gradients, loss = _differentiated(twins, case)
    random = np.random.default_rng(case.seed)
    slopes, found = {}, {}
    for name, weight in model.weights.items():
        direction = random.standard_normal(weight.shape)
        direction /= np.linalg.norm(direction)
        # The slope is a sum that may come out near 0 by chance: its error is relative to the gradient's length.
        length = np.linalg.norm(gradients[name])
        slopes[name] = np.array([np.vdot(gradients[name], direction), length])
        found[name] = np.array([slope(loss, weight, STEP, direction=direction), length])
    rows = compare("directional difference", slopes, found, "float64")
    Comparison("directions at nano size", "float64", case.seed, rows).require()


def _differentiated(twins: Twins, case: Case):
    """returns: the model, its gradients by name, and the loss as a function of the weights as they stand"""
    inputs = case.inputs("float64")
    record = reference_pass(twins.reference, case.config, inputs)
    if case.config.activation == "relu" and kink_distance(record) < 50 * STEP:
        raise ValueError(f"{case.title}: a hidden value is too near to the kink of ReLU; choose another seed")
    model = twins.reference.GPT(case.config, inputs.weights)

    def loss() -> float:
        return float(model.forward(inputs.tokens, inputs.targets, dropout=inputs.dropout)[1])

    return model, record.weight_gradients, loss


# Hugging Face


PUBLISHED = [
    small(11, 8, L=1, H=1, C=8, F=32),
    small(17, 9, L=2, H=3, C=12, F=48),
    small(29, 12, L=3, H=4, C=32, F=128),
    small(13, 7, L=2, H=5, C=15, F=22, norm_eps=1e-2),
    small(13, 8, L=2, H=2, C=10, F=40, activation="relu", tie_embeddings=False),
]
NEW_TOKENS = 6


def check_transformers(twins: Twins):
    """Logits, loss, every weight's gradient and greedy texts of GPT2LMHeadModel, which nobody here wrote."""
    for config in PUBLISHED:
        title, T = f"transformers, {config}", config.context_length - 1
        case = Case(title, config, B=3, T=T, symbols=config.vocab_size)
        inputs = case.inputs("float64")
        theirs = _gpt2(config, inputs.weights)
        record = reference_pass(twins.reference, config, inputs)
        found, gradients, own_loss = _gpt2_pass(theirs, config, inputs)
        ours = {name: record.activations[name] for name in found}
        rows = compare("transformers", ours, found, "float64")
        rows += compare("transformers", record.weight_gradients, gradients, "float64")
        Comparison(case.title, "float64", case.seed, rows).require()
        loss = {"loss": ours["loss"].astype(np.float32)}
        rows = compare("transformers", loss, {"loss": own_loss}, "float32")
        Comparison(case.title, "float32", case.seed, rows).require()

        prompt = inputs.tokens[0, : config.context_length - NEW_TOKENS].tolist()
        ours = twins.reference.GPT(config, inputs.weights).generate(prompt, NEW_TOKENS, temperature=0)
        wanted = _gpt2_text(theirs, prompt)
        if ours != wanted:
            raise ParityError(f"{case.title}: {ours} after {prompt}, not {wanted}", "text")


def _gpt2(config: ModelConfig, weights):
    """Hugging Face's model with our weights, in float64 and without dropout."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    fields = published_config(config, "float64")
    model = GPT2LMHeadModel(GPT2Config(**fields, attn_implementation="eager")).double().eval()
    with torch.no_grad():
        for name, place in _places(config).items():
            value = torch.tensor(weights[name])
            model.get_parameter(place.name).copy_(value.T if place.transposed else value)
    return model


def _places(config: ModelConfig) -> dict:
    return {
        name: place if place.name == output else place._replace(names=(prefix + place.name,))
        for name, place in published_places(config).items()
    }


def _gpt2_pass(model, config, inputs):
    """returns: logits and loss, gradients by our names and in our layout, and the model's own loss, always float32"""
    import torch

    tokens = torch.tensor(np.concatenate([inputs.tokens, inputs.targets[:, -1:]], axis=1))
    output = model(tokens, labels=tokens)  # it shifts the labels by itself
    logits = output.logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    gradients = {}
    for name, place in reversed(_places(config).items()):
        gradient = model.get_parameter(place.name).grad.numpy()
        gradients[name] = gradient.T if place.transposed else gradient
    found = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    return found, gradients, output.loss.detach().numpy()


def _gpt2_text(model, prompt: list[int]) -> list[int]:
    import torch

    tokens = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    text = model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
    return text[0, len(prompt) :].tolist()
