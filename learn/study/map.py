"""The map of the page: the model's dataflow as recorded, in lanes of rows of nodes."""

from learn.study.chapters import Chapter, block_of, place
from learn.study.one_pass import Pass
from operations.dataflow import Dataflow


def draw_map(run: Pass, chapters: list[Chapter]) -> dict[str, list]:
    """Lanes of rows of nodes: what comes before the blocks, each block, and what comes after them."""
    nodes = run.flow.nodes
    homes = {id(node): [] for node in nodes}
    for chapter in (each for each in chapters if not each.at):
        for node in chapter.nodes(nodes):
            homes[id(node)].append(chapter)
    shown = {name for node in nodes for chapter in homes[id(node)] for name in chapter.tensors(node)}
    flow = Dataflow(nodes, shown.__contains__, None)
    lanes: dict[str, list[dict]] = {}
    for node in (each for each in nodes if run.shows(each.results[0])):
        block = block_of(node)
        lane = lanes.setdefault(block or ("after" if len(lanes) > 1 else "before"), [])
        for chapter in homes[id(node)]:
            lane.append(_row(run, flow, chapter, chapter.tensors(node), block, lane))
    before, after = lanes.pop("before"), lanes.pop("after")
    blocks = [
        {"number": number, "rows": rows} for number, rows in zip(run.layers, lanes.values(), strict=True)
    ]
    return {"before": before, "blocks": blocks, "after": after}


def _row(run: Pass, flow: Dataflow, chapter: Chapter, names: list[str], block: str, lane: list[dict]) -> dict:
    """The tensors that an operation makes; a tensor just above the row needs no line to it."""
    above = [node["name"] for node in lane[-1]["nodes"]] if lane else []
    nodes, joined = [], False
    for name in names:
        sources = flow.inputs(name) if above and not chapter.of_inputs else []
        joined |= len(above) == 1 and above[0] in sources
        reads = [
            each if each.startswith(block) else "lane"  # what enters the block
            for each in sources
            if each in flow.makers and above != [each]
        ]
        forward, gradient = run.views["activation", name], run.views.get(("gradient", name))
        nodes.append(
            {
                "link": link(chapter.name, forward.key),
                "title": chapter.labels.get(place(name), chapter.title),
                "name": name,
                "reads": " ".join(reads),
                "forward": forward.statistics[3],
                "gradient": gradient.statistics[3] if gradient else None,
            }
        )
    return {"nodes": nodes, "forked": not joined and any(node["reads"] for node in nodes)}


def link(chapter: str, key: str) -> str:
    """The address of a tensor within the page."""
    return f"#{chapter}:{key.replace(' ', '~')}"
