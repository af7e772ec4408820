"""The names that hooks on `transformers` give: a dump of its modules' outputs, by ours.

Hooks see the output of each module under the module's name, its gradient under `NAME.grad`, further outputs as
`NAME.1` and the first input as `NAME.input`; parameters have their published names and layouts. Here each of them is
said in our names, its layout undone: query, key and value beside each other, heads side by side, matrices transposed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from contract.config import ModelConfig
from contract.errors import UserError
from contract.weights import weight_table
from harness.exchange.families import family_for, gpt2
from harness.exchange.families.place import row_counts
from operations.dataflow import GRADIENT
from parity.golden.dumps import Dump
from parity.golden.packs import Pack

GRAD = ".grad"


class Form(NamedTuple):
    """What stands under a name of hooks.

    ours: the tensors of the pack that it holds; theirs: their numbers -> its own; undo: the inverse
    rows: which rows of the one tensor it is, None for all
    """

    ours: tuple[str, ...]
    theirs: Callable[..., np.ndarray] = lambda x: x
    undo: Callable[[np.ndarray], tuple[np.ndarray, ...]] = lambda x: (x,)
    rows: slice | None = None

    def golden(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The pack's numbers in this form."""
        return self.theirs(*(tensors[name][self.rows] if self.rows else tensors[name] for name in self.ours))


def _transposed(x: np.ndarray) -> np.ndarray:
    return x.T


def _merged(*parts: np.ndarray) -> np.ndarray:
    """(B, n, T, D) each -> (B, T, all n·D), head after head."""
    return np.concatenate([x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1) for x in parts], axis=-1)


def _split(config: ModelConfig, heads: tuple[int, ...]) -> Callable:
    D = config.head_size

    def undo(x: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = np.split(x, np.cumsum(heads)[:-1] * D, axis=-1)
        return tuple(part.reshape(*x.shape[:2], -1, D).swapaxes(1, 2) for part in parts)

    return undo


def with_hooked(pack: Pack) -> dict[str, np.ndarray]:
    """The pack's tensors under its own names, and under those of hooks in their layouts."""
    return pack.tensors | {name: form.golden(pack.tensors) for name, form in forms(pack).items()}


def forms(pack: Pack) -> dict[str, Form]:
    """Every name of hooks on the published model that computes what this one does; none where there is none."""
    found: dict[str, Form] = {}
    for name, form in _forms(pack.config):
        gradients = tuple(GRADIENT + each for each in form.ours)
        for each, ours in ((name, form.ours), (name + GRAD, gradients)):
            if all(tensor in pack.tensors for tensor in ours):
                found[each] = form._replace(ours=ours)
    return found


def _forms(config: ModelConfig) -> Iterator[tuple[str, Form]]:
    family = None
    with suppress(UserError):
        family = family_for(config)
    if family is None:
        return
    table = weight_table(config)
    for ours, place in family.published_places(config).items():
        start = 0
        for name, count in zip(place.names, row_counts(place, config, table[ours].shape), strict=True):
            name = name if name == family.output else family.prefix + name
            rows = slice(start, start + count) if len(place.names) > 1 else None
            form = Form((ours,), rows=rows)
            if place.transposed:
                form = form._replace(theirs=_transposed, undo=lambda x: (x.T,))
            yield name, form
            start += count
    if config.tie_embeddings:
        yield family.output, Form(("token_embedding.weight",))
    yield from _outputs(config, family)


# Our names within a layer by theirs, beside the modules that have weights.
_DECODER = {
    "": "residual_2", "self_attn": "attention.output", "self_attn.1": "attention.probabilities_dropout",
    "mlp": "feed_forward.down", "mlp.act_fn": "feed_forward.activation", "mlp.down_proj.input": "feed_forward.gated",
}  # fmt: skip
_GPT2 = {
    "": "residual_2", "attn": "attention.output", "attn.1": "attention.probabilities_dropout",
    "attn.resid_dropout": "dropout_1", "ln_2.input": "residual_1", "mlp": "feed_forward.down",
    "mlp.act": "feed_forward.activation", "mlp.dropout": "dropout_2",
}  # fmt: skip


def _outputs(config: ModelConfig, family) -> Iterator[tuple[str, Form]]:
    """The modules' outputs, and those inputs that no module gives out."""
    old = family is gpt2
    layers, inside = ("h", _GPT2) if old else ("layers", _DECODER)
    heads, groups = (config.n_head,), (config.n_kv_head,)
    for place in range(config.n_layer):
        block, layer = f"blocks.{place}", f"{family.prefix}{layers}.{place}"
        for theirs, ours in inside.items():
            yield f"{layer}.{theirs}".rstrip("."), Form((f"{block}.{ours}",))
        attention = f"{layer}.{'attn' if old else 'self_attn'}"
        names = [f"{block}.attention.{name}" for name in ("query", "key", "value")]
        if old:
            yield f"{attention}.c_attn", Form(tuple(names), _merged, _split(config, heads * 3))
        else:
            yield f"{layer}.{_norm_2(config)}.input", Form((f"{block}.residual_1",))
            for theirs, ours, count in zip("qkv", names, (heads, groups, groups), strict=True):
                yield f"{attention}.{theirs}_proj", Form((ours,), _merged, _split(config, count))
        output = f"{attention}.{'c_proj' if old else 'o_proj'}.input"
        yield output, Form((f"{block}.attention.heads",), _merged, _split(config, heads))
    yield from _modules(config, family)
    yield family.prefix.rstrip("."), Form(("final_norm",))
    if old:
        yield f"{family.prefix}drop", Form(("embedding_dropout",))


def _norm_2(config: ModelConfig) -> str:
    return f"{'pre_feedforward' if config.block == 'sandwich' else 'post_attention'}_layernorm"


def _modules(config: ModelConfig, family) -> Iterator[tuple[str, Form]]:
    """The modules with a weight of their own: an output has our weight's name without its kind."""
    named = {"output": "logits" if config.logit_cap is None else "uncapped_logits"}
    if config.embedding_scale != 1:
        named["token_embedding"] = "scaled_embedding"  # Gemma's embedding scales
    for ours, place in family.published_places(config).items():
        module = ours.rpartition(".")[0]
        if len(place.names) > 1 or module.endswith("query_key_value") or not ours.endswith(".weight"):
            continue
        theirs = place.name.rpartition(".")[0]
        theirs = theirs if place.name == family.output else family.prefix + theirs
        form = Form((named.get(module, module),))
        if module.endswith(("query_norm", "key_norm")) and family.model_type != "gemma3_text":
            form = form._replace(theirs=lambda x: x.swapaxes(1, 2), undo=lambda x: (x.swapaxes(1, 2),))
        yield theirs, form
    if config.tie_embeddings:
        yield family.output.rpartition(".")[0], Form((named["output"],))


def translated(dump: Dump, pack: Pack) -> Dump:
    """A dump with the pack's names alone.

    dump: with names of `with_hooked`
    Raises UserError for a tensor that comes under two names with different numbers, for one that has some of its parts
    but not all, and for one of a shape that hooks do not give.
    """
    known = forms(pack)
    whole: dict[str, tuple[str, np.ndarray]] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in dump.tensors.items():
        form = known.get(name)
        for ours, value in [(name, tensor)] if form is None else _undone(name, form, tensor, pack):
            if form is not None and form.rows:
                parts.setdefault(ours, {})[name] = value
            else:
                _place(whole, ours, name, value)
    for ours, found in parts.items():
        names = [name for name, form in known.items() if form.rows and form.ours == (ours,)]
        if absent := [name for name in names if name not in found]:
            raise UserError(
                f"the dump has {next(iter(found))} but not {absent[0]}; both are parts of {ours}, dump them all"
            )
        _place(whole, ours, names[0], np.concatenate([found[name] for name in names]))
    return dump._replace(tensors={name: value for name, (_, value) in whole.items()})


def _undone(name: str, form: Form, tensor: np.ndarray, pack: Pack) -> Iterator[tuple[str, np.ndarray]]:
    """What a tensor says of ours, by name. One that is in our layout already stays as it is."""
    ours = [pack.tensors[each][form.rows] if form.rows else pack.tensors[each] for each in form.ours]
    shape = form.theirs(*ours).shape
    plain = form.undo is Form._field_defaults["undo"] and not form.rows
    if plain or (tensor.shape != shape and len(ours) == 1 and tensor.shape == ours[0].shape):
        return zip(form.ours, (tensor,), strict=True)  # a wrong shape is the check's to tell
    if tensor.shape != shape:
        raise UserError(f"{name} of the dump has shape {list(tensor.shape)}, expected {list(shape)}")
    return zip(form.ours, form.undo(tensor), strict=True)


def _place(whole: dict[str, tuple[str, np.ndarray]], ours: str, name: str, value: np.ndarray):
    before, same = whole.setdefault(ours, (name, value))
    if same is not value and not np.array_equal(same, value, equal_nan=True):
        raise UserError(
            f"the dump has {before} and {name}, which are one tensor, {ours}, with different numbers; leave the one "
            "to compare"
        )
