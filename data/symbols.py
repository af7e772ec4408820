"""The character for each byte that byte-level vocabularies are written in."""


def _symbols() -> list[str]:
    """Itself if the byte is printable, else one from U+0100 on."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


SYMBOLS = _symbols()
BYTE_OF = {symbol: byte for byte, symbol in enumerate(SYMBOLS)}
