"""A published tokenizer from its folder, and back: nothing is lost, and `transformers` reads it as before."""

import json

import pytest

from contract.errors import UserError
from harness.exchange.tokenizer_files import end_ids, read_tokenizer, tokenizer_texts

pytest.importorskip("tokenizers", reason="needs tokenizers (pip install -e '.[dev]')")

from tests.small_tokenizers import KINDS, lines, published


def folder_of(tmp_path, **files):
    for name, content in files.items():
        path = tmp_path / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_in_and_out(kind, tmp_path):
    """The files that come out are those that went in, and `transformers` reads the same ids and roles from them."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    tokenizer = published(kind)
    generation = {"eos_token_id": [2, 4], "bos_token_id": 1, "temperature": 0.6}
    folder = folder_of(
        tmp_path,
        tokenizer__json=tokenizer.content,
        tokenizer_config__json=tokenizer.settings,
        generation_config__json=generation,
        chat_template__jinja="{{ messages[0].content }}",
    )
    found = read_tokenizer(folder, {"eos_token_id": 3, "pad_token_id": 5})
    assert found.ends == (2, 4)
    assert found.chat_template == "{{ messages[0].content }}"
    assert end_ids(found) == {"bos_token_id": 1, "eos_token_id": [2, 4], "pad_token_id": 5}
    out = tmp_path / "out"
    out.mkdir()
    for name, text in tokenizer_texts(found, 64).items():
        (out / name).write_text(text, encoding="utf-8")
    again = read_tokenizer(out, {})
    assert again.to_dict() == found.to_dict()
    before, after = (
        transformers.PreTrainedTokenizerFast.from_pretrained(
            path, tokenizer_file=str(path / "tokenizer.json")
        )
        for path in (folder, out)
    )
    assert after.get_chat_template() == before.get_chat_template()
    assert after.eos_token == before.eos_token == "</s>"
    for line in lines(50):
        assert after(line)["input_ids"] == before(line)["input_ids"]


def test_where_texts_end_without_generation_config(tmp_path):
    """config.json says it, else the tokenizer's own settings; older files name the roles in a file of their own."""
    tokenizer = published("qwen2")
    folder = folder_of(
        tmp_path, tokenizer__json=tokenizer.content, special_tokens_map__json={"eos_token": "<|im_end|>"}
    )
    end = tokenizer.content["model"]["vocab"]["<|im_end|>"]
    assert read_tokenizer(folder, {}).ends == (end,)
    assert read_tokenizer(folder, {"eos_token_id": 7}).ends == (7,)
    assert read_tokenizer(folder, {"eos_token_id": None}).ends == (end,)


def test_a_folder_without_a_tokenizer(tmp_path):
    assert read_tokenizer(tmp_path, {}) is None


def test_what_is_refused_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.txt is a vocabulary of BERT's kind"):
        read_tokenizer(folder_of(tmp_path, vocab__txt="[PAD]\n[UNK]\n"), {})
    with pytest.raises(UserError, match=r"tokenizer\.json is not as published"):
        read_tokenizer(folder_of(tmp_path, tokenizer__json="{"), {})
