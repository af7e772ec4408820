"""A page of a text, coloured where a model is surprised by it."""

from html import escape
from math import exp, log

import numpy as np

from contract.errors import ConfigError

MOST_TOKENS = 200_000  # about 20 MB of page, which a browser still shows
DARKEST = 12  # bits of surprise: one in 4,096

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Surprise: {title}</title>
<style>
body {{ font: 16px/1.7 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff; }}
main {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
b {{ font-weight: inherit; border-radius: 2px; background: rgb(255 96 80 / calc(var(--s) * 1%)); }}
</style></head><body>
<h1>{title}</h1>
<p>{tokens:,} tokens, {bits:.2f} bits each on average. The redder a token, the less the model expected it:
{legend}. Point at one to see its probability.</p>
<main>{text}</main>
</body></html>
"""


def surprise_page(record: dict, texts: list[bytes], tokens: np.ndarray, log_probabilities: np.ndarray) -> str:
    """HTML with every token of a text, the first uncoloured, since nothing stands before it.

    record: what `evaluate` found; texts: the bytes of every id; tokens: int (N,); log_probabilities: float (N - 1,)
    Raises ConfigError for a text too long for a page.
    """
    if len(tokens) > MOST_TOKENS:
        raise ConfigError(
            f"--page shows at most {MOST_TOKENS:,} tokens, and the text has {len(tokens):,}; shorten it"
        )
    legend = " ".join(_coloured(f" {bits} ", bits, f"1 in {2**bits:,}") for bits in range(0, DARKEST + 1, 3))
    spans = [
        escape(text) if value is None else _span(text, value)
        for text, value in _characters(texts, tokens, log_probabilities)
    ]
    return _PAGE.format(
        title=escape(record["text"]),
        tokens=record["tokens"],
        bits=record["nats_per_token"] / log(2),
        legend=f"{legend} bits",
        text="".join(spans),
    )


def _characters(texts: list[bytes], tokens, log_probabilities):
    """Texts with their log-probabilities: tokens, but of parts of one character all together."""
    held, total = b"", 0.0
    for id, value in zip(tokens[:], [None, *log_probabilities.tolist()], strict=True):
        held += texts[id]
        total = None if value is None else (total or 0.0) + value
        try:
            text = held.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                continue
            text = held.decode(errors="replace")
        yield text, total
        held, total = b"", 0.0
    if held:
        yield held.decode(errors="replace"), total


def _span(text: str, log_probability: float) -> str:
    bits = -log_probability / log(2)
    return _coloured(text, bits, f"{100 * exp(log_probability):.3g} %, {bits:.1f} bits")


def _coloured(text: str, bits: float, title: str) -> str:
    share = round(100 * min(1, max(0, bits / DARKEST)))
    return f'<b style="--s:{share}" title="{title}">{escape(text)}</b>'
