"""Conversations as tokens: what a model's own template makes of messages, and which tokens it has to write itself."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache

import numpy as np

from contract.errors import UserError, needs
from data.conversation import REPLIES, Conversation, plain_parts
from data.tokenizers import Tokenizer, encode, end_token

Parts = list[tuple[str, bool]]  # of a text, and whether the model writes the part


class TemplateError(UserError):
    """A model's template cannot write a conversation; `problem` is the message without its advice."""

    def __init__(self, problem: str):
        self.problem = problem
        super().__init__(f"{problem}; leave out --system, or give a --prompt")


def chat_tokens(tokenizer: Tokenizer, messages: list[dict[str, str]], *, plain: bool = False) -> list[int]:
    """The tokens of a conversation up to where the model's next reply begins.

    messages: each with its "role" ("system", "user" or "assistant") and its "content"
    plain: whether a model without a template has learnt conversations as `plain_parts`
    Raises UserError for a model without a template, and with the template's own words if it refuses the messages.
    """
    template = _template_of(tokenizer)
    if template is not None:
        text = render(template, messages, tokenizer.role_texts())
        return tokenizer.encode(text, special=True).tolist()
    if not plain:
        raise UserError(
            "this model has no chat template; give it a --prompt, or import an instruction-tuned one"
        )
    ids, _ = _plain_tokens(tokenizer, [*plain_parts(messages), (f"{REPLIES.capitalize()}:", False)])
    return ids.tolist()


def learnt_tokens(
    tokenizer: Tokenizer, conversation: Conversation
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The tokens that a model learns replies from, int (T,), and which of them it has to write: bool (T,).

    A reply counts from where it would begin to write, up to its end token. Messages after the last reply are left out.
    As a rule it is one text. A template that writes earlier replies otherwise than the last one, such as without what
    was thought before them, gives a text for each.
    Raises UserError, naming the conversation's place, if the template refuses the messages or does not begin a reply as
    it is written.
    """
    template, messages = _template_of(tokenizer), conversation.messages
    if template is None:
        last = max(place for place, message in enumerate(messages) if message["role"] == REPLIES)
        yield _plain_tokens(tokenizer, plain_parts(messages[: last + 1]))
        return
    role_texts = tokenizer.role_texts()

    def write(messages: list[dict], reply: bool) -> str:
        return render(template, messages, role_texts, reply=reply)

    try:
        for parts in reply_parts(messages, write):
            yield _template_tokens(tokenizer, parts)
    except TemplateError as error:
        raise UserError(f"{conversation.place}: {error.problem}; change or remove the line") from error


def reply_parts(messages: list[dict], write: Callable[[list[dict], bool], str]) -> Iterator[Parts]:
    """The texts that the replies of a conversation are learnt from, in parts.

    write: a template: the text of messages, and with True the start of a reply
    """
    parts, text = [], ""
    for place, message in enumerate(messages):
        if message["role"] != REPLIES:
            continue
        before, after = write(messages[:place], True), write(messages[: place + 1], False)
        if not after.startswith(before):
            raise TemplateError("the model's chat template writes this reply otherwise than it begins one")
        if not before.startswith(text):
            yield parts
            parts, text = [], ""
        parts += [(before[len(text) :], False), (after[len(before) :], True)]
        text = after
    yield parts


def _template_of(tokenizer: Tokenizer) -> str | None:
    return getattr(tokenizer, "chat_template", None)


def _plain_tokens(tokenizer: Tokenizer, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """An end token follows each reply, or a line break if the tokenizer has none."""
    end = end_token(tokenizer)
    closing = encode(tokenizer, "\n") if end is None else [end]
    pieces = [
        np.append(encode(tokenizer, text), closing if is_reply else []).astype(np.int64)
        for text, is_reply in parts
    ]
    counts = [np.full(len(piece), is_reply) for piece, (_, is_reply) in zip(pieces, parts, strict=True)]
    return np.concatenate(pieces), np.concatenate(counts)


def _template_tokens(tokenizer: Tokenizer, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """The whole text is split into tokens: a part of its own may have others. What lies in two parts never counts."""
    ids, starts, stops = tokenizer.encode_places("".join(text for text, _ in parts))
    edges = np.cumsum([0, *(len(text) for text, _ in parts)])
    place = np.searchsorted(edges, starts, side="right") - 1  # the part that a token begins in
    place = np.minimum(place, len(parts) - 1)
    counts = np.array([is_reply for _, is_reply in parts])[place] & (stops <= edges[place + 1])
    is_end = np.isin(ids, tokenizer.ends)
    for part in np.unique(place[counts & is_end]):
        last = np.flatnonzero((place == part) & is_end)[-1]
        counts[last + 1 :] &= place[last + 1 :] != part  # such as the line break after it
    return ids, counts


def render(
    template: str, messages: list[dict[str, str]], role_texts: dict[str, str], *, reply: bool = True
) -> str:
    """The conversation as a published Jinja template writes it.

    role_texts: the texts of special tokens by the names that templates know: "bos_token" and so on
    reply: whether the start of a reply follows
    The template runs in a sandbox: it sees these values and what published templates expect, and changes nothing.
    """
    with needs("a conversation", "models", ["jinja2"]):
        import jinja2

    try:
        return _compiled(template).render(messages=messages, add_generation_prompt=reply, **role_texts)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise TemplateError(f"the model's chat template fails on these messages ({error})") from error


@lru_cache(maxsize=4)
def _compiled(template: str):
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}, which marks replies for other tools and writes nothing."""

        tags = frozenset(["generation"])

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _json  # Jinja's own escapes < and >, for web pages
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    return environment.from_string(template)


def _json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str):
    """What templates call for messages that they cannot write."""
    raise ValueError(message)
