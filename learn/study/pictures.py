"""Pictures of what formulas hide: pairs that turn like hands of a clock, and who may see whom."""

from math import cos, sin

from markupsafe import Markup, escape

from contract.config import ModelConfig
from numpy_llm.positions import rotary_frequencies

_PLACES = 8  # columns of dials
_CELL, _RADIUS, _LEFT, _TOP = 56, 20, 140, 34
_TOKENS, _DRAWN_WINDOW, _SQUARE = 9, 4, 22


def draw(name: str, config: ModelConfig, tokens: list[str]) -> Markup:
    """The picture called "rotary" or "window" as SVG. tokens: the text's first, as labels"""
    return {"rotary": _rotary, "window": _window}[name](config, tokens)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, label: str, parts: list[str]) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
    return f'<svg class="picture" {size} role="img" aria-label="{escape(label)}">' + "".join(parts) + "</svg>"


def _hand(x: float, y: float, angle: float, kind: str) -> str:
    """A hand of a dial, from its middle; angles grow against the clock, as in mathematics."""
    end = x + _RADIUS * cos(angle), y - _RADIUS * sin(angle)
    return f'<line class="{kind}" x1="{x:.1f}" y1="{y:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'


def _dial(x: float, y: float, hands: list[tuple[float, str]]) -> str:
    """A dial; between two hands, an arc."""
    parts = [f'<circle class="dial" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}"/>']
    if len(hands) == 2:
        first, second = sorted(angle for angle, _ in hands)
        r = _RADIUS * 0.6
        start, end = (f"{x + r * cos(each):.1f},{y - r * sin(each):.1f}" for each in (first, second))
        large = int((second - first) % 6.2832 > 3.1416)
        parts.append(f'<path class="arc" d="M{start}A{r},{r} 0 {large} 0 {end}"/>')
    return "".join([*parts, *(_hand(x, y, *each) for each in hands)])


def _rotary(config: ModelConfig, tokens: list[str]) -> Markup:
    """A row of dials for a fast, a middling and a slow pair; below, hands two places apart, at three places."""
    frequency = rotary_frequencies(config.rotary, config.head_size)
    pairs = sorted({0, len(frequency) // 4, len(frequency) // 2, len(frequency) - 1})[:4]
    width = _LEFT + _CELL * _PLACES
    parts = [_text(0, 20, "place")]
    parts += [_text(_LEFT + _CELL * (t + 0.5), 20, str(t), "middle") for t in range(_PLACES)]
    for row, pair in enumerate(pairs):
        y = _TOP + _CELL * (row + 0.5)
        parts.append(_text(0, y - 3, f"channels {pair}, {pair + len(frequency)}"))
        parts.append(_text(0, y + 13, f"{frequency[pair]:.3g} rad a place"))
        parts += [
            _dial(_LEFT + _CELL * (t + 0.5), y, [(t * frequency[pair], "hand")]) for t in range(_PLACES)
        ]
    top = _TOP + _CELL * len(pairs) + 30
    parts.append(
        _text(0, top, "A query and a key two places apart: wherever they stand, the same angle between them")
    )
    for at, place in enumerate((0, 2, 5)):
        x, y = _LEFT + _CELL * (2.5 * at + 0.5), top + 12 + _CELL / 2
        hands = [(place * frequency[0], "key"), ((place + 2) * frequency[0], "hand")]
        parts += [_dial(x, y, hands), _text(x, y + 34, f"key {place}, query {place + 2}", "middle")]
    label = "Pairs of channels as hands of dials: each place turns them further, the first pairs fastest"
    return Markup(_svg(width, top + _CELL + 30, label, parts))


def _window(config: ModelConfig, tokens: list[str]) -> Markup:
    """A grid of queries and keys for each kind of layer: filled where a query sees a key."""
    kinds = list(dict.fromkeys(config.layer_pattern))
    words = (tokens * _TOKENS)[:_TOKENS] if len(tokens) < 3 else tokens[:_TOKENS]
    size = len(words)
    window = min(_DRAWN_WINDOW, size - 1)
    parts, grid = [], _SQUARE * size
    for at, kind in enumerate(kinds):
        left = 88 + at * (grid + 128)
        title = "all layers" if len(kinds) == 1 else f"{kind} layers"
        if kind == "sliding":
            title += f", drawn with a window of {window}; here {config.window:,}"
        parts.append(_text(left, 14, title))
        for t, word in enumerate(words):
            y = 26 + _SQUARE * t
            parts.append(_text(left - 6, y + 15, word[:10], "end"))
            for s in range(size):
                seen = s <= t and (kind == "full" or s > t - window)
                state = "seen" if seen else "future" if s > t else "past"
                side = f'width="{_SQUARE - 2}" height="{_SQUARE - 2}"'
                parts.append(f'<rect class="{state}" x="{left + _SQUARE * s}" y="{y}" {side}/>')
        parts.append(_text(left, 26 + grid + 16, "key → (each row a query)"))
    width = 88 + len(kinds) * grid + (len(kinds) - 1) * 128 + (150 if "sliding" in kinds else 40)
    label = "Which keys each query sees: filled squares; those above the diagonal lie in its future"
    return Markup(_svg(width, 26 + grid + 26, label, parts))
