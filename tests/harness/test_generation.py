"""Where a text begins and where it ends."""

import pytest

from contract.errors import ConfigError
from data.tokenizers import END_OF_TEXT, encoding_of
from harness.training.generation import encode_prompt, ends, generate_texts

LETTERS = encoding_of("bytes", [bytes([byte]) for byte in b"\nabcdefgh"])
A, B, C, END = 1, 2, 3, 8


class Scripted:
    """A backend that draws what it is told: sample n the tokens of `texts[n]`."""

    def __init__(self, *texts):
        self.texts, self.drawn = texts, 0

    def generate_samples(self, tokens, max_new_tokens, num_samples, *, stop, **sampling):
        going = dict(enumerate(self.texts))
        for step in range(max_new_tokens):
            for sample in list(going):
                self.drawn += 1
                token = going[sample][step]
                if token in stop:
                    del going[sample]
                yield sample, token


def texts(*scripts, stop=(), stop_texts=(), steps=6):
    backend = Scripted(*scripts)
    found = [""] * len(scripts)
    pieces = list(
        generate_texts(backend, LETTERS, [A], steps, len(scripts), stop=stop, stop_texts=stop_texts)
    )
    for sample, piece in pieces:
        found[sample] += piece
    return found, backend.drawn


def test_an_end_token_ends_a_text_and_is_no_part_of_it():
    assert texts([A, END, C, C, C, C], [A, B, C, A, B, C], stop=[END])[0] == ["a", "abcabc"]
    assert texts([A, END, C, C, C, C])[0] == ["ahcccc"]


@pytest.mark.parametrize(
    ("stops", "wanted"),
    [(["bc"], "a"), (["ca", "cb"], "ab"), (["abd"], "abcabc"), (["cc"], "abcabc"), (["c", "bc"], "a")],
    ids=str,
)
def test_a_text_stops_before_a_stop_text(stops, wanted):
    """Also where it comes in several tokens, and what only looked like its beginning is written after all."""
    assert texts([A, B, C, A, B, C], stop_texts=stops)[0] == [wanted]


def test_each_sample_stops_alone_and_all_together():
    found, drawn = texts([A, B, C, A, A, A], [A, A, A, A, B, A], stop_texts=["b"])
    assert found == ["a", "aaaa"]
    assert drawn == 10  # the sixth step is not taken


def test_what_may_become_a_stop_text_is_held_back():
    """Until it is certain; the rest comes as soon as it can."""
    pieces = generate_texts(Scripted([A, B, A, B, C, A]), LETTERS, [A], 6, 1, stop_texts=["abc"])
    assert [piece for _, piece in pieces] == ["", "", "ab", "", ""]


def test_an_empty_stop_text_is_refused():
    with pytest.raises(ConfigError, match="--stop needs some text"):
        texts([A], stop_texts=[""])


def test_a_prompt_of_an_own_tokenizer():
    assert encode_prompt(LETTERS, "ab") == [A, B]
    assert encode_prompt(LETTERS, None) == [0]
    assert ends(LETTERS) == []
    with pytest.raises(ConfigError, match="omit --special"):
        encode_prompt(LETTERS, "ab", special=True)


def test_a_tokenizer_of_documents():
    """The model's text ends at the end token, and begins behind it; GPT-2's own may never have been trained on it."""
    tokens = [bytes([byte]) for byte in range(256)]
    own, gpt2 = (encoding_of(name, [*tokens, END_OF_TEXT.encode()]) for name in ("bytes", "gpt2"))
    assert ends(own) == ends(gpt2) == [256]
    assert encode_prompt(own, None) == [256]
    assert encode_prompt(gpt2, None) == [10]


def test_a_prompt_of_a_published_tokenizer():
    """It stands behind what the model's texts begin with; a special token's text is text unless asked for."""
    pytest.importorskip("tokenizers", reason="needs tokenizers (pip install -e '.[dev]')")
    from tests.small_tokenizers import published

    model, bare = published("llama3"), published("gpt2")
    assert encode_prompt(model, "the") == [model.begin, *model.encode("the")]
    assert encode_prompt(model, None) == [model.begin]
    assert encode_prompt(bare, None) == ends(bare) == list(bare.ends)
    end = bare.ends[0]
    assert end not in encode_prompt(bare, "fox</s>")
    assert encode_prompt(bare, "fox</s>", special=True)[-1] == end
