"""The map of the page: the model's dataflow as recorded, in lanes of rows of nodes."""

from operations.dataflow import Dataflow
from study.chapters import Chapter, place
from study.one_pass import Pass


def draw_map(run: Pass, chapters: list[Chapter]) -> dict[str, list]:
    """Lanes of rows of nodes: what comes before the blocks, each block, and what comes after them."""
    rows = _rows(run, chapters)
    flow = Dataflow(run.flow.nodes, {name for _, names in rows for name in names}.__contains__, None)
    lanes: dict[str, list[dict]] = {}
    found = {"before": [], "blocks": [], "after": []}
    above: list[str] = []
    for chapter, names in rows:
        block = names[0].removesuffix(place(names[0]))
        key = block or ("after" if found["blocks"] else "before")
        if key not in lanes:
            lanes[key], above = [], []
            if block:
                found["blocks"].append(lanes[key])
        reads = {name: _reads(flow, chapter, name, block, above) for name in names}
        lanes[key].append(
            {
                "nodes": [_node(run, chapter, name, reads[name]) for name in names],
                "forked": len(above) > 1 and any(reads.values()),
            }
        )
        above = names
    return found | {key: lanes[key] for key in ("before", "after")}


def _rows(run: Pass, chapters: list[Chapter]) -> list[tuple[Chapter, list[str]]]:
    """Each operation that a chapter explains with the tensors that it makes, in dataflow order."""
    homes: dict[int, list[Chapter]] = {}
    for chapter in chapters:
        for node in chapter.nodes(run.flow.nodes):
            homes.setdefault(id(node), []).append(chapter)
    return [
        (chapter, chapter.tensors(node)) for node in run.flow.nodes for chapter in homes.get(id(node), ())
    ]


def _reads(flow: Dataflow, chapter: Chapter, name: str, block: str, above: list[str]) -> list[str]:
    """Where a node reads tensors that are not just above it: their names, "lane" of what enters the block."""
    if not above or chapter.of_inputs:
        return []
    sources = [each for each in flow.inputs(name) if each in flow.makers]
    return ["lane" if not each.startswith(block) else each for each in sources if above != [each]]


def _node(run: Pass, chapter: Chapter, name: str, reads: list[str]) -> dict:
    forward, gradient = run.views["activation", name], run.views.get(("gradient", name))
    return {
        "link": link(chapter.name, forward.key),
        "title": chapter.labels.get(place(name), chapter.title),
        "name": name,
        "reads": " ".join(reads),
        "forward": forward.statistics[3],
        "gradient": gradient.statistics[3] if gradient else None,
    }


def link(chapter: str, key: str) -> str:
    """The address of a tensor within the page."""
    return f"#{chapter}:{key.replace(' ', '~')}"
