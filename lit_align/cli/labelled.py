"""A file of labelled pairs: which columns hold what."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from lit_align.cli.labels import Labels
from lit_align.cli.settings import did_you_mean
from lit_align.data import JsonlPrompts, ParquetPrompts
from lit_align.data.columns import listed
from lit_align.data.messages import is_list, shown
from lit_align.evaluation.agreement.judging import PairVerdicts
from lit_align.evaluation.agreement.pairs import TIE
from lit_align.types import Prompt, UserError

RESPONSES = (
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("output_1", "output_2"),
    ("response_a", "response_b"),
    ("answer_a", "answer_b"),
)
"""Names under which the two responses are found by themselves."""

NOTHING = object()  # a column that a row does not have


@final
class LabelledFile:
    """The rows of a JSONL or Parquet file, each a prompt with labels and perhaps two responses.

    A column may lead into what it holds by dots: ``ai.gpt-4`` is ``gpt-4`` in the object ``ai``, ``votes.winner`` is ``winner`` of every
    object in the list ``votes``, ``verdicts.0`` the first item of a list.

    Args:
        path: the file; Parquet if its name ends in ``.parquet``.
        prompt_field, messages_field: the prompt's column, see `RowPrompts`.
        max_pairs: the first so many rows; None for all.

    Raises:
        UserError: if there is no such file, or a row is malformed or has no prompt.
    """

    def __init__(self, path: str, prompt_field: str | None, messages_field: str | None, max_pairs: int | None) -> None:
        reader = ParquetPrompts if path.endswith(".parquet") else JsonlPrompts
        self.path = path
        self.prompts: list[Prompt] = list(reader(path, prompt_field=prompt_field, messages_field=messages_field, max_prompts=max_pairs))

    @property
    def prompt_numbers(self) -> Tensor:
        """The same number where the same prompt is, ``[N]``."""
        seen: dict[Any, int] = {}
        return torch.tensor([seen.setdefault(repr(prompt.content), len(seen)) for prompt in self.prompts])

    def votes(self, column: str, labels: Labels) -> Tensor:
        """How many voted for the first, a tie, the second, ``[N, 3]``: of a label, or a list of one per person."""
        counts = torch.zeros(len(self.prompts), 3, dtype=torch.long)
        for row, value, where in self._values("human", column):
            for vote in value if is_list(value) else [value]:
                if (choice := labels.choice(vote, where)) is not None:
                    counts[row, choice] += 1
        return counts

    def preferred(self) -> tuple[Tensor, list[tuple[str, str]]]:
        """Votes and texts of rows that hold a better and a worse answer instead of a label, such as ``chosen`` and ``rejected``.

        About every second row, chosen by its prompt's id, has the better one second: kappa is about whom one chooses, and says nothing
        where that is always the first.

        Raises:
            UserError: if a row does not hold two such answers.
        """
        votes, texts = torch.zeros(len(self.prompts), 3, dtype=torch.long), []
        for row, prompt in enumerate(self.prompts):
            ranked = [(answer.content, answer.score) for answer in prompt.answers if isinstance(answer.content, str)]
            gap = [score for _, score in ranked if score is not None]
            if len(prompt.answers) != 2 or len(gap) != 2:
                raise UserError(
                    f"{self.path}, row {row} (counted from 0): without --human, expected a better and a worse answer, such as 'chosen' and "
                    f"'rejected', but found {listed(prompt.meta)}. Name the column of people's labels with --human."
                )
            turn = -1 if prompt.id % 2 else 1
            first, second = (text for text, _ in ranked[::turn])
            texts.append((first, second))
            votes[row, TIE - turn * ((gap[0] > gap[1]) - (gap[0] < gap[1]))] = 1
        return votes, texts

    def verdicts(self, column: str, swapped: str | None, labels: Labels, *, soft: bool) -> PairVerdicts:
        """Of a judge: labels, or probabilities that the first is better if ``soft``; both orders where ``swapped`` is a column or every
        value is a list of two. In both orders a label or probability is about the same response.

        Raises:
            UserError: if a value is none of these.
        """

        def read(value: object, where: str) -> float:
            return _probability(value, where) if soft else _certainty(labels.choice(value, where))

        said: dict[int, list[float]] = {}
        for row, value, where in self._values("ai", column):
            said[row] = [read(one, where) for one in (value if is_list(value) else [value])]
        if swapped is not None:
            for row, value, where in self._values("ai_swapped", swapped):
                said[row] = [*said.get(row, [math.nan]), read(value, where)]
        sizes = {len(row) for row in said.values()}
        if not sizes <= {1} and not sizes <= {2}:
            raise UserError(
                f"{self.path}: expected one verdict of the judge in every row of {column!r}, or two, one for each order, but found "
                f"{', '.join(map(str, sorted(sizes)))}."
            )
        width = max(sizes, default=1)
        orders = torch.tensor([said.get(row, [math.nan] * width) for row in range(len(self.prompts))], dtype=torch.float64)  # [N, width]
        return PairVerdicts(orders.mean(-1), orders if width == 2 else None, soft)

    def responses(self, columns: Sequence[str] | None) -> list[tuple[str, str]] | None:
        """The two texts of every row; None where no column is named and none has a usual name.

        Raises:
            UserError: if a column that is named, or a text, is missing.
        """
        first, second = columns or next((pair for pair in RESPONSES if set(pair) <= self.prompts[0].meta.keys()), (None, None))
        if first is None or second is None:
            return None
        texts = [[_text(value, where) for _, value, where in self._values("responses", column)] for column in (first, second)]
        if len({len(self.prompts), *map(len, texts)}) > 1:
            raise UserError(f"{self.path}: expected a text in {first!r} and {second!r} of every row, but some rows have none.")
        return list(zip(*texts, strict=True))

    def subsets(self, column: str) -> tuple[str, ...]:
        """The subset of every row, ``none`` where it has none."""
        named = {row: str(value) for row, value, _ in self._values("subset", column)}
        return tuple(named.get(row, "none") for row in range(len(self.prompts)))

    def columns(self) -> str:
        """Those of the first row, as errors list them."""
        return listed(self.prompts[0].meta)

    def _values(self, option: str, column: str) -> Iterator[tuple[int, Any, str]]:
        """Row number, value and place of every row that has the column."""
        found = False
        for row, prompt in enumerate(self.prompts):
            value = _inside(prompt.meta, column)
            if value is not NOTHING:
                found = found or value != [] or column in prompt.meta  # no votes have no winner, whatever it is called
                yield row, value, f"{self.path}, row {row} (counted from 0), {column!r}"
        if not found:
            raise UserError(f"{self.path}: no row has the column {column!r} of --{option}. {self._nearest(column)}")

    def _nearest(self, column: str) -> str:
        inside, path = self.prompts[0].meta, ""
        for i, letter in enumerate(column):
            head = _inside(self.prompts[0].meta, column[:i]) if letter == "." else NOTHING
            head = head[0] if is_list(head) and head else head
            if isinstance(head, Mapping):
                inside, path = head, column[: i + 1]
        names = [path + str(name) for name in inside]
        shown_names = names if len(names) <= 20 else [*names[:20], f"... ({len(names)} in all)"]
        if not names:
            return "There are no others than the prompt's."
        return f"There are: {', '.join(shown_names)}.{did_you_mean(column, names)}"


def _inside(value: object, path: str) -> Any:
    """What ``path`` leads to, NOTHING if it leads nowhere; a name may have dots itself."""
    if is_list(value):
        index, _, rest = path.partition(".")
        if not index.isdigit():
            found = [_inside(one, path) for one in value]
            return NOTHING if NOTHING in found else found
        if int(index) >= len(value):
            return NOTHING
        return _inside(value[int(index)], rest) if rest else value[int(index)]
    if not isinstance(value, Mapping):
        return NOTHING
    if path in value:
        return value[path]
    heads = [path[:i] for i, letter in enumerate(path) if letter == "." and path[:i] in value]
    inside = [_inside(value[head], path[len(head) + 1 :]) for head in heads]
    return next((one for one in inside if one is not NOTHING), NOTHING)


def _certainty(choice: int | None) -> float:
    return math.nan if choice is None else 1 - choice / 2


def _probability(value: object, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isnan(value) or 0 <= value <= 1):
        raise UserError(
            f"{where}: expected the probability that the first is better, from 0 to 1, got {shown(value)}. Is it a label? Then "
            "leave --soft out."
        )
    return float(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: expected the text of a response, got {shown(value)}. Name the columns of both texts with --responses.")
    return value
