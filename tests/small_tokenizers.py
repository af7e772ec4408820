"""Small tokenizers of each published kind, trained by the library `tokenizers`, and texts that are hard for them."""

import json
import random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.published import PublishedTokenizer
from tests.data.texts import NASTY

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
    settings = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "pad_token": "[PAD]",
    }
    return PublishedTokenizer(json.loads(make(kind).to_str()), settings)


KINDS = [*SPLITS, "mistral", "gemma"]
