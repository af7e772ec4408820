"""The study page: one self-contained HTML file, made of one pass, the derivations and the tested source."""

import base64
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from contract.config import ModelConfig
from contract.errors import visible
from contract.weights import parameter_count
from learn.study import tensors
from learn.study.chapters import Chapter, chapters_of
from learn.study.layout import lay_out
from learn.study.map import draw_map, link
from learn.study.one_pass import LEARNING_RATE, Pass, run_pass
from learn.study.proof import proof_strip
from learn.study.slider import Sweep, sweeps
from learn.study.source import highlight_css
from learn.study.witness import run_witness

_HERE = Path(__file__).parent


class Subject(NamedTuple):
    """What a page is about.

    title: where the weights come from, in words; config: the model; weights: by name
    tokens: int (T + 1,); labels: the text of every token of the vocabulary
    text: as given; note: what was omitted of it, or ""
    """

    title: str
    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    tokens: np.ndarray
    labels: list[str]
    text: str
    note: str = ""


def study_page(subject: Subject) -> str:
    """The page's HTML, which needs no other file; every word that comes from the text is escaped."""
    config = subject.config
    run = run_pass(config, subject.weights, subject.tokens)
    moved = sweeps(run)
    own = chapters_of(run.flow.nodes, config)
    witness = run_witness({name for chapter in own for name in chapter.functions()}, config)
    chapters = [lay_out(chapter, run, witness) for chapter in own]
    failing = _failing(run, chapters)
    tokens = [{"id": int(token), "text": subject.labels[int(token)]} for token in subject.tokens]
    return _template().render(
        subject=subject,
        config=config,
        parameters=parameter_count(config),
        inputs=tokens[:-1],
        targets=tokens[1:],
        run=run,
        loss=run.by_hand("activation")["loss"],
        chapters=chapters,
        unexplained=_unexplained(run, own),
        map=draw_map(run, own),
        strip=proof_strip(run.rows),
        worst={dtype: max(rows, key=lambda row: row.error / row.limit) for dtype, rows in run.rows.items()},
        failing=failing,
        fails={(each["dtype"], *each["row"][:2]): each for each in failing},
        adam_weights=sum(kind == "optimizer" for kind, _ in run.views) // 3,
        moved=moved,
        learning_rate=LEARNING_RATE,
        max_rows=tensors.MAX_ROWS,
        max_columns=tensors.MAX_COLUMNS,
        max_panels=tensors.MAX_PANELS,
        data=Markup(_json(_data(subject, run, moved, chapters))),
        **_files(),
    )


def _unexplained(run: Pass, chapters: list[Chapter]) -> list[str]:
    """The operations of a pass whose code no chapter shows, in words; dropout is off in it."""
    shown = {name.rpartition(".")[2] for chapter in chapters for name in chapter.functions()}
    found = dict.fromkeys(node.operation for node in run.flow.nodes if node.operation != "dropout")
    return [name.replace("_", " ") for name in found if f"{name}_forward" not in shown and name not in shown]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "visible": visible}
    return environment.get_template("template.html")


def _files() -> dict[str, str]:
    """What stands in the page as it is: styles, script and the script's hash, which alone may run."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    light, dark = highlight_css()
    return {
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "light": Markup(light),
        "dark": Markup(dark),
        "script": Markup(script),
        "script_hash": base64.b64encode(sha256(script.encode()).digest()).decode(),
    }


def number(value: float) -> str:
    """A number with the digits that tell float32 values apart, as the page's script writes it too."""
    return "0" if value == 0 else f"{value:.9g}"


def _failing(run: Pass, chapters: list[dict]) -> list[dict]:
    """What differs by more than its limit, the worst first, with a link to where the page shows it."""
    home = {view.key: chapter["name"] for chapter in reversed(chapters) for view in chapter["views"]}
    found = [(dtype, row) for dtype, rows in run.rows.items() for row in rows if not row.holds]
    found.sort(key=lambda each: each[1].error / each[1].limit, reverse=True)
    failing = []
    for place, (dtype, row) in enumerate(found, 1):
        key = f"{row.quantity} {row.name}"
        address = link(home[key], key) if key in home else f"#fails-{place}"  # a row of the proof's table
        failing.append({"dtype": dtype, "row": row, "link": address, "id": f"fails-{place}"})
    return failing


def _json(value) -> str:
    """JSON that can stand inside a script element: no character that HTML would read."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _data(subject: Subject, run: Pass, moved: list[Sweep], chapters: list[dict]) -> dict:
    """What the page's script reads."""
    views = {view.key: view for chapter in chapters for view in chapter["views"]}
    named = {int(token) for token in subject.tokens}
    for view in views.values():
        for axis, indices in zip(view.axes, (view.rows, view.columns), strict=True):
            named |= set(indices) if axis == "V" else set()
    return {
        "inputs": [int(token) for token in subject.tokens[:-1]],
        "labels": {token: subject.labels[token] for token in sorted(named) if token < len(subject.labels)},
        "tensors": {key: view.as_json() for key, view in views.items()},
        "sweeps": [each._asdict() for each in moved],
        "most": [tensors.MAX_PANELS, tensors.MAX_ROWS, tensors.MAX_COLUMNS],
    }
