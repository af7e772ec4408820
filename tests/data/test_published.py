"""Tokenizers that came with a model: the same ids as `transformers` gives, and nothing lost on the way to a file."""

import json
import random

import numpy as np
import pytest
from texts import NASTY, one_line

from contract.errors import UserError
from data.published import PublishedTokenizer
from data.tokenizers import TextDecoder, encode, identity, load_tokenizer, save_tokenizer, token_bytes

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("transformers")
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

# How published byte-level vocabularies split a text before they merge (facts of their tokenizer.json files).
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "gpt2": None,
    "llama3": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|\p{{N}}{{1,3}}{_REST}",
    "qwen2": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|\p{{N}}{_REST}",
    "smollm": "digits",
    "gpt2-few-bytes": None,
}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[PAD]"]
WORDS = [
    *(
        "the",
        "quick",
        "brown",
        "fox,",
        "def",
        "f(x):\n    return",
        "x**2",
        "#",
        "don't!\n",
        "Straße",
        "größer",
    ),
    *("文字列", "한국어", "привет", "мир"),
]


def lines(count: int, seed: int = 0) -> list[str]:
    """Mixed text: scripts, emoji, code, runs of spaces, and the texts of special tokens."""
    draw = random.Random(seed)
    parts = [*NASTY, *WORDS, *SPECIAL, "   ", "\t\t", "12345", "<|user|>", "▁", "<0x41>", "x = [1, 2];"]
    return ["".join(draw.choice(parts) + draw.choice(["", "", " "]) for _ in range(12)) for _ in range(count)]


def byte_level(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = SPLITS[kind]
    before = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in (None, "digits"))]
    if split == "digits":
        before.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif split:
        before.insert(0, pre_tokenizers.Split(Regex(split), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(before)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [] if kind == "gpt2-few-bytes" else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 20 if kind == "gpt2-few-bytes" else lines(300, seed=1), trainer)
    if kind == "llama3":
        begin = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=begin)
    return tokenizer


def sentencepiece(kind: str) -> Tokenizer:
    """As Mistral's and Gemma's files have it: spaces as ▁, bytes where a character is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    front = [normalizers.Prepend("▁")] if kind == "mistral" else []
    tokenizer.normalizer = normalizers.Sequence([*front, spaces])
    strip = [decoders.Strip(" ", 1, 0)] if kind == "mistral" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", *SPECIAL, *every_byte], show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 20, trainer)
    content = json.loads(
        tokenizer.to_str()
    )  # the trainer makes the bytes special, in published files they are not
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] not in every_byte
    ]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    begin = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=begin)
    return tokenizer


def published(kind: str) -> PublishedTokenizer:
    make = sentencepiece if kind in ("mistral", "gemma") else byte_level
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "[PAD]"}
    return PublishedTokenizer(json.loads(make(kind).to_str()), settings)


KINDS = [*SPLITS, "mistral", "gemma"]


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
    assert ours.is_special_token(ours.begin)
    assert not ours.is_special_token(ours.n_vocab - 1)
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
