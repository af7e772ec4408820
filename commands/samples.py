"""Generated texts on stdout, while they grow."""

import sys
from collections.abc import Iterable

from rich.text import Text

from commands import console
from contract.errors import visible


def write_samples(prompt: str, pieces: Iterable[tuple[int, str]], numbers: range, total: int):
    """Write the prompt and what continues it, a text for each of the samples `numbers`, as the texts grow.

    pieces: (place of the text in `numbers`, what is added to it); total: how many samples there are in all

    A single text is written piece by piece. Several are shown all at once on a terminal, and whole under their headings
    at the end. Elsewhere they follow each other without headings: the first as it grows, the others once all are done.
    """
    if total > 1 and sys.stdout.isatty():
        _show_all(prompt, pieces, [f"--- sample {number + 1} of {total} ---" for number in numbers])
    else:
        _write_in_order(prompt, pieces, len(numbers))


def _write_in_order(prompt, pieces, count):
    others = [""] * (count - 1)
    console.write(prompt)
    for number, piece in pieces:
        if number == 0:
            console.write(piece)
        else:
            others[number - 1] += piece
    console.write("\n")
    for text in others:
        console.write(f"{prompt}{text}\n")


def _show_all(prompt, pieces, headings):
    texts = [prompt] * len(headings)
    try:
        with console.live_view(_Growing(headings, texts)):
            for number, piece in pieces:
                texts[number] += piece
    finally:  # also what an interruption leaves unfinished
        for heading, text in zip(headings, texts, strict=True):
            console.show(heading)
            console.write(f"{text}\n")


class _Growing:
    """The end of each text under its heading, as much as fits the terminal.

    texts: by number, as they are at the time of drawing
    """

    def __init__(self, headings: list[str], texts: list[str]):
        self.headings, self.texts = headings, texts

    def __rich_console__(self, terminal, options):
        height, width = options.size.height - 1, options.max_width
        shown = max(1, min(len(self.texts), height // 2))
        for heading, text in list(zip(self.headings, self.texts, strict=True))[:shown]:
            yield Text(heading)
            yield from _last_lines(visible(text), max(0, height // shown - 1), width, terminal)


def _last_lines(text: str, count: int, width: int, terminal) -> list[Text]:
    # Wrapping costs time, so it begins late in a long text; at steps, lest the lines jump at every piece.
    room = count * width
    start = max(0, len(text) // room - 1) * room if room else 0
    return Text(text[start:]).wrap(terminal, width)[-count:] if count else []
