"""Tokenizers that several test files need."""

from unittest import mock

import numpy as np
import pytest

from data.tokenizer_training import train_tokenizer
from data.tokenizers import open_tokenizer
from tests.data.texts import NASTY
from tests.shared_files import CACHE, require_cache


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="session")
def ranks(folder):
    """A tokenizer with merges across everything nasty, so that a wrong cut loses a merge."""
    rng = np.random.default_rng(0)
    path = folder / "training.txt"
    path.write_bytes("".join(rng.choice(NASTY, 20_000)).encode())
    return train_tokenizer(path, 2000)


@pytest.fixture(scope="session")
def gpt2():
    require_cache()
    with mock.patch.dict("os.environ", TIKTOKEN_CACHE_DIR=str(CACHE)):
        return open_tokenizer("gpt2")


@pytest.fixture(scope="session", params=["ranks", "gpt2", "bytes"])
def open_for(request):
    """For each kind of tokenizer, a function that opens it for the text of a file."""
    if request.param == "bytes":
        return lambda path: open_tokenizer("bytes", path)
    encoding = request.getfixturevalue(request.param)
    return lambda path: encoding
