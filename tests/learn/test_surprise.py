"""The page that shows where a model is surprised."""

import re
from html import unescape
from math import log

import numpy as np
import pytest

from contract.errors import ConfigError
from learn.surprise import DARKEST, MOST_TOKENS, surprise_page

RECORD = {"text": "a <b>.txt", "tokens": 5, "nats_per_token": log(2)}


def page_of(pieces, bits):
    values = -log(2) * np.array(bits, float)
    return surprise_page(RECORD, pieces, np.arange(len(pieces)), values)


def shown(page):
    return re.search("<main>(.*)</main>", page, re.DOTALL)[1]


def test_the_text_is_whole_and_coloured_by_surprise():
    """Characters that several tokens make come out whole, with the surprise of all; nothing is taken for markup."""
    pieces = [b"<p>", b" a", "é".encode()[:1], "é".encode()[1:], b"\n", b"\xff"]
    page = page_of(pieces, [3, 1, 2, 0, 40])
    main = shown(page)
    assert unescape(re.sub("<[^>]*>", "", main)) == "<p> aé\n\ufffd"
    assert re.findall("--s:(\\d+)", main) == [str(round(100 * bits / DARKEST)) for bits in (3, 3, 0, 12)]
    assert 'title="12.5 %, 3.0 bits"' in main
    assert "a &lt;b&gt;.txt" in page


def test_a_text_too_long_for_a_page():
    with pytest.raises(ConfigError, match=f"at most {MOST_TOKENS:,} tokens, and the text has 200,001"):
        surprise_page(RECORD, [b"a"], np.zeros(MOST_TOKENS + 1, int), np.zeros(MOST_TOKENS))
