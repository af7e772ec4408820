"""The proof strip: the worst error of every tensor on a log scale, both precisions at a glance."""

from math import log10

from parity.compare import Row

MIN_POWER, MAX_POWER = -17, -3  # of ten, at the ends; equal tensors stand left of the first
# From left to right in percent, so that the picture fits any width; from top to bottom in pixels.
_EQUAL, _START, _END, _TITLE, _LANE = 3, 8, 97, 18, 48
KINDS = {
    "activation": "activations",
    "gradient": "gradients",
    "weight gradient": "weight gradients",
    "optimizer": "Adam's step",
}


def proof_strip(rows: dict[str, list[Row]]) -> dict:
    """Where everything of the picture stands, for the template to draw.

    rows: by precision
    returns: height, ticks, and a lane for each precision and kind, with its dots and its limit
    """
    lanes = []
    for dtype, compared in rows.items():
        for kind in KINDS:
            own = [row for row in compared if row.quantity == kind]
            if not own:
                continue
            y = 4 + _LANE * len(lanes)
            dots = [
                {
                    "x": _x(row.error),
                    # Spread over the lane, so that equal errors do not hide each other.
                    "y": round(y + _TITLE + 5 + (place * 7) % 20, 1),
                    "row": row,
                }
                for place, row in enumerate(own)
            ]
            lanes.append(
                {
                    "y": y,
                    "title": f"{KINDS[kind]}, {dtype}",
                    "dtype": dtype,
                    "dots": dots,
                    "limit_x": _x(own[0].limit),
                    "count": len(own),
                }
            )
    height = 4 + _LANE * len(lanes) + 24
    ticks = [
        {"x": _x(10.0**power), "label": f"1e{power}"} for power in range(MIN_POWER + 1, MAX_POWER + 1, 2)
    ]
    return {
        "height": height, "lane": _LANE, "title": _TITLE, "lanes": lanes, "ticks": ticks,
    }  # fmt: skip


def _x(error: float) -> float:
    """The place of an error from left to right, in percent."""
    if error <= 0:
        return _EQUAL
    power = min(max(log10(error), MIN_POWER), MAX_POWER)
    return round(_START + (power - MIN_POWER) / (MAX_POWER - MIN_POWER) * (_END - _START), 2)
