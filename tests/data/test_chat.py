"""Conversations: the text and tokens that `transformers` makes of them, and templates that fail."""

import pytest
from texts import one_line

from contract.errors import UserError
from data.chat import chat_tokens, render

pytest.importorskip("jinja2", reason="needs jinja2 (pip install -e '.[dev]')")
pytest.importorskip("tokenizers", reason="needs tokenizers (pip install -e '.[dev]')")

from tests.small_tokenizers import published

CHATML = """{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}<|im_start|>system
Be brief.<|im_end|>
{% endif %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
<|im_start|>{{ message['role'] }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
STRICT = """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}
[{{ message.role }}] {{ message | tojson }}
{% endfor %}"""
MESSAGES = [
    {"role": "user", "content": " What is größer? "},
    {"role": "assistant", "content": "文字列 <|im_end|>"},
    {"role": "user", "content": "the fox"},
]


def with_template(template):
    tokenizer = published("llama3")
    tokenizer.settings["chat_template"] = template
    return tokenizer


@pytest.mark.parametrize("template", [CHATML, STRICT], ids=["chatml", "strict"])
@pytest.mark.parametrize("count", [1, 3])
def test_tokens_are_those_of_transformers(template, count):
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    tokenizer = with_template(template)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    tokenizer._tokenizer.encode_special_tokens = False
    wanted = theirs.apply_chat_template(MESSAGES[:count], add_generation_prompt=True)["input_ids"]
    assert chat_tokens(tokenizer, MESSAGES[:count]) == wanted


def test_the_default_of_several_templates_is_taken():
    named = [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "the"}]
    tokenizer = with_template(named)
    assert chat_tokens(tokenizer, MESSAGES) == tokenizer.encode("the").tolist()


def test_a_model_without_a_template():
    with pytest.raises(UserError) as error:
        chat_tokens(with_template(None), MESSAGES)
    one_line(error, "no chat template", "--prompt")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (STRICT, ("no system messages",)),
        ("{% for %}", ("chat template fails",)),
        ("{{ messages[0].content.missing.name }}", ("chat template fails",)),
        ("{{ ''.__class__.__mro__ }}", ("chat template fails", "unsafe")),
        ("{{ messages.append(1) }}", ("chat template fails", "unsafe")),
        ("{{ 1 // 0 }}", ("chat template fails", "zero")),
    ],
    ids=str,
)
def test_a_template_that_fails_says_why(template, words):
    with pytest.raises(UserError) as error:
        render(template, [{"role": "system", "content": "Hi"}], {"bos_token": "<s>"})
    one_line(error, *words)
