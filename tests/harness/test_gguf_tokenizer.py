"""The tokenizers in GGUF files: the same ids as `transformers` gives for the same file."""

import json

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs gguf (pip install -c constraints.txt -e '.[dev]')")
pytest.importorskip("transformers", reason="needs transformers (pip install -c constraints.txt -e '.[dev]')")
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import generate_merges

from contract.errors import UserError
from harness.exchange.gguf.file import open_gguf
from harness.exchange.gguf.tokenizer import SPLITS, tokenizer_of
from tests.harness.gguf_files import small_model, write_gguf
from tests.shared_files import SMOLLM2, needs_smollm2

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
PIECES = [
    "Hello", " world", "it's", "WE'LL", " don't", "123", " 4567", "3.14", "½", "٣٤", "x=1;", "def f(x):", "    ", "\t",
    "\n", "\n\n", "\r\n", "  ", "   ", " ", "…", "—", "!?!", "() {", "#include <a>", "日本語", "テキスト", "한국어",
    "Ελληνικά", "русский", "עברית", "العربية", "हिन्दी", "ภาษาไทย", "é", "e\u0301", "ﬁ", "🤗", "👩‍👩‍👧", "🇫🇷", "\u200b",
    "\x00", "\x7f", "_snake_case", "camelCase", "http://a.b/c?d=e", "<|user|>", "<|end|>", "<s>", "</s>", "<unk>",
    "<think>", "<0x0A>", "▁", "[PAD]",
]  # fmt: skip


@pytest.fixture(scope="module")
def lines():
    """400 lines of mixed text."""
    random = np.random.default_rng(5)
    return ["".join(random.choice(PIECES, random.integers(1, 12))) for _ in range(400)] + PIECES + [""]


def trained(pre_tokenizer, lines, model=None, *, normalizer=None, **options):
    """A tokenizer that was trained on the lines."""
    tokenizer = Tokenizer(model or models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, **options)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def byte_level(pre, lines, alphabet=True):
    """What `pre` means, trained with two special tokens and one that is added only."""
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=SPLITS[pre] is None)
    if SPLITS[pre] is not None:
        whole = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated"), whole])
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()} if alphabet else {}
    texts = lines if alphabet else lines[:40]
    return trained(whole, texts, special_tokens=["<|user|>", "<|end|>", "<think>"], **options)


def vocabulary(tokenizer, *, model, pre=None, types=(), merges=True, spelled=str, **more):
    """A function that adds the tokenizer to a GGUF writer. types: of the first tokens; the others are normal"""
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.get)

    def write(writer):
        writer.add_tokenizer_model(model)
        if pre:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list([spelled(token) for token in tokens])
        writer.add_token_types([*types, *[NORMAL] * (len(tokens) - len(types))])
        if merges:
            writer.add_token_merges(
                [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
            )
        else:
            sign = -1.0 if spelled is str else 1.0  # Gemma's say another order than its ids, which count
            scores = [sign * place for place in range(len(tokens) - len(types))]
            writer.add_token_scores([0.0] * len(types) + scores)
        for key, value in more.items():
            getattr(writer, f"add_{key}")(value)

    return write


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that writes a file with a tokenizer: its path."""

    def write(write_vocabulary, model_type="llama"):
        path = tmp_path_factory.mktemp("gguf") / "model.gguf"
        return write_gguf(path, small_model(model_type), vocabulary=write_vocabulary)

    return write


def check_against_transformers(path, lines):
    """The same ids and texts, with special tokens parsed and as text; returns ours and its fields."""
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text, settings, ends = tokenizer_of(open_gguf(path))
    ours = Tokenizer.from_str(text)
    for split in (False, True):
        ours.encode_special_tokens = split
        for line in lines:
            wanted = theirs(line, split_special_tokens=split)["input_ids"]
            assert ours.encode(line).ids == wanted, (split, line)
            assert ours.decode(wanted, skip_special_tokens=False) == theirs.decode(wanted), line
    ours.encode_special_tokens = False
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert settings.get(role) == getattr(theirs, role)
    return ours, settings | ends


@pytest.mark.parametrize("pre", SPLITS)
@pytest.mark.parametrize("alphabet", [True, False])
def test_byte_level_ids_are_those_of_transformers(pre, alphabet, lines, written):
    original = byte_level(pre, lines, alphabet)
    write = vocabulary(
        original, model="gpt2", pre=pre, types=[CONTROL, CONTROL, USER], bos_token_id=0, eos_token_id=1,
        add_bos_token=pre == "llama-bpe", chat_template="{{ messages }}",
    )  # fmt: skip
    ours, settings = check_against_transformers(written(write), lines)
    assert settings["chat_template"] == "{{ messages }}"
    assert settings["eos_token_id"] == 1
    assert ours.token_to_id("<|user|>") in ours.encode("a<|user|>").ids
    assert (ours.encode("a").ids[0] == 0) == (pre == "llama-bpe")
    plain = [line for line in lines if "<" not in line]
    assert [ours.encode(line, add_special_tokens=False).ids for line in plain] == [
        original.encode(line).ids for line in plain
    ]


def sentencepiece(lines, first, gemma=False):
    """A trained vocabulary with bytes, as Llama 2's, Mistral's or Gemma's."""
    first = [*first, *[f"<0x{byte:02X}>" for byte in range(256)]]
    model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    if gemma:
        split, normalizer = pre_tokenizers.Split(" ", "merged_with_previous"), normalizers.Replace(" ", "▁")
    else:
        split, normalizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False), None
    texts = [piece for piece in lines if "<" not in piece]
    options = {"special_tokens": first, "limit_alphabet": 100, "max_token_length": 6}
    return trained(split, texts, model, normalizer=normalizer, **options)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("merges", [True, False])
def test_sentencepiece_ids_are_those_of_transformers(model_type, merges, lines, written):
    """With the file's merges, and with those that the scores, or Gemma's ids, say."""
    gemma = model_type.startswith("gemma")
    first = ["<unk>", "<s>", "</s>", "<|user|>", "<think>", "<mask>"]
    original = sentencepiece(lines, first, gemma)

    def spelled(token):
        return " " * len(token) if gemma and set(token) == {"▁"} else token

    write = vocabulary(
        original, model="llama", merges=merges, spelled=spelled,
        types=[UNKNOWN, CONTROL, CONTROL, CONTROL, USER, CONTROL, *[BYTE] * 256],
        bos_token_id=1, eos_token_id=2, unk_token_id=0, pad_token_id=0, eot_token_id=3, add_space_prefix=not gemma,
    )  # fmt: skip
    ours, settings = check_against_transformers(written(write, model_type), lines)
    assert settings["eos_token_id"] == [2, 3]
    assert settings["add_bos_token"] is True
    ids = ours.encode("日本 語").ids
    assert ids[0] == 1
    assert ours.decode(ids) == "日本 語"
    plain = [line for line in lines if "<" not in line]
    if merges:
        assert [ours.encode(line, add_special_tokens=False).ids for line in plain] == [
            original.encode(line).ids for line in plain
        ]


def test_no_space_is_put_before_a_text_where_the_file_says_so(lines, written):
    """Which `transformers` does not read."""
    first = ["<unk>", "<s>", "</s>"]
    write = vocabulary(
        sentencepiece(lines, first), model="llama", types=[UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256],
        unk_token_id=0, add_space_prefix=False, add_bos_token=False,
    )  # fmt: skip
    ours = Tokenizer.from_str(tokenizer_of(open_gguf(written(write)))[0])
    ids = ours.encode("Hello world").ids
    assert "".join(map(ours.id_to_token, ids)) == "Hello▁world"
    assert ours.decode(ours.encode(" a").ids) == " a"


def test_pairs_of_one_score_are_in_the_order_of_transformers(written):
    """Where a token can be made of several pairs, and where tokens share a score."""
    scores = {
        "a": 0.0,
        "b": 0.0,
        "c": 0.0,
        "ab": -2.0,
        "bc": -2.0,
        "abc": -1.0,
        "ca": -2.0,
        "cab": -1.0,
        "caab": -3.0,
    }
    ids = {text: token for token, text in enumerate(scores)}
    write = vocabulary(
        Tokenizer(models.BPE(ids, [])), model="llama", merges=False, token_scores=[*scores.values()]
    )
    text, *_ = tokenizer_of(open_gguf(written(write)))
    assert [tuple(pair) for pair in json.loads(text)["model"]["merges"]] == generate_merges(ids, scores)


def test_control_tokens_are_never_made_of_text(written):
    """Their scores are the best; merging by them would read "</s>" out of a text."""
    original = Tokenizer(models.BPE({"<unk>": 0, "<s>": 1, "<": 2, "s": 3, ">": 4, "s>": 5, "<s": 6}, []))
    write = vocabulary(original, model="llama", types=[UNKNOWN, CONTROL], merges=False, bos_token_id=1)
    ours = Tokenizer.from_str(tokenizer_of(open_gguf(written(write)))[0])
    ours.encode_special_tokens = True
    assert 1 not in ours.encode("<s>", add_special_tokens=False).ids


@pytest.mark.parametrize("token", ["<|eot_id|>", "<|im_end|>", "<end_of_turn>"])
def test_a_turns_end_that_the_file_does_not_name_is_an_end_too(token, written):
    original = Tokenizer(models.BPE({"<|end|>": 0, token: 1, "a": 2, "b": 3, "ab": 4}, [("a", "b")]))
    write = vocabulary(original, model="gpt2", pre="qwen2", types=[CONTROL, CONTROL], eos_token_id=0)
    assert tokenizer_of(open_gguf(written(write)))[2]["eos_token_id"] == [0, 1]


GOOD = {"model": "gpt2", "pre": "gpt-2"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "t5"}, ["tokenizer.ggml.model", "'t5'", "gpt2 and llama"]),
        ({"pre": "tekken"}, ["tokenizer.ggml.pre", "'tekken'", "smollm"]),
        ({"pre": None}, ["no tokenizer.ggml.pre"]),
        ({"eos_token_id": 7}, ["tokenizer.ggml.eos_token_id", "7"]),
        ({"types": [CONTROL] * 3}, ["tokenizer.ggml.token_type", "3 values for 2 tokens"]),
        ({"model": "llama", "merges": False, "remove_extra_whitespaces": True}, ["remove_extra_whitespaces"]),
        ({"model": "gpt2", "merges": False}, ["no tokenizer.ggml.merges"]),
        ({"token_merges": ["a c"]}, ["no tokenizer can be made", "get it again"]),
        ({"token_merges": ["ab"]}, ["tokenizer.ggml.merges", "'ab'", "two tokens"]),
    ],
)
def test_other_tokenizers_are_refused_by_name(options, words, written):
    original = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    path = written(vocabulary(original, **GOOD | options))
    with pytest.raises(UserError) as error:
        tokenizer_of(open_gguf(path))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


@needs_smollm2
@pytest.mark.slow
def test_smollm2s_ids_are_those_of_transformers(lines):
    ours, settings = check_against_transformers(SMOLLM2, lines)
    assert settings["eos_token_id"] == 2
    assert ours.decode(ours.encode("<|im_start|>user").ids, skip_special_tokens=False) == "<|im_start|>user"
