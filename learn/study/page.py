"""The study page: one self-contained HTML file, made of one pass, the derivations and the tested source."""

import base64
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from contract.config import ModelConfig
from contract.errors import ConfigError, visible
from contract.weights import parameter_count
from learn.study.chapters import Chapter, chapters_of
from learn.study.inner import Shown, watch_pass
from learn.study.layout import Proved, lay_out, prove
from learn.study.map import draw_map, link
from learn.study.one_pass import LEARNING_RATE, Pass, run_pass
from learn.study.pictures import draw
from learn.study.proof import proof_strip
from learn.study.slider import Sweep, opening, sweeps
from learn.study.source import highlight_css
from learn.study.tensors import MOST
from learn.study.witness import Witness, run_witness
from parity.compare import Row

MAX_BYTES = 5_000_000
MAX_LAYERS = 12  # blocks shown unless they are chosen
MAX_FAILING = 100  # comparisons past their limit that are listed of the other blocks
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


def study_page(subject: Subject, layers: Sequence[int] | None = None) -> str:
    """The page's HTML, which needs no other file and is below `MAX_BYTES`; words from the text are escaped.

    layers: the blocks whose tensors are shown; None: as many as fit
    Raises ConfigError where the chosen blocks do not fit, however little of each tensor is shown.
    """
    config = subject.config
    run = run_pass(config, subject.weights, subject.tokens)
    own = chapters_of(run.flow.nodes, config)
    witness = run_witness({name for chapter in own for name in chapter.functions()}, config)
    moved = sweeps(run)
    chosen = tuple(sorted(set(layers))) if layers else spread(config.n_layer, MAX_LAYERS)
    proved = [prove(chapter, witness) for chapter in own]
    watched = watch_pass(run.showing(chosen, MOST), own)
    for most in (MOST, (8, 16, 64), (4, 8, 32), (2, 8, 16)):
        while True:
            page = _render(
                subject, run.showing(chosen, most), list(zip(own, proved, strict=True)), watched, moved
            )
            size = len(page.encode())
            if size < MAX_BYTES:
                return page
            fewer = min(len(chosen) - 1, int(len(chosen) * MAX_BYTES / size))
            if layers or fewer < 1:
                break
            chosen = spread(config.n_layer, fewer)
    raise ConfigError(
        f"{len(chosen)} blocks make a page of {size / 1e6:.1f} MB, and at most {MAX_BYTES / 1e6:.0f} fit; "
        "choose fewer with --layers"
    )


def spread(count: int, most: int) -> tuple[int, ...]:
    """All blocks, or `most` evenly spaced ones: the first, and the last if there are two."""
    if most >= count:
        return tuple(range(count))
    return tuple(sorted({round(at * (count - 1) / max(1, most - 1)) for at in range(most)}))


def _render(
    subject: Subject, run: Pass, proofs: list[tuple[Chapter, Proved]], watched: Witness, moved: list[Sweep]
) -> str:
    """The page with the tensors that `run` shows. watched: this run's calls"""
    config, own, shown = run.config, [chapter for chapter, _ in proofs], Shown(run)
    chapters = [lay_out(chapter, run, proved, watched, shown) for chapter, proved in proofs]
    failing = _failing(run, chapters)
    tokens = [{"id": int(token), "text": subject.labels[int(token)]} for token in subject.tokens]
    words = [each["text"] for each in tokens[:-1]]
    rows = proof_rows(run)
    return _template().render(
        subject=subject,
        config=config,
        parameters=parameter_count(config),
        inputs=tokens[:-1],
        targets=tokens[1:],
        run=run,
        left_out=left_out(run),
        loss=run.by_hand("activation")["loss"],
        chapters=chapters,
        pictures={each.name: draw(each.picture, config, words) for each in own if each.picture},
        unexplained=_unexplained(run, own),
        map=draw_map(run, own),
        rows=rows,
        strip=proof_strip(rows),
        compared=sum(map(len, run.rows.values())),
        listed=sum(map(len, rows.values())),
        worst={dtype: max(each, key=lambda row: row.error / row.limit) for dtype, each in run.rows.items()},
        failing=failing,
        fails={(each["dtype"], *each["row"][:2]): each for each in failing},
        adam_weights=sum(kind == "optimizer" for kind, _ in run.views) // 3,
        moved=moved,
        opening=opening(moved),
        learning_rate=LEARNING_RATE,
        data=Markup(_json(_data(subject, run, moved, chapters))),
        **_files(),
    )


def left_out(run: Pass) -> str:
    """What of this model the page does not show, in a sentence; "" if it shows all."""
    hidden = run.config.n_layer - len(run.layers)
    said = []
    if hidden:
        shown = ", ".join(map(str, run.layers))
        said.append(f"of {run.config.n_layer} blocks the tensors of {shown} (choose others with --layers)")
    if run.most != MOST:
        said.append("of each tensor at most {} heads, {} rows and {} columns".format(*run.most))
    return f"To stay below {MAX_BYTES / 1e6:.0f} MB the page shows {' and '.join(said)}" if said else ""


def proof_rows(run: Pass) -> dict[str, list[Row]]:
    """The comparisons that the proof lists: of what is shown, and of other blocks those that fail, the worst first."""
    found = {}
    for dtype, rows in run.rows.items():
        others = [row for row in rows if not run.shows(row.name)]
        worst = sorted((row for row in others if not row.holds), key=lambda row: -row.error / row.limit)
        kept = {row[:2] for row in worst[:MAX_FAILING]}
        found[dtype] = [row for row in rows if run.shows(row.name) or row[:2] in kept]
    return found


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
    found = [(dtype, row) for dtype, rows in proof_rows(run).items() for row in rows if not row.holds]
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
    views = {view.key: view for chapter in chapters for view in (*chapter["views"], *chapter["inner"])}
    named = {int(token) for token in subject.tokens}
    for view in views.values():
        for axis, indices in zip(view.axes, (view.rows, view.columns), strict=True):
            named |= set(indices) if axis == "V" else set()
    return {
        "inputs": [int(token) for token in subject.tokens[:-1]],
        "labels": {token: subject.labels[token] for token in sorted(named) if token < len(subject.labels)},
        "tensors": {key: view.as_json() for key, view in views.items()},
        "sweeps": [each._asdict() for each in moved],
        "most": run.most,
    }
