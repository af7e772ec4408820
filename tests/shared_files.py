"""Files beside the project's folder that some tests read, and how to have them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
SHAKESPEARE = SHARED / "corpora" / "tinyshakespeare.txt"
CACHE = SHARED / "tiktoken_cache"

needs_corpora = pytest.mark.skipif(
    not SHAKESPEARE.exists(),
    reason="needs ../shared/corpora/tinyshakespeare.txt (curl -L --create-dirs -o that file "
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt)",
)


def require_cache():
    """Skip the test where tiktoken's files of GPT-2 are not there."""
    if not CACHE.exists():
        pytest.skip(
            "needs ../shared/tiktoken_cache (mkdir -p it, then TIKTOKEN_CACHE_DIR=../shared/tiktoken_cache "
            "python -c \"import tiktoken; tiktoken.get_encoding('gpt2')\")"
        )
