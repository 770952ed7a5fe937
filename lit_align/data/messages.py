"""Conversations in files: checked, made of transcripts, split into prompt and answer."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeGuard

from lit_align.types import Message, UserError

Content = str | tuple[Message, ...]
"""A prompt: a text, or messages."""

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""The marks of a transcript, as Anthropic's HH writes one."""

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"}
"""The speakers of ShareGPT's ``conversations``, as chat templates call them."""


def as_chat(content: Content) -> tuple[Message, ...]:
    r"""A text as messages: a transcript (``"\n\nHuman: ...\n\nAssistant:"``) turn by turn, any other as the user's one turn.

    Where one speaker has two turns in a row, as happens in HH, they become one: chat templates insist on changing sides.

    >>> [message["role"] for message in as_chat("\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: And now?\n\nAssistant:")]
    ['user', 'assistant', 'user']
    >>> as_chat("Hi.")
    ({'role': 'user', 'content': 'Hi.'},)
    """
    if not isinstance(content, str):
        return content
    if not (content.startswith(HUMAN) and content.endswith(ASSISTANT)):
        return ({"role": "user", "content": content},)
    parts = re.split(rf"({HUMAN}|{ASSISTANT})", content)[1:-2]  # mark, text, mark, text, ...; the last mark waits
    roles = {HUMAN: "user", ASSISTANT: "assistant"}
    turns = groupby(zip(parts[::2], parts[1::2], strict=True), key=itemgetter(0))
    return tuple({"role": roles[mark], "content": "\n\n".join(text.strip() for _, text in same)} for mark, same in turns)


def messages_of(value: object, where: str, expected: str = "a list of messages") -> tuple[Message, ...]:
    """The messages, checked and with the role and content of ShareGPT's ``from`` and ``value``; further texts in them are kept."""
    if not is_list(value) or len(value) == 0:
        raise UserError(
            f'{where}: expected {expected} such as [{{"role": "user", "content": "..."}}], got {shown(value)}. '
            "Correct the row, or set prompt_field or messages_field to another field."
        )
    return tuple(_message(message, f"{where}, message {turn} (counted from 0)") for turn, message in enumerate(value))


def _message(message: object, where: str) -> Message:
    if isinstance(message, Mapping):
        texts = {key: text for key, text in message.items() if isinstance(text, str)}
        if {"role", "content"} <= texts.keys():
            return texts
        if {"from", "value"} <= texts.keys() and texts["from"] in ROLES:
            return {"role": ROLES[texts.pop("from")], "content": texts.pop("value"), **texts}
    raise UserError(
        f"{where}: expected an object with the texts 'role' and 'content' (or 'from', one of {', '.join(ROLES)}, and 'value'), "
        f"got {shown(message)}. Correct the row, or set prompt_field or messages_field to another field."
    )


def waiting(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Up to the last turn that is not the assistant's."""
    end = max((turn for turn, message in enumerate(messages, start=1) if message["role"] != "assistant"), default=0)
    return tuple(messages[:end])


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list, or what a reader of Parquet makes of one."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def shown(value: object) -> str:
    """A value and its type, for an error."""
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"
