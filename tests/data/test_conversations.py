"""Conversations as training data: what a template writes of them, and which tokens count as targets."""

import json
import re
from itertools import groupby

import numpy as np
import pytest

from contract.errors import UserError
from contract.targets import NO_TARGET
from data.batches import Windows, evaluation_batches
from data.chat import learnt_tokens
from data.conversation import Conversation, conversation_of
from data.held_out import HeldOut
from data.prepare import open_prepared, open_tokens, prepare, read_info
from data.sources import Texts
from data.tokenizers import END_OF_TEXT, encoding_of, open_tokenizer
from tests.data.texts import one_line, write

CHATML = r"""{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\n' }}
{%- else %}{{ message.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# Only the last reply keeps what was thought before it.
THINKING = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('/')[-1] }}{% else %}
{{- message.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ASKED = {"role": "user", "content": "a fox?"}
REPLY = {"role": "assistant", "content": "the fox"}
LAST = {"role": "assistant", "content": "文字列 \n the </s> quick"}
MESSAGES = [{"role": "system", "content": "brief"}, ASKED, REPLY, {"role": "user", "content": "and?"}, LAST]


def conversation(messages):
    return conversation_of(messages, "chats.jsonl: line 1")


def marked(tokenizer, messages):
    """Each text that is learnt, what counts of it in brackets."""
    found = []
    for ids, counts in learnt_tokens(tokenizer, conversation(messages)):
        assert ids.shape == counts.shape
        assert counts.dtype == bool
        text = b""
        for count, group in groupby(zip(counts.tolist(), ids.tolist(), strict=True), lambda pair: pair[0]):
            part = b"".join(tokenizer.decode_single_token_bytes(id) for _, id in group)
            text += b"[%b]" % part if count else part
        found.append(text.decode())
    return found


def with_template(template, kind="llama3"):
    pytest.importorskip("jinja2", reason="needs jinja2 (pip install -e '.[dev]')")
    pytest.importorskip("tokenizers", reason="needs tokenizers (pip install -e '.[dev]')")
    from tests.small_tokenizers import published

    tokenizer = published(kind)
    ends = [tokenizer._tokenizer.token_to_id(token) for token in ("</s>", "<|im_end|>")]
    tokenizer.settings["chat_template"], tokenizer.generation = template, {"eos_token_id": ends}
    return tokenizer


def ends_documents():
    """A tokenizer of all bytes with an end token."""
    return encoding_of("bytes", [*(bytes([byte]) for byte in range(256)), END_OF_TEXT.encode()])


def test_a_reply_counts_up_to_its_end_token():
    """Not the words before it, not the line break after it; what is asked after the last reply is left out."""
    wanted = (
        "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\na fox?<|im_end|>\n"
        "<|im_start|>assistant\n[the fox<|im_end|>]\n<|im_start|>user\nand?<|im_end|>\n"
        f"<|im_start|>assistant\n[{LAST['content']}<|im_end|>]\n"
    )
    assert marked(with_template(CHATML), [*MESSAGES, ASKED]) == [wanted]


@pytest.mark.parametrize("kind", ["llama3", "smollm", "mistral", "gemma"])
def test_tokens_and_mask_are_those_of_transformers(kind):
    """Its own mask, of templates that mark replies, takes the same tokens, whatever splits the words."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    tokenizer = with_template(CHATML, kind)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHATML
    )
    tokenizer._tokenizer.encode_special_tokens = False
    wanted = theirs.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    [(ids, counts)] = learnt_tokens(tokenizer, conversation(MESSAGES))
    assert ids.tolist() == wanted["input_ids"]
    assert counts.astype(int).tolist() == wanted["assistant_masks"]
    assert 0 < counts.sum() < len(counts)


def test_a_template_that_rewrites_earlier_replies_gives_a_text_for_each():
    """Each reply counts once, behind what the model sees when it writes it."""
    thought = [
        ASKED,
        {"role": "assistant", "content": "hm/fox"},
        ASKED,
        {"role": "assistant", "content": "ha/the"},
    ]
    start = "<|im_start|>user\na fox?<|im_end|>\n<|im_start|>assistant\n"
    assert marked(with_template(THINKING), thought) == [
        f"{start}[hm/fox<|im_end|>]\n",
        f"{start}fox<|im_end|>\n{start}[ha/the<|im_end|>]\n",
    ]


def test_a_token_that_lies_in_prompt_and_reply_does_not_count():
    """The model cannot write half of a token: it writes the reply from the prompt's end on."""
    glued = CHATML.replace("assistant\n{% endif %}", "the{% endif %}").replace(
        "{{ message.role }}\n{% if", "the{% if"
    )
    tokenizer = with_template(glued)
    found = marked(tokenizer, [ASKED, {"role": "assistant", "content": "se"}])[0]
    assert re.search(r"the\[se<\|im_end\|>\]|these\[<\|im_end\|>\]|the\[?s?\]?e?\[", found)
    assert "[the" not in found


def test_the_plain_form_of_a_model_without_a_template():
    wanted = "System: brief\nUser: a fox?\nAssistant:[ the fox<|endoftext|>]User: and?\nAssistant:"
    assert marked(ends_documents(), [*MESSAGES, ASKED]) == [f"{wanted}[ {LAST['content']}<|endoftext|>]"]
    no_end = encoding_of("bytes", [bytes([byte]) for byte in range(256)])
    assert marked(no_end, [ASKED, REPLY]) == ["User: a fox?\nAssistant:[ the fox\n]"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            ("chats.jsonl: line 1", "roles must alternate", "line"),
        ),
        (
            CHATML.replace("assistant\n{% endif %}", "model\n{% endif %}"),
            ("line 1", "otherwise than it begins one"),
        ),
    ],
    ids=["refuses", "begins otherwise"],
)
def test_a_template_that_fails_names_the_line(template, words):
    with pytest.raises(UserError) as error:
        marked(with_template(template), MESSAGES)
    one_line(error, *words)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", ("'hello'", "list of messages")),
        ([{"role": "user"}], ("'content'",)),
        ([{"from": "gpt", "value": "a"}], ("'role'",)),
        ([{"role": "assistant", "content": None}], ("'content'",)),
        ([ASKED], ("roles: user", "no reply to learn")),
        ([], ("roles: none",)),
        ([ASKED, {"role": "assistant", "content": "\ud800"}], ("U+D800",)),
    ],
    ids=str,
)
def test_what_is_no_conversation(messages, words):
    with pytest.raises(UserError) as error:
        conversation_of(messages, "chats.jsonl: line 7")
    one_line(error, "chats.jsonl: line 7", *words)


@pytest.fixture
def chats(tmp_path):
    """A JSONL of 60 conversations."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": f"yes, {n}\r\n"},
            ]
        }
        for n in range(60)
    ]
    return write(tmp_path / "chats.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))


def replies(corpus, tokenizer):
    """The text of the targets of a part of a token file, those that don't count as dots."""
    targets = corpus.targets(0, len(corpus))
    assert np.array_equal(np.where(targets == NO_TARGET, corpus[:], targets), corpus[:])
    return re.sub(r"\0+", "·", tokenizer.decode([0 if id == NO_TARGET else id for id in targets.tolist()]))


@pytest.mark.parametrize(
    "held_out", [HeldOut(0.2), HeldOut(0.2, "end"), HeldOut(0.3, "blocks", seed=2)], ids=str
)
def test_the_mask_stays_with_its_tokens(chats, tmp_path, held_out):
    """However the held-out part is taken: the same replies as in the file that holds out nothing."""
    tokenizer = encoding_of(
        "bytes", [b"\0", *(bytes([byte]) for byte in range(1, 256)), END_OF_TEXT.encode()]
    )
    texts = Texts((chats,), field="messages")
    for name, out in (("all", HeldOut(0)), ("some", held_out)):
        prepare(texts, tokenizer, tmp_path / f"{name}.bin", held_out=out)
    whole = open_tokens(tmp_path / "all.bin")
    assert replies(whole.train, tokenizer) == "".join(f"· yes, {n}\r\n<|endoftext|>" for n in range(60))
    some = open_tokens(tmp_path / "some.bin")
    parts = [replies(part, tokenizer) for part in (some.train, some.validation)]
    if held_out.way is None:  # whole conversations
        found = [re.findall(r"· yes, (\d+)\r\n<\|endoftext\|>", part) for part in parts]
        assert sorted(int(number) for part in found for number in part) == list(range(60))
        assert min(map(len, found)) > 0
    counting = [
        np.count_nonzero(part.targets(0, len(part)) != NO_TARGET) for part in (some.train, some.validation)
    ]
    assert [some.info.train_targets, some.info.validation_targets] == counting
    assert sum(counting) == whole.info.train_targets


@pytest.mark.parametrize(("vocab_size", "dtype"), [(32_768, "uint16"), (32_769, "uint32")])
def test_a_bit_is_left_for_the_mask(chats, tmp_path, vocab_size, dtype):
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"%d!" % place for place in range(vocab_size - 256)]
    prepare(Texts((chats,), field="messages"), encoding_of("ranks", tokens), tmp_path / "x.bin")
    corpus, tokenizer = open_prepared(tmp_path / "x.bin")
    assert corpus.info.dtype == dtype
    assert corpus.train.store.largest < vocab_size
    assert tokenizer.decode(corpus.train[:].tolist()).startswith("User: ")


def test_windows_have_the_mask_in_their_targets(chats, tmp_path):
    """In training and evaluation: the target is the token after each, or none."""
    prepare(Texts((chats,), field="messages", newlines="lf"), "bytes", tmp_path / "x.bin")
    corpus, tokenizer = open_prepared(tmp_path / "x.bin")
    for inputs, targets in (
        Windows(corpus.train, 40, seed=1).batch(0, 3),
        next(iter(evaluation_batches(corpus.validation, 40, 3))),
    ):
        counts = targets != NO_TARGET
        assert np.array_equal(targets[:, :-1][counts[:, :-1]], inputs[:, 1:][counts[:, :-1]])
        text = "".join(
            tokenizer.decode([id]) if count else "·"
            for id, count in zip(inputs[0, 1:].tolist(), counts[0].tolist(), strict=False)
        )
        assert re.search(r"·· yes, \d+\n<\|endoftext\|>··", text)


def test_a_text_has_no_mask(tmp_path):
    """And files of earlier versions, which do not speak of targets."""
    prepare(write(tmp_path / "x.txt", "abc\n" * 30), "bytes", tmp_path / "x.bin")
    corpus = open_tokens(tmp_path / "x.bin")
    assert read_info(tmp_path / "x.bin").train_targets is None
    assert not corpus.info.form.masked
    assert np.array_equal(corpus.train.targets(2, 9), corpus.train[2:9])


def test_bytes_are_those_of_the_plain_form(chats):
    """Which a tokenizer is made from, too."""
    tokenizer = open_tokenizer("bytes", Texts((chats,), field="messages"))
    text = str(Conversation([ASKED, REPLY], "here"))
    assert text == "User: a fox?\nAssistant: the fox"
    assert set(b"User:Assistant: 0123456789?\r\n") <= set(b"".join(tokenizer.token_byte_values()))
