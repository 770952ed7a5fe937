"""What every source that reads a table shares: from a row to a prompt."""

import hashlib
import json
from abc import ABC
from dataclasses import dataclass, field
from typing import final

from lit_align.data.answers import Answers, answers_in
from lit_align.data.columns import Row, answer_in, listed, named, recognised
from lit_align.data.messages import as_chat
from lit_align.types import IndexedPrompts, Prompt, PromptSource, PromptStream, UserError


def prompt_id(name: str, row: int) -> int:
    """A number in ``[0, 2**63)`` that is the same on every machine: a blake2b hash of the dataset's name and the row's number.

    >>> prompt_id("poems", 0) == prompt_id("poems", 0), prompt_id("poems", 0) == prompt_id("poems", 1)
    (True, False)
    """
    digest = hashlib.blake2b(json.dumps([name, row]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(kw_only=True, eq=False, repr=False)
class RowPrompts(PromptSource, ABC):
    """Prompts made of the rows of a table; a subclass says where the rows are.

    Which columns hold the prompt is recognised by their names (:data:`lit_align.data.columns.LAYOUTS` says in which order), unless
    ``prompt_field`` or ``messages_field`` name them. Every column goes to ``meta``, except the reference's and those that hold
    the prompt and nothing else.

    Args:
        prompt_field: the column of the prompt, a text or messages. Where it or ``messages_field`` is set, nothing is guessed.
        messages_field: the column of a conversation, which wins over ``prompt_field`` where a row has both. It may end with the
            assistant's answer, which is then no part of the prompt.
        reference_field: the column of the reference answer: a text, an assistant's turn, or a conversation that ends with it.
            Null if there is none.
        answers: where the answers of fixed data are, for a `PreferenceDataModule`: a `Pair`, `Ranked`, `Completions`, `Labelled` or
            `Demonstration` that names its columns; null for the first of them whose usual columns a row has.
        chat: makes messages of texts: of a transcript ("Human: ... Assistant:") its turns, of any other text the user's turn.
        name: half of every prompt's id, and the dataset's name in a mixture; empty for the file's.
        max_prompts: the first so many rows; null for all.
    """

    prompt_field: str | None = None
    messages_field: str | None = None
    reference_field: str | None = None
    answers: Answers | None = None
    chat: bool = False
    name: str = ""
    max_prompts: int | None = None
    where: str = field(init=False)  # the source, as an error names it

    @final
    def describe(self, where: str, name: str) -> None:
        """Set what errors call the source, and its name if the user gave none; refuse a limit that is none."""
        self.where, self.name = where, self.name or name
        if self.max_prompts is not None and self.max_prompts < 1:
            raise UserError(f"max_prompts: expected a number of at least 1, or null for all, got {self.max_prompts}.")

    @final
    def prompt(self, number: int, row: Row) -> Prompt:
        """The prompt in ``row``, which has this number in its source before any filter.

        Raises:
            UserError: if the row has no prompt, or a column has the wrong type.
        """
        where = f"{self.where}, row {number} (counted from 0)"
        if self.prompt_field is None and self.messages_field is None:
            columns = recognised(row, where)
        else:
            columns = named(row, self.prompt_field, self.messages_field, where)
        reference = None
        if self.reference_field is not None:
            if self.reference_field not in row:
                raise UserError(
                    f"{where}: expected the reference answer in {self.reference_field!r}, but found {listed(row)}. "
                    "Set reference_field to the field that holds it, or to null if there is none."
                )
            reference = answer_in(row, self.reference_field, columns, where)
        meta = {column: value for column, value in row.items() if column not in columns.prompt_columns | {self.reference_field}}
        content = as_chat(columns.content) if self.chat else columns.content
        return Prompt(prompt_id(self.name, number), content, reference, meta, answers=answers_in(row, columns, self.answers, where))


def checked(source: IndexedPrompts | PromptStream, where: str, first_only: bool = False) -> None:
    """Read the prompts once, so that a row that is none is told before the run.

    Raises:
        UserError: if there is no prompt, or a row is none.
    """
    empty = True
    for _ in source:
        empty = False
        if first_only:
            break
    if empty:
        raise UserError(f"{where}: expected at least one prompt, but it is empty. Check that it is the right one.")
