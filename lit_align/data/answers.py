"""Which columns of a row hold answers, and what they are worth."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from lit_align.data.columns import Columns, Row, listed
from lit_align.data.messages import Content, is_list, messages_of
from lit_align.types import Answer, UserError


@dataclass(frozen=True)
class Answers(ABC):
    """Where the answers of a row are."""

    @abstractmethod
    def read(self, row: Row, columns: Columns) -> tuple[Answer, ...] | None:
        """The answers; none if what is there can't be used, None if the row has no such columns. Null counts as missing."""


@final
@dataclass(frozen=True)
class Pair(Answers):
    """A better answer, of score 1, and a worse one, of score 0.

    Args:
        chosen, rejected: their columns: texts, an assistant's turns, or whole conversations that begin with the prompt.
    """

    chosen: str = "chosen"
    rejected: str = "rejected"

    def read(self, row: Row, columns: Columns) -> tuple[Answer, ...] | None:
        """See `Answers.read`."""
        if row.get(self.chosen) is None or row.get(self.rejected) is None:
            return None
        return _scored([(row_answer(row, self.chosen, columns), 1.0), (row_answer(row, self.rejected, columns), 0.0)])


@final
@dataclass(frozen=True)
class Ranked(Answers):
    """Any number of answers, and a score for each.

    Args:
        responses: the column of the list of answers.
        scores: the column of their scores, in the same order; one that is null is of an answer that has no label.
    """

    responses: str = "responses"
    scores: str = "scores"

    def read(self, row: Row, columns: Columns) -> tuple[Answer, ...] | None:
        """See `Answers.read`."""
        responses, scores = row.get(self.responses), row.get(self.scores)
        if responses is None or scores is None:
            return None
        if not is_list(responses) or not is_list(scores) or len(responses) != len(scores):
            return ()
        return _scored([(answer_of(value, columns.content), score) for value, score in zip(responses, scores, strict=True)])


@final
@dataclass(frozen=True)
class Completions(Answers):
    """Any number of answers, each an object that holds its score, as UltraFeedback has them.

    Args:
        column: the column of the list.
        response: the key of the answer in each.
        score: the key of the score in each.
    """

    column: str = "completions"
    response: str = "response"
    score: str = "overall_score"

    def read(self, row: Row, columns: Columns) -> tuple[Answer, ...] | None:
        """See `Answers.read`."""
        found = row.get(self.column)
        if found is None:
            return None
        if not is_list(found) or not all(isinstance(one, Mapping) for one in found):
            return ()
        return _scored([(answer_of(one.get(self.response), columns.content), one.get(self.score)) for one in found])


@final
@dataclass(frozen=True)
class Labelled(Answers):
    """One answer that somebody found good (score 1) or bad (score 0), as TRL writes data for KTO.

    Args:
        answer: its column.
        label: the column of true or false, or 1 or 0.
    """

    answer: str = "completion"
    label: str = "label"

    def read(self, row: Row, columns: Columns) -> tuple[Answer, ...] | None:
        """See `Answers.read`. A label that is null is no demonstration."""
        if self.label not in row or row.get(self.answer) is None:
            return None
        return _scored([(row_answer(row, self.answer, columns), row[self.label])]) if row[self.label] in (0, 1) else ()


@final
@dataclass(frozen=True)
class Demonstration(Answers):
    """One answer to imitate, of score 1.

    Args:
        answer: its column; null looks for ``completion``, ``chosen``, the last turns of a conversation, and ``output``.
        every_turn: of a conversation, all turns of the assistant are learnt; false for the last one only.
    """

    answer: str | None = None
    every_turn: bool = True

    def read(self, row: Row, columns: Columns) -> tuple[Answer, ...] | None:
        """See `Answers.read`."""
        places = ("completion", "chosen", *columns.tails, "output") if self.answer is None else (self.answer,)
        column = next((place for place in places if row.get(place) is not None), None)
        if column is None:
            return None
        content = row_answer(row, column, columns)
        whole = self.every_turn and column in columns.tails and not isinstance(columns.content, str)
        return () if content is None else (Answer(content, 1.0, conversation=whole),)


LAYOUTS: tuple[Answers, ...] = (Pair(), Ranked(), Completions(), Labelled(), Demonstration())
"""In the order in which they are tried."""


def answers_in(row: Row, columns: Columns, named: Answers | None, where: str) -> tuple[Answer, ...]:
    """The answers of a row: where ``named`` says, or by the first layout that it has; none where nothing is said and it has none, for
    a run that samples its own needs none.

    Raises:
        UserError: if they are not where ``named`` says.
    """
    if named is None:
        return next((found for layout in LAYOUTS if (found := layout.read(row, columns)) is not None), ())
    found = named.read(row, columns)
    if not found:
        raise UserError(f"{where}: expected {named}, but found {listed(row)}. Correct the row, or set `answers` of the prompt source.")
    return found


def row_answer(row: Row, column: str, columns: Columns) -> Content | None:
    """What ``column`` says after the prompt; None if it is no answer."""
    return answer_of(columns.tails.get(column, row[column]), columns.content)


def answer_of(value: Any, prompt: Content) -> Content | None:
    """An answer to ``prompt``: a text, or turns that begin and end with the assistant's, with the prompt before them or not; None if it
    is no such thing. One turn of nothing but text is that text."""
    if isinstance(value, str):
        return value
    try:
        turns = messages_of([value] if isinstance(value, Mapping) else value, "")
    except UserError:
        return None
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if not turns or {turns[0]["role"], turns[-1]["role"]} != {"assistant"}:
        return None
    plain = len(turns) == 1 and (isinstance(prompt, str) or turns[0].keys() == {"role", "content"})
    return turns[0]["content"] if plain else turns


def _scored(pairs: list[tuple[Content | None, Any]]) -> tuple[Answer, ...]:
    """Answers with their scores; none at all if one is no answer, or one score no number."""
    found = []
    for content, score in pairs:
        if content is None or not isinstance(score, int | float | None):
            return ()
        known = score is not None and math.isfinite(score)
        found.append(Answer(content, float(score) if known else None))
    return tuple(found)
