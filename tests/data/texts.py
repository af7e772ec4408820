"""Texts that tokenizers and streams find hard, and what an error about one must look like."""

from hypothesis import strategies as st

# Everything that the pattern, Python and UTF-8 see differently, and pieces of contractions.
NASTY = [
    *" \t\n\r'",
    *["\r\n", "  ", "\n\n", "'s", "'re", "'t", "'ll", "don't", " a", "it's "],
    *["abc", "l", "e", "S", "é", "e\u0301"],
    *["0", "42", "²", "½", "٣", "-", "...", "!", "_", "<|endoftext|>", "©", "’s", "。", "，"],
    *["中", "文字", "ひら", "カタ", "ー", "한국", "ไทย", "👍🏽", "\U0001d54f", "\U000e0001", "\ufffd"],
    *["\x01", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x7f", "\x85", "\xa0", "\xad"],
    *["\u1680", "\u180e", "\u2007", "\u200b", "\u2028", "\u2029", "\u202f", "\u3000", "\ufeff"],
]
nasty_texts = st.lists(st.sampled_from(NASTY) | st.characters(exclude_categories=["Cs"]), max_size=60).map(
    lambda parts: "x" + "".join(parts).replace("\0", "")
)


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def one_line(error, *words):
    """The message of an error that is a single line and names all of `words`."""
    message = str(error.value)
    assert "\n" not in message
    assert message == message.strip() != ""
    for word in words:
        assert str(word) in message
    return message
