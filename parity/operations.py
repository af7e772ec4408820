"""The dataflow of a golden pack: which operation made each tensor, and from which others.

Names are those of the trace. `gradient.NAME` is the loss's gradient with respect to the tensor or weight
called NAME; `adamw.m.NAME[3]` is what the third step of AdamW left behind. Nothing here computes:
`parity/recompute.py` does.
"""

from collections.abc import Mapping
from typing import NamedTuple

from contract.config import ModelConfig
from contract.weights import weight_table


class Operation(NamedTuple):
    """What made a tensor.

    kind: a name in `parity.recompute.KINDS`
    inputs: role, such as "x" or "weight" -> name of the tensor
    settings: numbers that the operation takes beside its inputs
    extras: role -> name of tensors that a mistaken program may use in place of an input
    """

    kind: str
    inputs: Mapping[str, str]
    settings: Mapping = {}
    extras: Mapping[str, str] = {}


def given_names(config: ModelConfig) -> list[str]:
    """What a pack starts from: the batch and the weights."""
    return ["tokens", "targets", *weight_table(config)]


def pass_operations(config: ModelConfig) -> dict[str, Operation]:
    """Every tensor of a pass, forward then backward, in dataflow order."""
    return forward_operations(config) | backward_operations(config)


def output_weight(config: ModelConfig) -> str:
    """The name of the matrix that turns the stream into logits."""
    return "token_embedding.weight" if config.tie_embeddings else "output.weight"


def _affine(config: ModelConfig, kind: str, x: str, name: str, role: str = "x", **settings) -> Operation:
    """An operation with the weight, and the bias where there is one, called `name`."""
    inputs = {role: x, "weight": f"{name}.weight"}
    if config.bias:
        inputs["bias"] = f"{name}.bias"
    return Operation(kind, inputs, settings)


# Forward


def forward_operations(config: ModelConfig) -> dict[str, Operation]:
    """The tensors that a forward pass traces, and the table of fixed positions before them."""
    table, operations = "position_embedding.weight", {}
    if config.position == "sinusoidal":
        table = "positions"
        operations[table] = Operation("sinusoidal positions", {})
    embedding = {"tokens": "tokens", "weight": "token_embedding.weight"}
    operations["token_embedding"] = Operation("embedding", embedding)
    operations["embedding"] = Operation("position", {"x": "token_embedding", "table": table})
    operations["embedding_dropout"] = Operation("dropout", {"x": "embedding"})
    stream = "embedding_dropout"
    for layer in range(config.n_layer):
        operations |= _attention_forward(config, f"blocks.{layer}", stream)
        operations |= _feed_forward_forward(config, f"blocks.{layer}")
        stream = f"blocks.{layer}.residual_2"
    operations["final_norm"] = _affine(config, "layer norm", stream, "final_norm")
    output = {"x": "final_norm", "weight": output_weight(config)}
    operations["logits"] = Operation("linear", output)
    cross_entropy = {"logits": "logits", "targets": "targets"}
    operations["loss"] = Operation("cross-entropy", cross_entropy, extras={"tokens": "tokens"})
    return operations


def _attention_forward(config: ModelConfig, block: str, stream: str) -> dict[str, Operation]:
    at = f"{block}.attention"
    operations = {f"{block}.norm_1": _affine(config, "layer norm", stream, f"{block}.norm_1")}
    for part, name in enumerate(("query", "key", "value")):
        operations[f"{at}.{name}"] = _affine(
            config, "projection", f"{block}.norm_1", f"{at}.query_key_value", part=part
        )
    scores = {"query": f"{at}.query", "key": f"{at}.key"}
    heads = {"probabilities": f"{at}.probabilities_dropout", "value": f"{at}.value"}
    normed = {"normed": f"{block}.norm_1"}
    return operations | {
        f"{at}.scores": Operation("scores", scores),
        f"{at}.probabilities": Operation("masked softmax", {"scores": f"{at}.scores"}),
        f"{at}.probabilities_dropout": Operation("dropout", {"x": f"{at}.probabilities"}),
        f"{at}.heads": Operation("heads", heads),
        f"{at}.output": _affine(config, "attention output", f"{at}.heads", f"{at}.output", "heads"),
        f"{block}.dropout_1": Operation("dropout", {"x": f"{at}.output"}),
        f"{block}.residual_1": Operation(
            "residual", {"x": stream, "branch": f"{block}.dropout_1"}, extras=normed
        ),
    }


def _feed_forward_forward(config: ModelConfig, block: str) -> dict[str, Operation]:
    ff, stream = f"{block}.feed_forward", f"{block}.residual_1"
    residual = {"x": stream, "branch": f"{block}.dropout_2"}
    return {
        f"{block}.norm_2": _affine(config, "layer norm", stream, f"{block}.norm_2"),
        f"{ff}.up": _affine(config, "linear", f"{block}.norm_2", f"{ff}.up"),
        f"{ff}.activation": Operation(config.activation, {"x": f"{ff}.up"}),
        f"{ff}.down": _affine(config, "linear", f"{ff}.activation", f"{ff}.down"),
        f"{block}.dropout_2": Operation("dropout", {"x": f"{ff}.down"}),
        f"{block}.residual_2": Operation("residual", residual, extras={"normed": f"{block}.norm_2"}),
    }


# Backward


def backward_operations(config: ModelConfig) -> dict[str, Operation]:
    """The gradients that a backward pass traces, each followed by those of the weights used there."""
    last = f"blocks.{config.n_layer - 1}.residual_2"
    cross_entropy = {"logits": "logits", "targets": "targets"}
    operations = {
        "gradient.loss": Operation("start of the backward pass", {}),
        "gradient.logits": Operation("cross-entropy backward", cross_entropy),
    }
    dlogits = {"dy": "gradient.logits", "x": "final_norm"}
    if not config.tie_embeddings:
        operations["gradient.output.weight"] = Operation("linear backward to weight", dlogits)
    dnorm = {"dy": "gradient.logits", "weight": output_weight(config)}
    operations["gradient.final_norm"] = Operation("linear backward", dnorm)
    operations |= _norm_backward(config, "final_norm", last, None)
    for layer in reversed(range(config.n_layer)):
        block = f"blocks.{layer}"
        stream = f"blocks.{layer - 1}.residual_2" if layer else "embedding_dropout"
        operations |= _feed_forward_backward(config, block)
        operations |= _attention_backward(config, block)
        operations |= _norm_backward(config, f"{block}.norm_1", stream, f"gradient.{block}.residual_1")
    operations["gradient.embedding"] = Operation("dropout", {"x": "gradient.embedding_dropout"})
    if config.position == "learned":
        positions = Operation("position backward", {"dy": "gradient.embedding"})
        operations["gradient.position_embedding.weight"] = positions
    operations["gradient.token_embedding"] = Operation("dropout", {"x": "gradient.embedding"})
    inputs, kind = {"dy": "gradient.token_embedding", "tokens": "tokens"}, "embedding backward"
    if config.tie_embeddings:
        inputs, kind = inputs | {"dlogits": "gradient.logits", "x": "final_norm"}, "tied embedding backward"
    operations["gradient.token_embedding.weight"] = Operation(kind, inputs)
    return operations


def _norm_backward(config: ModelConfig, name: str, x: str, skip: str | None) -> dict[str, Operation]:
    """The gradients of a layer norm's weights, and of the stream `x` that it reads.

    skip: gradient that the stream has from its other way, or None where there is none
    """
    dy = f"gradient.{name}"
    operations = {f"{dy}.weight": Operation("layer norm backward to weight", {"dy": dy, "x": x})}
    if config.bias:
        operations[f"{dy}.bias"] = Operation("backward to bias", {"dy": dy})
    inputs = {"dy": dy, "x": x, "weight": f"{name}.weight"} | ({"skip": skip} if skip else {})
    end = {"other": f"gradient.{name.removesuffix('norm_1')}residual_2"} if name.endswith("norm_1") else {}
    return operations | {f"gradient.{x}": Operation("layer norm backward", inputs, extras=end)}


def _linear_backward(config: ModelConfig, dy: str, x: str, name: str) -> dict[str, Operation]:
    """The gradients of a linear layer's weights and of its input `x`, whose own gradient is `dy`."""
    operations = {f"gradient.{name}.weight": Operation("linear backward to weight", {"dy": dy, "x": x})}
    if config.bias:
        operations[f"gradient.{name}.bias"] = Operation("backward to bias", {"dy": dy})
    back = Operation("linear backward", {"dy": dy, "weight": f"{name}.weight"})
    return operations | {f"gradient.{x}": back}


def _feed_forward_backward(config: ModelConfig, block: str) -> dict[str, Operation]:
    ff = f"{block}.feed_forward"
    activation = {"dy": f"gradient.{ff}.activation", "x": f"{ff}.up"}
    return {
        f"gradient.{block}.dropout_2": Operation("dropout", {"x": f"gradient.{block}.residual_2"}),
        f"gradient.{ff}.down": Operation("dropout", {"x": f"gradient.{block}.dropout_2"}),
        **_linear_backward(config, f"gradient.{ff}.down", f"{ff}.activation", f"{ff}.down"),
        f"gradient.{ff}.up": Operation(f"{config.activation} backward", activation),
        **_linear_backward(config, f"gradient.{ff}.up", f"{block}.norm_2", f"{ff}.up"),
        **_norm_backward(
            config, f"{block}.norm_2", f"{block}.residual_1", f"gradient.{block}.residual_2"
        ),
    }  # fmt: skip


def _attention_backward(config: ModelConfig, block: str) -> dict[str, Operation]:
    at = f"{block}.attention"
    dy, dheads, dscores = f"gradient.{at}.output", f"gradient.{at}.heads", f"gradient.{at}.scores"
    dprobabilities = f"gradient.{at}.probabilities"
    operations = {
        f"gradient.{block}.dropout_1": Operation("dropout", {"x": f"gradient.{block}.residual_1"}),
        dy: Operation("dropout", {"x": f"gradient.{block}.dropout_1"}),
        f"{dy}.weight": Operation("attention output backward to weight", {"dy": dy, "heads": f"{at}.heads"}),
    }
    if config.bias:
        operations[f"{dy}.bias"] = Operation("backward to bias", {"dy": dy})
    operations |= {
        dheads: Operation("attention output backward", {"dy": dy, "weight": f"{at}.output.weight"}),
        f"{dprobabilities}_dropout": Operation(
            "heads backward to probabilities", {"dheads": dheads, "value": f"{at}.value"}
        ),
        dprobabilities: Operation("dropout", {"x": f"{dprobabilities}_dropout"}),
        dscores: Operation(
            "softmax backward", {"dy": dprobabilities, "probabilities": f"{at}.probabilities"}
        ),
        f"gradient.{at}.value": Operation(
            "heads backward to value", {"dheads": dheads, "probabilities": f"{at}.probabilities_dropout"}
        ),
        f"gradient.{at}.key": Operation(
            "scores backward to key",
            {"dscores": dscores, "query": f"{at}.query"},
            extras={"other": f"{at}.key"},
        ),
        f"gradient.{at}.query": Operation(
            "scores backward to query",
            {"dscores": dscores, "key": f"{at}.key"},
            extras={"other": f"{at}.query"},
        ),
    }
    parts = {f"d{part}": f"gradient.{at}.{part}" for part in ("query", "key", "value")}
    name = f"{at}.query_key_value"
    operations[f"gradient.{name}.weight"] = Operation(
        "projection backward to weight", parts | {"x": f"{block}.norm_1"}
    )
    if config.bias:
        operations[f"gradient.{name}.bias"] = Operation("projection backward to bias", parts)
    operations[f"gradient.{block}.norm_1"] = Operation(
        "projection backward", parts | {"weight": f"{name}.weight"}
    )
    return operations


# Training and writing


def step_operations(config: ModelConfig, adamw: Mapping) -> dict[str, Operation]:
    """What each step of AdamW leaves behind, in order: loss, norm, means, mean squares, weights.

    adamw: the pack's settings: steps, beta1, beta2, eps, weight_decay, max_norm
    """
    table, operations = weight_table(config), {}
    for step in range(1, adamw["steps"] + 1):
        before = {name: weight_before(name, step) for name in table}
        batch = {"tokens": "tokens", "targets": "targets"}
        operations[f"adamw.loss[{step}]"] = Operation("loss of a step", batch | before)
        norm = Operation("gradient norm of a step", batch | before, {"max_norm": adamw["max_norm"]})
        operations[f"adamw.gradient_norm[{step}]"] = norm
        for kind in ("m", "v", "weights"):
            for name, spec in table.items():
                settings = {"adamw": adamw, "step": step, "decays": spec.decays}
                operation = _step_operation(kind, name, step)
                operations[f"adamw.{kind}.{name}[{step}]"] = operation._replace(settings=settings)
    return operations


def weight_before(name: str, step: int) -> str:
    """The name of the weight that step `step`, counted from 1, starts from."""
    return f"adamw.weights.{name}[{step - 1}]" if step > 1 else name


def gradient_of_step(name: str, step: int) -> str:
    """The name of a weight's gradient, before clipping, in step `step`; a pack holds that of the first alone."""
    return f"adamw.gradient.{name}[{step}]" if step > 1 else f"gradient.{name}"


def _step_operation(kind: str, name: str, step: int) -> Operation:
    moments = {each: f"adamw.{each}.{name}[{step - 1}]" for each in "mv"} if step > 1 else {}
    weight, rate = weight_before(name, step), f"adamw.learning_rate[{step}]"
    gradient = {"gradient": gradient_of_step(name, step), "norm": f"adamw.gradient_norm[{step}]"}
    if kind == "weights":
        new = {each: f"adamw.{each}.{name}[{step}]" for each in "mv"}
        before = {f"{each}_before": moment for each, moment in moments.items()}
        past = {f"v_at_{at}": f"adamw.v.{name}[{at}]" for at in range(1, step)}
        extras = before | gradient | past | {"rates": "adamw.learning_rate"}
        return Operation("AdamW weight", {"weight": weight, **new, "rate": rate}, extras=extras)
    title = {"m": "AdamW mean", "v": "AdamW mean square"}[kind]
    inputs = gradient | ({kind: moments[kind]} if moments else {})
    return Operation(title, inputs, extras={"weight": weight, "rate": rate})


# As a whole; below, token by token, since the logits of each follow from the tokens chosen before it.
CONTINUATIONS = {
    "greedy.logits": Operation(
        "logits of a continuation", {"prompt": "greedy.prompt", "so far": "greedy.tokens"}
    ),
    "greedy.tokens": Operation("greedy choice", {"logits": "greedy.logits"}),
    "sampled.logits": Operation(
        "logits of a continuation", {"prompt": "sampled.prompt", "so far": "sampled.tokens"}
    ),
    "sampled.tokens": Operation("sampling", {"logits": "sampled.logits", "draws": "sampled.draws"}),
}


def continuation_operations(config: ModelConfig, count: int, sampling: Mapping) -> dict[str, Operation]:
    """The logits and the choice of each of `count` new tokens, greedy and sampled, in order.

    sampling: the pack's settings: temperature, top_k
    """
    weights = {name: name for name in weight_table(config)}
    settings = {name: sampling[name] for name in ("temperature", "top_k")}
    operations = {}
    for title in ("greedy", "sampled"):
        before = {"prompt": f"{title}.prompt"}
        for place in range(1, count + 1):
            logits, token = f"{title}.logits[{place}]", f"{title}.tokens[{place}]"
            operations[logits] = Operation("logits of a new token", before | weights)
            if title == "greedy":
                operations[token] = Operation("greedy token", {"logits": logits})
            else:
                draw = f"sampled.draws[{place}]"
                operations[token] = Operation("sampled token", {"logits": logits, "draw": draw}, settings)
            before = before | {f"new {place}": token}
    return operations
