"""Conversations as text: what a model's own template makes of messages."""

import json
from datetime import datetime

from contract.errors import UserError, needs
from data.tokenizers import Tokenizer


def chat_tokens(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """The tokens of a conversation up to where the model's next reply begins.

    messages: each with its "role" ("system", "user" or "assistant") and its "content"
    Raises UserError for a model without a template, and with the template's own words if it refuses the messages.
    """
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        raise UserError(
            "this model has no chat template; give it a --prompt, or import an instruction-tuned one"
        )
    text = render(template, messages, tokenizer.role_texts())
    return tokenizer.encode(text, special=True).tolist()


def render(template: str, messages: list[dict[str, str]], role_texts: dict[str, str]) -> str:
    """The conversation as a published Jinja template writes it, with the start of a reply.

    role_texts: the texts of special tokens by the names that templates know: "bos_token" and so on
    The template runs in a sandbox: it sees these values and what published templates expect, and changes nothing.
    """
    with needs("a conversation", "models", ["jinja2"]):
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _json  # Jinja's own escapes < and >, for web pages
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    try:
        rendered = environment.from_string(template)
        return rendered.render(messages=messages, add_generation_prompt=True, **role_texts)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"the model's chat template fails on these messages ({error}); leave out --system, or give a --prompt"
        ) from error


def _json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str):
    """What templates call for messages that they cannot write."""
    raise ValueError(message)
