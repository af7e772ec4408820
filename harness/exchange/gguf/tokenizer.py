"""The tokenizer in a GGUF file's metadata, as Hugging Face would publish it.

The metadata holds the vocabulary, what kind each token is, and either merges or scores. How text is cut before merging
is only named there, so the patterns of the names that are known stand here.
"""

from contract.errors import UserError, needs
from contract.schema import require, shortened
from harness.exchange.gguf.file import GGUF

# What `tokenizer.ggml.token_type` says.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
# How a byte-level vocabulary cuts text, by `tokenizer.ggml.pre`; None for GPT-2's pattern, which `tokenizers` has.
# SmolLM's own tokenizer also cuts out each digit first; `transformers` does not where it reads a GGUF file.
SPLITS = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_TAIL}",
    "qwen2": rf"{_WORDS}|\p{{N}}|{_TAIL}",
}
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# Ends of a turn, which older converters did not write down.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>")


def tokenizer_of(file: GGUF) -> tuple[str, dict, dict]:
    """The text of a `tokenizer.json`, and the fields of a `tokenizer_config.json` and a `generation_config.json`.

    Raises UserError naming the key of the metadata that is missing, damaged, or a tokenizer that is not known.
    """
    with needs(f"the tokenizer of {file.path}", "models", ["tokenizers"]):
        import tokenizers  # noqa: F401, the first use says what is missing
    stored = _Stored(file)
    model = stored.get("model", str)
    if model not in _BUILDERS:
        raise UserError(
            f"{file.path}: tokenizer.ggml.model is {shortened(model)}; only {' and '.join(_BUILDERS)} can be imported"
        )
    settings, ends = _settings(stored, add_bos=model == "llama")
    try:
        tokenizer = _BUILDERS[model](stored, settings)
    except UserError:
        raise
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise UserError(
            f"{file.path}: no tokenizer can be made of its metadata ({error}); get it again"
        ) from None
    _add_tokens(tokenizer, stored, settings)
    return tokenizer.to_str(), settings, ends


class _Stored:
    """The keys of `tokenizer.ggml` in the metadata."""

    def __init__(self, file: GGUF):
        self.file = file
        self.tokens = self.get("tokens", [str])
        self.types = self.get("token_type", [int], [1] * len(self.tokens))
        self.ids = {text: token for token, text in enumerate(self.tokens)}

    def get(self, key: str, schema, default=...):
        """The value of a key. Raises UserError if it is missing, of another type, or too short for the tokens."""
        value = self.file.metadata.get(f"tokenizer.ggml.{key}", default)
        if value is ...:
            raise UserError(
                f"{self.file.path} has no tokenizer.ggml.{key} in its metadata; get the file again"
            )
        try:
            require(value, schema if default is ... else (schema, type(default)))
            if key in ("scores", "token_type") and len(value) != len(self.tokens):
                raise ValueError(f"{len(value):,} values for {len(self.tokens):,} tokens")
        except ValueError as error:
            raise UserError(f"{self.file.path}: tokenizer.ggml.{key}: {error}; get the file again") from None
        return value

    def merges(self) -> list[tuple[str, str]]:
        """The pairs of tokens that are merged, the first to be first. Raises UserError if one is no pair."""
        pairs = [tuple(merge.split(" ")) for merge in self.get("merges", [str])]
        if wrong := [" ".join(pair) for pair in pairs if len(pair) != 2]:
            raise UserError(
                f"{self.file.path}: tokenizer.ggml.merges holds {shortened(wrong[0])}, expected two tokens; get the "
                "file again"
            )
        return pairs

    def of_type(self, *types: int) -> list[str]:
        """The tokens of these types."""
        return [text for text, kind in zip(self.tokens, self.types, strict=True) if kind in types]


def _settings(stored: _Stored, add_bos: bool) -> tuple[dict, dict]:
    """What the tokens are for, and the ids at a text's ends. add_bos: where the metadata does not say"""
    some_id = (range(len(stored.tokens)), None)
    ids = {role: stored.get(f"{key}_token_id", some_id, None) for role, key in _ROLES.items()}
    settings = {f"{role}_token": stored.tokens[token] for role, token in ids.items() if token is not None}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # others build one anew, of the vocabulary alone
    settings["add_bos_token"] = stored.get("add_bos_token", bool, add_bos)
    settings["add_eos_token"] = stored.get("add_eos_token", bool, False)
    turn_end = stored.get("eot_token_id", some_id, None)
    if turn_end is None:
        turn_end = next((stored.ids[text] for text in stored.of_type(_CONTROL) if text in _TURN_ENDS), None)
    ends = dict.fromkeys([ids["eos"], turn_end, stored.get("eom_token_id", some_id, None)])
    ends = [token for token in ends if token is not None]
    generation = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
    }
    generation["pad_token_id"] = ids["pad"]
    if template := stored.file.metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return settings, {name: value for name, value in generation.items() if value is not None}


def _byte_level(stored: _Stored, settings: dict):
    """Byte-level BPE, as GPT-2's."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    gpt2 = stored.file.metadata["general.architecture"] == "gpt2"
    pre = stored.get("pre", str, "gpt-2" if gpt2 else ...)
    if pre not in SPLITS:
        raise UserError(
            f"{stored.file.path}: tokenizer.ggml.pre is {shortened(pre)}, a way of cutting text that this project does "
            f"not know; it knows {', '.join(SPLITS)}"
        )
    tokenizer = Tokenizer(models.BPE(vocab=stored.ids, merges=stored.merges()))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=SPLITS[pre] is None)
    if SPLITS[pre] is not None:
        whole = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(SPLITS[pre]), behavior="isolated"), whole]
        )
    tokenizer.pre_tokenizer = whole
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(stored: _Stored, settings: dict):
    """SentencePiece's BPE with bytes for what it lacks, as Mistral's and Gemma's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if stored.file.metadata.get(f"tokenizer.ggml.{key}"):
            raise UserError(
                f"{stored.file.path}: tokenizer.ggml.{key} changes the text, which is not known here"
            )
    gemma = stored.file.metadata["general.architecture"].startswith("gemma")
    if gemma:  # runs of spaces are stored as such, and its order of merges is that of the ids
        texts = ["▁" * len(text) if text and not text.strip(" ") else text for text in stored.tokens]
        stored.ids = {text: token for token, text in enumerate(texts)}
    if "tokenizer.ggml.merges" in stored.file.metadata:
        merges = stored.merges()
    else:
        merges = _merges_by_score(stored, [-token for token in range(len(stored.tokens))] if gemma else None)
    model = models.BPE(
        stored.ids, merges, unk_token=settings.get("unk_token"), fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    prefix = not gemma and stored.get("add_space_prefix", bool, True)
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        scheme = "first" if prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", left=1)] * prefix)
    return tokenizer


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _merges_by_score(stored: _Stored, scores: list[float] | None) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, that of the best score first.

    scores: None for the file's
    """
    ids = stored.ids
    score = scores or stored.get("scores", [float])
    whole = set(stored.of_type(_CONTROL, _UNKNOWN, _BYTE))  # never made from text
    pairs = [
        (-score[token], -cut, cut - len(text), token, ids[text[:cut]], ids[text[cut:]])
        for text, token in ids.items()
        if text not in whole
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    texts = {token: text for text, token in ids.items()}
    return [(texts[left], texts[right]) for *_, left, right in sorted(pairs)]


def _add_tokens(tokenizer, stored: _Stored, settings: dict):
    """Have the tokens that are cut out of a text before merging, and those that are put around it."""
    from tokenizers import AddedToken, processors

    named = [settings[f"{role}_token"] for role in _ROLES if f"{role}_token" in settings]
    special = [AddedToken(text, normalized=False, special=True) for text in stored.of_type(_CONTROL) + named]
    tokenizer.add_special_tokens(special)
    known = [text for text in stored.of_type(_USER_DEFINED) if text in stored.ids]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in known])
    around = [
        settings[f"{role}_token"] if settings[f"add_{role}_token"] and f"{role}_token" in settings else None
        for role in ("bos", "eos")
    ]
    if any(around):
        template = [text for text in (around[0], "$A", around[1]) if text]
        pair = [text for text in (around[0], "$A", around[1], around[0], "$B:1", around[1]) if text]
        tokens = [(text, stored.ids[text]) for text in dict.fromkeys(filter(None, around))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, pair=pair, special_tokens=tokens
        )
