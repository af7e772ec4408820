"""Tokenizers that came with a model: the same ids as `transformers` gives, and nothing lost on the way to a file."""

import json

import numpy as np
import pytest
from texts import one_line

from contract.errors import UserError
from data.held_out import HeldOut
from data.prepare import open_prepared, prepare
from data.published import PublishedTokenizer
from data.sources import Texts
from data.tokenizers import TextDecoder, encode, identity, load_tokenizer, save_tokenizer, token_bytes

pytest.importorskip("tokenizers", reason="needs tokenizers (pip install -e '.[dev]')")
pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
from tokenizers import Tokenizer

from tests.small_tokenizers import KINDS, lines, published


@pytest.fixture(scope="module", params=KINDS)
def ours(request):
    return published(request.param)


@pytest.fixture(scope="module")
def theirs(ours):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(ours.content)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="[PAD]",
    )


def test_ids_are_those_of_transformers(ours, theirs):
    """2,000 lines: special tokens as text, special tokens as tokens, and what the model expects around a text."""
    before, after = ours.around
    for line in lines(2000):
        ids = encode(ours, line).tolist()
        wanted = theirs(line, split_special_tokens=True, add_special_tokens=False)["input_ids"]
        assert ids == wanted, line
        parsed = ours.encode(line, special=True).tolist()
        assert parsed == theirs(line, add_special_tokens=False)["input_ids"], line
        assert [*before, *parsed, *after] == theirs(line)["input_ids"], line


def test_a_stream_is_the_whole_decoded(ours, theirs):
    """Token by token the same text comes out as at once, so never half a character."""
    for line in lines(300, seed=2):
        ids = [ours.begin, *encode(ours, f"x{line}").tolist()]
        decoder = TextDecoder(ours)
        pieces = [decoder.feed(id) for id in ids] + [decoder.flush()]
        assert "".join(pieces) == theirs.decode(ids, clean_up_tokenization_spaces=False), line


def test_roles_and_bytes(ours):
    assert ours.ends == (ours.content["model"]["vocab"]["</s>"],)
    assert ours.begin == ours.content["model"]["vocab"]["<s>"]
    assert len(token_bytes(ours)) == ours.n_vocab
    assert ours.role_texts() == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]"}


def test_saved_and_loaded(ours, tmp_path):
    """Nothing of it is lost in a file, and another tokenizer has another identity."""
    save_tokenizer(ours, tmp_path / "tokenizer")
    back = load_tokenizer(tmp_path / "tokenizer", "published")
    assert back.to_dict() == ours.to_dict()
    assert identity(back) == identity(ours)
    changed = ours.content | {"added_tokens": []}
    assert identity(PublishedTokenizer(changed, ours.settings))["sha256"] != identity(ours)["sha256"]


@pytest.mark.parametrize(("eos", "ends"), [(7, (7,)), ([7, 2], (7, 2)), (None, ())], ids=str)
def test_the_generation_settings_say_where_texts_end(eos, ends):
    model = published("qwen2")
    assert PublishedTokenizer(model.content, model.settings, {"eos_token_id": eos}).ends == ends


@pytest.mark.parametrize(("setting", "wanted"), [({}, True), ({"add_bos_token": False}, False)], ids=str)
def test_the_settings_decide_about_the_beginning(setting, wanted):
    """`add_bos_token` overrules tokenizer.json; an end can be asked for."""
    model = published("llama3")
    found = PublishedTokenizer(model.content, model.settings | setting | {"add_eos_token": True}).around
    assert found == ([model.begin] if wanted else [], list(model.ends))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"type": "WordPiece"}}, ("model.type", "WordPiece")),
        ({"model": {"type": "Unigram"}}, ("model.type", "Unigram")),
        ({"decoder": {"type": "WordPiece"}}, ("decoder", "WordPiece")),
        ({"decoder": None}, ("decoder", "missing")),
        ({"pre_tokenizer": {"type": "Unheard"}}, ("tokenizer.json",)),
    ],
    ids=str,
)
def test_what_is_refused(change, words):
    with pytest.raises(UserError) as error:
        PublishedTokenizer(published("gpt2").content | change, {})
    one_line(error, *words)


def test_ids_fit_their_type(ours):
    assert encode(ours, "x").dtype == np.uint16


def test_a_large_text_is_cut_where_no_token_crosses(ours, tmp_path, monkeypatch):
    """Prepared in small pieces, a text has the tokens that it has as a whole, behind the model's beginning."""
    monkeypatch.setattr("data.text.BLOCK_BYTES", 64)
    text = "".join(f"{line}\nfox\nbrown " for line in lines(60, seed=3) if "\0" not in line)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="")
    prepare(tmp_path / "text.txt", ours, tmp_path / "tokens.bin", held_out=HeldOut(0))
    found, tokenizer = open_prepared(tmp_path / "tokens.bin")
    before, _ = ours.around
    assert found.train[:].tolist() == [*before, *encode(ours, text).tolist()]
    assert identity(tokenizer) == identity(ours)


@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n\n", "=="])
def test_an_end_token_stands_between_documents(ours, tmp_path, monkeypatch, separator):
    """Wherever the file's blocks end, also within a separator; a separator's half is text."""
    documents = ["fox", "the quick\nbrown <|endo", "= fox", ""]
    text = separator.join(documents)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="")
    before, after = ours.around
    wanted = list(before)
    for place, document in enumerate(documents):
        wanted += encode(ours, document).tolist() if document else []
        wanted += [*(after or ours.ends[:1]), *before] if place < len(documents) - 1 else []
    for block in (1, 5, 1000):
        monkeypatch.setattr("data.text.BLOCK_BYTES", block)
        out = tmp_path / f"{block}.bin"
        prepare(Texts((tmp_path / "text.txt",), separator=separator), ours, out, held_out=HeldOut(0))
        assert open_prepared(out)[0].train[:].tolist() == wanted
