"""What made each tensor of a golden pack, from which others, and how to make it again.

Names are those of the trace. `gradient.NAME` is the loss's gradient with respect to the tensor or weight NAME;
`adamw.m.NAME[3]` is what the third step of AdamW left behind.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from contract.config import ModelConfig
from contract.weights import Weights, weight_table
from numpy_llm import GPT
from operations.adamw import STEPS
from operations.clipping import NORM_NOT_ZEROED, not_zeroed
from operations.dataflow import GRADIENT, Dataflow, record
from operations.operation import Mistake
from operations.sampling import MISTAKES, chosen

Wrongs = Iterator[tuple[str, Mistake, np.ndarray]]
LOSS, NORM, LOGITS = "loss of a step", "gradient norm of a step", "logits of a new token"
STEP_LOSS = "the loss with the weights before the step"


class Origin(NamedTuple):
    """What made a tensor.

    title: the operation in words; equation: what it computes; inputs: the names of the tensors it reads
    operations: the names of the model's operations that take part, in order
    right: makes it again; None where a tensor is made from all others together
    wrong: operation, mistake and what that mistake makes of the tensor, for all known mistakes
    gradient, norm: of a step of AdamW, its weight's gradient, which no pack may hold, and the norm that covers it
    decays: of a step of AdamW, whether its weight does
    """

    title: str
    equation: str
    inputs: list[str]
    operations: tuple[str, ...] = ()
    right: Callable[[], np.ndarray] | None = None
    wrong: Callable[[], Wrongs] = lambda: iter(())
    gradient: str = ""
    norm: str = ""
    decays: bool = False


def whole(name: str) -> str:
    """The pack's name of the tensor of which `NAME[3]` is a row."""
    return name.partition("[")[0]


def given_names(config: ModelConfig) -> list[str]:
    """What a pack starts from: the batch and the weights."""
    return ["tokens", "targets", *weight_table(config)]


def pass_origins(
    config: ModelConfig,
    value: Callable[[str], np.ndarray] | None = None,
    dumped: Mapping[str, bool] | None = None,
) -> tuple[Dataflow, dict[str, Origin]]:
    """The dataflow of a pass, and the origin of each of its tensors by name, in dataflow order.

    value: name -> tensor, of every known tensor; None where nothing is made again
    dumped: the names of those that have an origin, and whether they are known; what is not is computed on the way to
        those that are. None where all are known
    """
    trace, table = record(config), weight_table(config)
    forward = [*(["positions"] if config.position == "sinusoidal" else []), *trace.activations]
    made = dict.fromkeys([*forward, *(GRADIENT + name for name in (*trace.gradients, *table))], True)
    graphs = [
        Dataflow(trace.nodes, {*given_names(config), *(n for n in some if some[n])}.__contains__, value)
        for some in (made, made if dumped is None else dumped)
    ]
    order = dict.fromkeys(forward)
    for name in trace.gradients:  # after the gradients of the weights that the same operation reads
        for node, _ in graphs[0].steps(GRADIENT + name):
            weights = [each for each in node.inputs if each in table and graphs[0].uses[each][0][0] is node]
            order |= dict.fromkeys(GRADIENT + weight for weight in weights)
        order[GRADIENT + name] = None
    order |= dict.fromkeys(GRADIENT + weight for weight in reversed(table))
    told = made if dumped is None else dumped
    return graphs[1], {name: _pass_origin(graphs[1], name) for name in order if name in told}


def _pass_origin(graph: Dataflow, name: str) -> Origin:
    steps = graph.steps(name)
    if not steps:
        return Origin("start of the backward pass", "1", [], right=lambda: np.ones(()))
    operations = tuple(
        dict.fromkeys(node.operation for node in graph.needed(name)[0] + graph.needed(name)[1])
    )
    words = graph.title(name), graph.equation(name), graph.inputs(name)
    return Origin(*words, operations, lambda: graph.right(name), lambda: iter(graph.wrong(name)))


# The whole model: new tokens and steps


def _model(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> GPT:
    """A model with a copy of `weights`, which are given by name."""
    model = GPT(config, Weights.zeros(config, "float64"))
    for name, weight in weights.items():
        model.weights[name][...] = weight
    return model


def pass_of_step(config: ModelConfig, value: Callable, step: int) -> tuple:
    """returns: the loss of step `step` of AdamW, counted from 1, and its gradients before clipping"""
    model = _model(config, {name: value(weight_before(name, step)) for name in weight_table(config)})
    _, loss, cache = model.forward(value("tokens"), value("targets"))
    return loss, model.backward(cache)


_NEXT = "the model on prompt and tokens so far, the last context_length"
_GREEDY = "the id of the largest logit, the lowest on a tie"
_SAMPLED = (
    "divide by the temperature, keep the top k by falling logit, of these the first until their probabilities reach "
    "top p, take the first token at which the running sum of the probabilities exceeds draw · total"
)
# As a whole; below, token by token, since the logits of each follow from the tokens chosen before it.
CONTINUATIONS = {
    "greedy.logits": Origin("logits of a continuation", _NEXT, ["greedy.prompt", "greedy.tokens"]),
    "greedy.tokens": Origin("greedy choice", _GREEDY, ["greedy.logits"]),
    "sampled.logits": Origin("logits of a continuation", _NEXT, ["sampled.prompt", "sampled.tokens"]),
    "sampled.tokens": Origin("sampling", _SAMPLED, ["sampled.logits", "sampled.draws"]),
}


def continuation_origins(
    config: ModelConfig, counts: Mapping[str, int], sampling: Mapping, value: Callable
) -> dict[str, Origin]:
    """The logits and the choice of each new token, greedy and sampled, in order.

    counts: how many new tokens, by "greedy" and "sampled"
    sampling: the pack's settings: temperature, top_k and, since there are some, top_p; value: name -> tensor
    """
    table, origins = weight_table(config), {}

    def next_logits(prompt: str, tokens: list[str]):
        window = np.array([*value(prompt), *map(value, tokens)])[-config.context_length :]
        return _model(config, {name: value(name) for name in table}).forward(window[None])[0][0, -1]

    def greedy_token(place: int):
        return value(f"greedy.logits[{place}]").argmax()

    def sampled_token(place: int):
        return chosen(value(f"sampled.logits[{place}]"), draws(), place - 1, sampling)

    def draws():
        return np.array([value(f"sampled.draws[{place}]") for place in range(1, counts["sampled"] + 1)])

    @cache
    def written() -> tuple[list, list]:
        """The tokens of the sampled text, and the right logits before each."""
        names = [f"sampled.tokens[{place}]" for place in range(1, counts["sampled"] + 1)]
        return [int(value(each)) for each in names], [
            origins[each.replace("tokens", "logits")].right() for each in names
        ]

    def wrong_token(place: int) -> Wrongs:
        """What a mistake draws here, if it draws all tokens of the text: one alone would be a coincidence."""
        tokens, logits = written()
        for mistake in MISTAKES:
            texts = zip(
                *(mistake.forms(each, draws(), at, sampling) for at, each in enumerate(logits)), strict=True
            )
            yield from (
                ("sampling", mistake, np.array(text[place - 1])) for text in texts if [*text] == tokens
            )

    for kind, equation, choose in (("greedy", _GREEDY, greedy_token), ("sampled", _SAMPLED, sampled_token)):
        before, prompt = [], f"{kind}.prompt"
        for place in range(1, counts[kind] + 1):
            logits = f"{kind}.logits[{place}]"
            read = [logits] if kind == "greedy" else [logits, f"sampled.draws[{place}]"]
            right = partial(next_logits, prompt, [*before])
            origins[logits] = Origin(LOGITS, _NEXT, [prompt, *before, *table], right=right)
            before.append(f"{kind}.tokens[{place}]")
            wrong = partial(wrong_token, place) if kind == "sampled" else lambda: iter(())
            origins[before[-1]] = Origin(f"{kind} token", equation, read, (), partial(choose, place), wrong)
    return origins


# AdamW


def weight_before(name: str, step: int) -> str:
    """The name of the weight that step `step`, counted from 1, starts from."""
    return f"adamw.weights.{name}[{step - 1}]" if step > 1 else name


def gradient_of_step(name: str, step: int) -> str:
    """The name of a weight's gradient, before clipping, in step `step`; a pack holds only that of the first."""
    return f"adamw.gradient.{name}[{step}]" if step > 1 else f"gradient.{name}"


def step_origins(config: ModelConfig, adamw: Mapping, value: Callable) -> dict[str, Origin]:
    """What each step of AdamW leaves behind, in order: loss, norm, means, mean squares, weights.

    adamw: the pack's settings: steps, beta1, beta2, eps, weight_decay, max_norm; value: name -> tensor
    """
    table, origins = weight_table(config), {}
    norm, max_norm = STEPS[NORM], adamw["max_norm"]

    @cache
    def gradients(step: int) -> Weights:
        return pass_of_step(config, value, step)[1]

    @cache
    def sums(step: int) -> list[tuple[Weights, float]]:
        """The gradients of a program that does not zero them, in each form of that mistake, and their norm."""
        flat = [gradients(each).flat for each in range(1, step + 1)]
        found = not_zeroed(flat, max_norm) if step > 1 else []
        return [(Weights(table, each), total) for each, total in found]

    def wrong_norms(step: int) -> Wrongs:
        yield from _wrong(norm.mistakes, {"gradients": gradients(step), "max_norm": max_norm})
        yield from _wrong([NORM_NOT_ZEROED], {"sums": sums(step)})

    for step in range(1, adamw["steps"] + 1):
        inputs = ["tokens", "targets", *(weight_before(name, step) for name in table)]
        run = partial(pass_of_step, config, value, step)
        origins[f"adamw.loss[{step}]"] = Origin(
            LOSS, STEP_LOSS, inputs, right=lambda run=run: np.asarray(run()[0])
        )
        origins[f"adamw.gradient_norm[{step}]"] = Origin(
            NORM, norm.equation, inputs, ("adamw",),
            lambda run=run: norm.right(run()[1], max_norm),
            partial(wrong_norms, step),
        )  # fmt: skip
        for kind in ("m", "v", "weights"):
            for name, spec in table.items():
                origin = _step_origin(kind, name, step, spec.decays, adamw, value, sums)
                origins[f"adamw.{kind}.{name}[{step}]"] = origin
    return origins


def _step_origin(
    kind: str, name: str, step: int, decays: bool, adamw: Mapping, value: Callable, sums: Callable
) -> Origin:
    moments = {each: f"adamw.{each}.{name}[{step - 1}]" for each in "mv"} if step > 1 else {}
    weight, rate = weight_before(name, step), f"adamw.learning_rate[{step}]"
    gradient = {"gradient": gradient_of_step(name, step), "norm": f"adamw.gradient_norm[{step}]"}
    if kind == "weights":
        title, covers = "AdamW weight", ("", "")
        inputs = {"weight": weight, **{each: f"adamw.{each}.{name}[{step}]" for each in "mv"}, "rate": rate}
        past = {f"v_at_{at}": f"adamw.v.{name}[{at}]" for at in range(1, step)}
        extras = {f"{each}_before": moment for each, moment in moments.items()} | gradient | past
        extras |= {"rates": "adamw.learning_rate"}
    else:
        title, covers = {"m": "AdamW mean", "v": "AdamW mean square"}[kind], gradient.values()
        inputs = gradient | ({kind: moments[kind]} if moments else {})
        extras = {"weight": weight, "rate": rate} | moments
    known = STEPS[title]

    def values(names: Mapping[str, str]) -> dict:
        settings = {"adamw": adamw, "step": step, "decays": decays}
        return {role: value(each) for role, each in names.items()} | settings

    def added_up() -> dict:
        return {} if kind == "weights" else {"sums": [(each[name], total) for each, total in sums(step)]}

    return Origin(
        title, known.equation, list(inputs.values()), ("adamw",),
        lambda: known.right(**values(inputs)),
        lambda: _wrong(known.mistakes, values(extras | inputs) | added_up()),
        *covers, decays,
    )  # fmt: skip


def _wrong(mistakes: Iterable[Mistake], inputs: Mapping) -> Wrongs:
    return (("adamw", mistake, form) for mistake in mistakes for form in mistake.forms(**inputs))
