"""Which columns of a row hold the prompt: one function for every layout that datasets come in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from lit_align.data.messages import ASSISTANT, Content, is_list, messages_of, shown, waiting
from lit_align.types import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of one row are.

    Attributes:
        content: the prompt, a text or messages that wait for an answer.
        prompt_columns: those that hold the prompt and nothing else.
        tails: of every column that holds the prompt and what follows it: what follows, a text or messages.
    """

    content: Content
    prompt_columns: frozenset[str]
    tails: Mapping[str, Content] = field(default_factory=dict)


Layout = Callable[[Row, str], Columns | None]
"""From a row, and where it is as errors name it, to its columns; None where the row is laid out in another way. A column that is
null counts as missing."""


def message_list(row: Row, where: str) -> Columns | None:
    """``messages``, as OpenAI and TRL write them: all turns before the assistant's last one, which is the answer where there is one."""
    return None if row.get("messages") is None else conversation_in(row, "messages", where)


def sharegpt(row: Row, where: str) -> Columns | None:
    """``conversations`` of ``{"from": ..., "value": ...}``; as `message_list`."""
    return None if row.get("conversations") is None else conversation_in(row, "conversations", where)


def answered_chat(row: Row, where: str) -> Columns | None:
    """``chosen``, and ``rejected`` where there is one, as whole conversations: UltraFeedback's binarised form, with or without the
    text of the prompt beside them. The prompt is the turns that they share, up to the last one that is not the assistant's."""
    whole = [column for column in ("chosen", "rejected") if is_list(row.get(column))]
    if "chosen" not in whole or is_list(row.get("prompt")):
        return None
    chats = {column: messages_of(row[column], f"{where}, field {column!r}") for column in whole}
    prompt = waiting(_shared(chats.values()))
    if not prompt:
        return None  # an answer alone: the prompt is elsewhere
    return Columns(prompt, frozenset(), {column: chat[len(prompt) :] for column, chat in chats.items()})


def prompt_column(row: Row, where: str) -> Columns | None:
    """``prompt``, a text or messages: TRL's explicit form, whatever else is in the row."""
    return None if row.get("prompt") is None else prompt_in(row, "prompt", where)


def transcript_pair(row: Row, where: str) -> Columns | None:
    r"""``chosen``, and ``rejected`` where there is one, as HH has them: texts of a whole dialogue. The prompt is what they share, up to
    and including the last ``"\n\nAssistant:"``."""
    texts = {column: row[column] for column in ("chosen", "rejected") if isinstance(row.get(column), str)}
    shared = "".join(_shared(texts.values()))
    if "chosen" not in texts or ASSISTANT not in shared:
        return None
    prompt = shared[: shared.rindex(ASSISTANT) + len(ASSISTANT)]
    return Columns(prompt, frozenset(), {column: text[len(prompt) :].strip() for column, text in texts.items()})


def instruction(row: Row, where: str) -> Columns | None:
    """``instruction``, as UltraFeedback has it, and below it what is in ``input``, as Alpaca has it."""
    asked, given = row.get("instruction"), row.get("input")
    if not isinstance(asked, str):
        return None
    if not isinstance(given, str) or not given:
        return Columns(asked, frozenset({"instruction"}))
    return Columns(f"{asked}\n\n{given}", frozenset({"instruction", "input"}))


LAYOUTS: tuple[Layout, ...] = (message_list, sharegpt, answered_chat, prompt_column, transcript_pair, instruction)
"""In the order in which they are tried: the first whose columns a row has is what it is read by."""


def recognised(row: Row, where: str) -> Columns:
    """The columns of ``row`` by the first layout that it has.

    Raises:
        UserError: if it has none, or a column does not hold what its name says.
    """
    for layout in LAYOUTS:
        columns = layout(row, where)
        if columns is not None:
            return columns
    raise UserError(
        f"{where}: expected a prompt in 'prompt', 'messages', 'conversations', 'instruction', or in 'chosen' as a whole dialogue, but "
        f"found {listed(row)}. Set prompt_field or messages_field to the field that holds the prompt."
    )


def named(row: Row, prompt_field: str | None, messages_field: str | None, where: str) -> Columns:
    """The columns of ``row`` where someone said which they are: the conversation if there is one, else the prompt.

    Raises:
        UserError: if neither is there, or one does not hold what it should.
    """
    if messages_field is not None and row.get(messages_field) is not None:
        return conversation_in(row, messages_field, where)
    if prompt_field is not None and row.get(prompt_field) is not None:
        return prompt_in(row, prompt_field, where)
    expected = " or ".join(
        f"{what} in {column!r}" for what, column in (("a text", prompt_field), ("a list of messages", messages_field)) if column
    )
    raise UserError(
        f"{where}: expected {expected}, but found {listed(row)}. Set prompt_field or messages_field to the field that holds the prompt."
    )


def conversation_in(row: Row, column: str, where: str) -> Columns:
    """A list of messages in one column, which may end with the answer."""
    messages = messages_of(row[column], f"{where}, field {column!r}")
    prompt = waiting(messages)
    if not prompt:
        raise UserError(
            f"{where}, field {column!r}: expected a turn that waits for an answer, but every one is the assistant's. Correct the row, or "
            "set prompt_field or messages_field to another field."
        )
    if len(prompt) == len(messages):
        return Columns(prompt, frozenset({column}))
    return Columns(prompt, frozenset(), {column: messages[len(prompt) :]})


def prompt_in(row: Row, column: str, where: str) -> Columns:
    """A prompt in one column: a text, or messages that wait for an answer."""
    value = row[column]
    if isinstance(value, str):
        return Columns(value, frozenset({column}))
    messages = messages_of(value, f"{where}, field {column!r}", expected="a text or a list of messages")
    if messages[-1]["role"] == "assistant":
        raise UserError(
            f"{where}, field {column!r}: expected messages that wait for an answer, but the last one is the assistant's. Leave it out, or "
            f"set messages_field to {column!r}: it is then the answer."
        )
    return Columns(messages, frozenset({column}))


def answer_in(row: Row, column: str, columns: Columns, where: str) -> str | None:
    """The answer in ``column``: its text, the one assistant's turn in it, or what follows the prompt where it holds that too.

    Raises:
        UserError: if it is neither null nor any of these.
    """
    value = columns.tails.get(column, row[column])
    if value is None or isinstance(value, str):
        return value
    turns = [value] if isinstance(value, Mapping) else value
    try:
        messages = messages_of(turns, where)
    except UserError:
        messages = ()
    if len(messages) == 1 and messages[0]["role"] == "assistant":
        return messages[0]["content"]
    raise UserError(
        f"{where}, field {column!r}: expected one answer, a text or null, got {shown(value)}. "
        "Write it as a text, or leave reference_field out: the value is then in the prompt's meta."
    )


def _shared(sequences: Iterable[Sequence[Any]]) -> list[Any]:
    """The items that all of them begin with."""
    return [items[0] for items in takewhile(lambda items: items.count(items[0]) == len(items), zip(*sequences, strict=False))]


def listed(row: Row) -> str:
    """The columns of a row, for an error."""
    return ", ".join(f"{column!r}{' (null)' if value is None else ''}" for column, value in row.items()) or "no field at all"
