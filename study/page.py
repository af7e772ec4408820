"""The study page: one self-contained HTML file, made of a run, the derivations and the tested source."""

import base64
import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from latex2mathml.converter import convert
from markupsafe import Markup, escape

from contract.config import ModelConfig
from contract.errors import visible
from contract.weights import Weights, parameter_count
from numpy_llm.adam import CHUNK
from study.derivations import SIDES, Operation, check, every_function, fits, operations_of, shapes
from study.proof import proof_strip
from study.slider import sweeps
from study.source import highlight_css, highlighted
from study.tensors import (
    ADAM_WEIGHTS,
    LEARNING_RATE,
    MOST_COLUMNS,
    MOST_PANELS,
    MOST_ROWS,
    Run,
    View,
    run_twins,
)
from study.witness import Witness, run_witness

_HERE = Path(__file__).parent
_LONG = 100  # characters of LaTeX
SIDE_TITLES = {"forward": "NumPy, forward", "backward": "NumPy, backward", "torch": "PyTorch, autograd"}
# The places of a block in the order of dataflow: operation, and the tensor that it makes; some side by side.
BLOCK_PLACES = (
    ("layer_norm", "norm_1"),
    ("query_key_value", ("attention.query", "attention.key", "attention.value")),
    ("scores", "attention.scores"),
    ("mask", "attention.scores"),
    ("softmax", "attention.probabilities"),
    ("weighted_sum", "attention.heads"),
    ("output_projection", "attention.output"),
    ("residual", "residual_1"),
    ("layer_norm", "norm_2"),
    ("feed_forward", "feed_forward.up"),
    ("activation", "feed_forward.activation"),
    ("feed_forward", "feed_forward.down"),
    ("residual", "residual_2"),
)
# Where a place reads a tensor that does not stand just above it: "" is the stream as it enters the block.
EDGES = {
    ("scores", "attention.scores"): ("attention.query", "attention.key"),
    ("weighted_sum", "attention.heads"): ("attention.value",),
    ("residual", "residual_1"): ("",),
    ("residual", "residual_2"): ("residual_1",),
}
_SHAPES = {
    "query": "B, H, T, D", "key": "B, H, T, D", "value": "B, H, T, D", "heads": "B, H, T, D",
    "scores": "B, H, T, T", "probabilities": "B, H, T, T", "probabilities_dropout": "B, H, T, T",
    "up": "B, T, F", "activation": "B, T, F", "logits": "B, T, V", "loss": "",
    "query_key_value.weight": "3 C, C", "query_key_value.bias": "3 C", "up.weight": "F, C", "up.bias": "F",
    "down.weight": "C, F", "down.bias": "C", "attention.output.weight": "C, C", "attention.output.bias": "C",
    "token_embedding.weight": "V, C", "position_embedding.weight": "context_length, C",
    "output.weight": "V, C", "norm_1.weight": "C", "norm_2.weight": "C", "final_norm.weight": "C",
    "norm_1.bias": "C", "norm_2.bias": "C", "final_norm.bias": "C",
}  # fmt: skip


class Subject(NamedTuple):
    """What a page is about.

    title: where the weights come from, in words; config: the model; weights: by name
    tokens: int (T + 1,); labels: the text of every token of the vocabulary
    text: as given; note: what was left out of it, or ""
    """

    title: str
    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    tokens: np.ndarray
    labels: list[str]
    text: str
    note: str = ""


def study_page(subject: Subject) -> str:
    """The page's HTML, which needs nothing beside itself; every word that comes from the text is escaped."""
    config = subject.config
    run = run_twins(config, subject.weights, subject.tokens)
    weights = Weights.zeros(config, "float64")
    for name, weight in weights.items():
        weight[...] = subject.weights[name]
    moved = sweeps(config, weights, subject.tokens)
    witness = run_witness(every_function(), activation=config.activation, position=config.position)
    sizes = _sizes(config, len(subject.tokens) - 1) | {"N": min(CHUNK, weights.decaying)}
    chapters = [_chapter(operation, config, run, witness, sizes) for operation in operations_of(config)]
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    light, dark = highlight_css()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["visible"] = visible
    failing = _failing(run, chapters)
    return environment.get_template("template.html").render(
        subject=subject,
        config=config,
        parameters=parameter_count(config),
        inputs=[_token(subject, each) for each in subject.tokens[:-1]],
        targets=[_token(subject, each) for each in subject.tokens[1:]],
        loss=run.loss,
        chapters=chapters,
        map=_map(config, run, {each["name"]: each["title"] for each in chapters}),
        strip=proof_strip(run.rows),
        worst={dtype: max(rows, key=lambda row: row.error / row.limit) for dtype, rows in run.rows.items()},
        rows=run.rows,
        failing=failing,
        links={(each["dtype"], each["row"].quantity, each["row"].name): each["link"] for each in failing},
        fail_ids={(each["dtype"], each["row"].quantity, each["row"].name): each["id"] for each in failing},
        adam_weights=len(ADAM_WEIGHTS),
        moved=moved,
        learning_rate=LEARNING_RATE,
        most_rows=MOST_ROWS,
        most_columns=MOST_COLUMNS,
        most_panels=MOST_PANELS,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        light=Markup(light),
        dark=Markup(dark),
        script=Markup(script),
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
        data=Markup(_json(_data(subject, run, moved, chapters))),
    )


def number(value: float) -> str:
    """A number with the digits that tell float32 values apart, as the page's script writes it too."""
    return "0" if value == 0 else f"{value:.9g}"


def _failing(run: Run, chapters: list[dict]) -> list[dict]:
    """What differs by more than its limit, the worst first, with a link to where the page shows it."""
    home = {key: chapter["name"] for chapter in reversed(chapters) for key in chapter["keys"]}
    found = [(dtype, row) for dtype, rows in run.rows.items() for row in rows if not row.holds]
    found.sort(key=lambda each: each[1].error / each[1].limit, reverse=True)
    failing = []
    for place, (dtype, row) in enumerate(found, 1):
        key = f"{row.quantity} {row.name}"
        link = _link(home[key], key) if key in home else f"#fails-{place}"  # a row of the proof's table
        failing.append({"dtype": dtype, "row": row, "link": link, "id": f"fails-{place}"})
    return failing


def _link(chapter: str, key: str) -> str:
    return f"#{chapter}:{key.replace(' ', '~')}"


def _token(subject: Subject, token: int) -> dict:
    return {"id": int(token), "text": subject.labels[int(token)]}


def _json(value) -> str:
    """JSON that can stand inside a script element: no character that HTML would read."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _data(subject: Subject, run: Run, moved, chapters) -> dict:
    shown = {key for chapter in chapters for key in chapter["keys"]}
    needed = [view for view in run.views.values() if f"{view.kind} {view.name}" in shown]
    vocabulary = {
        token
        for view in needed
        for axis, places in (("V", view.rows), ("V", view.columns))
        if axis in axis_names(view)
        for token in places
        if token < len(subject.labels)
    }
    vocabulary |= {int(token) for token in subject.tokens}
    return {
        "inputs": [int(token) for token in subject.tokens[:-1]],
        "labels": {token: subject.labels[token] for token in sorted(vocabulary)},
        "tensors": {
            f"{view.kind} {view.name}": view.as_json() | {"axes": axis_names(view)} for view in needed
        },
        "sweeps": [each._asdict() for each in moved],
        "most": [MOST_PANELS, MOST_ROWS, MOST_COLUMNS],
    }


def axis_names(view: View) -> list[str]:
    """What the rows and columns of a view count: dimension letters, "" where there is none."""
    letters = shape_letters(view.name).split(", ")
    if view.name.startswith("blocks.0") and letters == [""]:
        letters = []
    return (["", "", *letters])[-2:]


def shape_letters(name: str) -> str:
    """The shape of a traced tensor or weight in dimension letters, such as "B, T, C"."""
    name = name.rpartition(" ")[2]
    parts = name.split(".")
    for length in (3, 2, 1):
        found = _SHAPES.get(".".join(parts[-length:]))
        if found is not None:
            return found
    return "B, T, C"


# An operation's chapter


def _sizes(config: ModelConfig, T: int) -> dict[str, int]:
    """This run's number for each dimension letter, as they occur in shapes."""
    return {
        "B": 1, "T": T, "B T": T, "C": config.d_model, "3 C": 3 * config.d_model, "H": config.n_head,
        "D": config.head_size, "F": config.d_ff, "V": config.vocab_size, "1": 1,
        "context_length": config.context_length,
    }  # fmt: skip


def _chapter(
    operation: Operation, config: ModelConfig, run: Run, witness: Witness, sizes: dict[str, int]
) -> dict:
    keys = _keys(operation, config, run)
    letters = shapes(operation, witness)
    errors = check(operation, witness)
    shown = [pair for pair in zip(operation.steps, errors, strict=True) if fits(pair[0].needs, config)]
    steps = [_step(operation, step, place, error) for place, (step, error) in enumerate(shown, 1)]
    used = {name for step, _ in shown for name in step.formula.symbols}
    columns = [_column(operation, side, config, steps) for side in SIDES]
    tensors = [_tensor_row(run, _split(key)) for key in keys]
    return {
        "name": operation.name,
        "title": operation.title,
        "summary": operation.summary,
        "symbols": [
            {
                "math": math(symbol.latex),
                "code": symbol.code,
                "means": symbol.means,
                "letters": letters[name],
                "numbers": " × ".join(str(sizes.get(each, each)) for each in letters[name].split(", ")),
            }
            for name, symbol in operation.symbols.items()
            if name in used
        ],
        "steps": steps,
        "columns": [column for column in columns if column["excerpts"]],
        "keys": keys,
        "tensors": tensors,
        "failing": sum(bool(each["fails"]) for each in tensors),
        "tied": config.tie_embeddings,
        "worst": max((run.views[_split(key)].row.error for key in keys), default=0.0),
    }


def _split(key: str) -> tuple[str, str]:
    for kind in ("weight gradient", "activation", "gradient", "optimizer"):
        if key.startswith(f"{kind} "):
            return kind, key.removeprefix(f"{kind} ")
    raise KeyError(key)


def _keys(operation: Operation, config: ModelConfig, run: Run) -> list[str]:
    """The tensors of an operation, block by block: what it makes, its gradient, its weights' gradients."""
    blocks = [f"blocks.{layer}" for layer in range(config.n_layer)] if operation.in_blocks else [""]
    same = {"output.weight": "token_embedding.weight"} if config.tie_embeddings else {}
    weights = [same.get(name, name) for name in operation.weights]
    wanted = [
        (kind, name.replace("{block}", block))
        for block in blocks
        for kind, names in (
            ("activation", operation.activations),
            ("gradient", operation.activations),
            ("weight gradient", weights),
        )
        for name in names
    ]
    if operation.name == "adam":
        wanted = [key for key in run.views if key[0] == "optimizer"]
    return [" ".join(key) for key in wanted if key in run.views]


def _step(operation: Operation, step, place: int, error: float) -> dict:
    return {
        "id": f"{operation.name}-step-{place}",
        "number": place,
        "side": step.side,
        "says": _prose(step.says),
        "maths": [_line(latex) for latex in step.formula.latex(operation.looks)],
        "error": error,
        "derivative": "partial(" in step.formula.text,
        "fragments": {side: step.fragments(side) for side in SIDES},
        "targets": [],  # filled when the code is laid out
        "twins": [],  # PyTorch's lines, the same way
    }


def _prose(text: str) -> Markup:
    """Text in which x[j] is set as an index."""
    return Markup(re.sub(r"\b(\w+)\[(\w+)\]", r"<var>\1<sub>\2</sub></var>", str(escape(text))))


def _line(latex: str) -> list[Markup]:
    """A line of a formula: in two parts where it is long, so that a narrow window can break it before the =."""
    left, equals, right = latex.partition(" = ")
    parts = [left, f"= {right}"] if equals and len(latex) > _LONG else [latex]
    return [math(part, display=True) for part in parts]


def math(latex: str, *, display: bool = False) -> Markup:
    """LaTeX as MathML; the LaTeX stands with it for who cannot see it."""
    mathml = convert(latex, display="block" if display else "inline")
    return Markup(mathml.replace("<math ", f'<math alttext="{escape(latex)}" ', 1))


def _column(operation: Operation, side: str, config: ModelConfig, steps: list[dict]) -> dict:
    excerpts = []
    for shown in operation.excerpts(side, config):
        lines = []
        for number_, html in highlighted(shown):
            line_id = f"{operation.name}-{shown.path.replace('/', '-').removesuffix('.py')}-L{number_}"
            own = [
                step for step in steps
                if any(fragment in dict(shown.lines)[number_] for fragment in step["fragments"][side])
            ]  # fmt: skip
            line = {"id": line_id, "number": number_, "html": Markup(html), "indent": _indent(html)}
            for step in own:
                step["twins" if side == "torch" else "targets"].append(line | {"html": Markup(html.lstrip())})
            lines.append(line | {"steps": own})
        excerpts.append({"path": shown.path, "function": shown.function, "lines": lines})
    title = "PyTorch, torch.optim" if side == "torch" and operation.name == "adam" else SIDE_TITLES[side]
    return {"side": side, "title": title, "excerpts": excerpts}


def _indent(html: str) -> int:
    return len(html) - len(html.lstrip())


def _tensor_row(run: Run, key: tuple[str, str]) -> dict:
    view = run.views[key]
    fails = [
        dtype
        for dtype, rows in run.rows.items()
        if any((row.quantity, row.name) == key and not row.holds for row in rows)
    ]
    places = [view.panels, view.rows, view.columns]
    axes = (1, 1, 1, *view.shape)[-3:]
    names = ("heads", "rows", "columns")
    left_out = [
        f"{len(shown)} of {size} {name}"
        for shown, size, name in zip(places, axes, names, strict=True)
        if len(shown) < size
    ]
    letters = shape_letters(view.name)
    return {
        "key": f"{view.kind} {view.name}",
        "name": view.name,
        "kind": view.kind,
        "letters": letters,
        "shape": " × ".join(map(str, view.shape)) or "1 number",
        "left_out": ", ".join(left_out),
        "row": view.row,
        "fails": " and ".join(fails),
        "statistics": view.statistics,
    }


# The map


def _map(config: ModelConfig, run: Run, titles: dict[str, str]) -> dict:
    """Lanes of rows of nodes: what stands before the blocks, each block, and what comes after them."""
    activation = "relu" if config.activation == "relu" else "gelu"

    def block(layer):
        for operation, names in BLOCK_PLACES:
            operation = activation if operation == "activation" else operation
            names = (names,) if isinstance(names, str) else names
            yield [_node(run, titles, operation, name, f"blocks.{layer}.") for name in names]

    return {
        "before": [
            [_node(run, titles, "embedding", "token_embedding")],
            [_node(run, titles, "position", "embedding")],
        ],
        "blocks": [list(block(layer)) for layer in range(config.n_layer)],
        "after": [
            [_node(run, titles, "final_norm", "final_norm")],
            [_node(run, titles, "logits", "logits")],
            [_node(run, titles, "cross_entropy", "loss")],
        ],
    }


def _node(run: Run, titles: dict[str, str], operation: str, place: str, block: str = "") -> dict:
    name = block + place
    forward, gradient = run.views["activation", name], run.views.get(("gradient", name))
    title = titles[operation]
    if operation == "feed_forward":
        title += ", wide" if name.endswith("up") else ", narrow"
    if operation == "query_key_value":
        title = place.rpartition(".")[2].capitalize()
    return {
        "link": _link(operation, f"activation {name}"),
        "title": title,
        "name": name,
        "reads": " ".join(
            block + source if source else "lane" for source in EDGES.get((operation, place), ())
        ),
        "forward": forward.statistics[3],
        "gradient": gradient.statistics[3] if gradient else None,
    }
