"""Conversations as people keep them: a list of messages, each with a role and a content."""

from contract.errors import UserError
from contract.schema import shortened

MESSAGES = "messages"  # the field of a JSONL that holds conversations
REPLIES = "assistant"  # the role whose messages the model writes


class Conversation(str):
    """A conversation, which is read as its plain text where its messages don't matter.

    messages: each with its "role" and its "content"; place: where it was read, such as "chats.jsonl: line 3"
    """

    messages: list[dict]
    place: str

    def __new__(cls, messages: list[dict], place: str):
        text = super().__new__(cls, "".join(text for text, _ in plain_parts(messages)))
        text.messages, text.place = messages, place
        return text


def conversation_of(messages, place: str) -> Conversation:
    """The conversation in a field of a line of JSONL. Raises UserError naming the place."""
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise UserError(
            f"{place}: the field {MESSAGES!r} is {shortened(messages)}, expected a list of messages, each with a text "
            "as its 'role' and its 'content'; repair it"
        )
    if not any(message["role"] == REPLIES for message in messages):
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages)) or "none"
        raise UserError(
            f"{place}: no message is of the role {REPLIES!r} (roles: {roles}), so there is no reply to learn; "
            "remove the line"
        )
    try:
        conversation = Conversation(messages, place)
        conversation.encode()
    except UnicodeEncodeError as error:
        half = ord(conversation[error.start])
        raise UserError(f"{place}: a message holds U+{half:04X}, half of a character; repair it") from None
    return conversation


def _is_message(message) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(name), str) for name in ("role", "content")
    )


def plain_parts(messages: list[dict]) -> list[tuple[str, bool]]:
    """A conversation as text for a model without a template of its own, and whether a reply is what the part says.

    User: What is a cat?
    Assistant: A small animal.
    """
    parts = []
    for message in messages:
        role, content = message["role"].capitalize(), message["content"]
        is_reply = message["role"] == REPLIES
        parts += (
            [(f"{role}:", False), (f" {content}", True)] if is_reply else [(f"{role}: {content}\n", False)]
        )
    return parts
