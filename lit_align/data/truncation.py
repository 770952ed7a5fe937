"""A prompt cut at its beginning until it fits, without losing what every prompt needs: its BOS token, its system turn."""

from collections.abc import Sequence
from dataclasses import replace

from lit_align.types import Message, Prompt, TextModel

INSTRUCTING = {"system", "developer"}  # roles of the turns that a conversation may begin with


def encode_within(model: TextModel, prompt: Prompt, max_tokens: int) -> list[int] | None:
    """Token ids of the end of ``prompt``, at most ``max_tokens``; None if there is no way.

    A plain text loses tokens on its left, but not a BOS token there. A conversation keeps its system turn and its last user turn
    with what follows; turns in between go, oldest first, always up to another user turn, since templates expect one after the
    system turn. If the last one alone is still too long, its text loses characters on the left, as few as will do. So the template's own
    tokens are whole, and None is a system turn that leaves no room.
    """
    tokens = model.encode(prompt)
    if len(tokens) <= max_tokens:
        return tokens
    if isinstance(prompt.content, str):
        kept = tokens[:1] if tokens[0] == model.bos_id else []
        return kept + tokens[len(tokens) - max_tokens + len(kept) :]
    return _conversation_within(model, prompt, prompt.content, max_tokens)


def _conversation_within(model: TextModel, prompt: Prompt, messages: Sequence[Message], max_tokens: int) -> list[int] | None:
    def fitting(*rest: Message) -> list[int] | None:
        tokens = model.encode(replace(prompt, content=(*messages[:begin], *rest)))
        return tokens if len(tokens) <= max_tokens else None

    begin = next((i for i, message in enumerate(messages) if message["role"] not in INSTRUCTING), len(messages))
    users = [i for i in range(begin, len(messages)) if messages[i]["role"] == "user"]
    for user in users:
        if (tokens := fitting(*messages[user:])) is not None:
            return tokens
    if not users:
        return None
    last, *after = messages[users[-1] :]
    text = last["content"]
    best, low, high = fitting({**last, "content": ""}, *after), 0, len(text)  # all of it cut off fits, or nothing does
    while best is not None and low < high:
        middle = (low + high) // 2
        if (tokens := fitting({**last, "content": text[middle:]}, *after)) is None:
            low = middle + 1
        else:
            best, high = tokens, middle
    return best
