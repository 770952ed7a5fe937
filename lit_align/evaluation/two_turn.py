"""Questions with a follow-up, as MT-bench asks them: the policy reads its own first answer, and each answer gets a grade from 1 to 10."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.evaluation.answers import text_rollouts
from lit_align.evaluation.bootstrap import bootstrap_interval
from lit_align.evaluation.report import judge_warning, table, without_infinities
from lit_align.types import Annotator, Message, Prompt

MIDDLE, HALF = 5.5, 4.5  # a scoring judge's score is (grade - 5.5) / 4.5
Ask = Callable[[Sequence[Prompt]], Sequence[str | None]]
"""Answers to prompts of messages, None where there is none."""


@final
@dataclass(frozen=True, slots=True)
class Question:
    """What the user says turn by turn, with the reference answers that are known."""

    id: int
    turns: tuple[str, ...]
    references: tuple[str | None, ...]
    category: str = ""

    def prompt(self, turn: int, answers: Sequence[str | None]) -> Prompt:
        """The conversation up to the user's turn number ``turn``, from 0, with what the policy answered to those before."""
        said: list[Message] = []
        for asked, answer in zip(self.turns[:turn], answers, strict=False):
            said += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer or ""}]
        return Prompt(self.id, (*said, {"role": "user", "content": self.turns[turn]}), reference=self.references[turn])


@final
@dataclass(frozen=True, slots=True)
class Grade:
    """A mean between 1 and 10 with its interval, and the number of answers that were graded."""

    value: float
    low: float
    high: float
    n: int


@final
@dataclass(frozen=True, slots=True)
class GradeReport:
    """Grades of every model, over all answers and by turn and category; ``trained_for_judge`` are models that this judge trained."""

    judge: str
    questions: int
    level: float
    models: dict[str, dict[str, Grade]]
    trained_for_judge: list[str]

    @property
    def json(self) -> str:
        """Every number, by name."""
        return json.dumps(without_infinities(asdict(self)), indent=2, ensure_ascii=False) + "\n"

    @property
    def markdown(self) -> str:
        """A page."""
        lines = [f"Judge: {self.judge}, {self.questions} questions, grades from 1 to 10.", *judge_warning(self.trained_for_judge), ""]
        parts = list(next(iter(self.models.values())))
        head = ["answers", *self.models]
        rows = [[part, *(_shown(grades[part]) for grades in self.models.values())] for part in parts]
        return "\n".join([*lines, *table([head, *rows]), "", f"Mean grade, its {self.level:.0%} interval, number of answers."]) + "\n"


def converse(questions: Sequence[Question], ask: Ask) -> list[tuple[str | None, ...]]:
    """Let a policy answer all turns of every question, in its own words so far; a conversation ends where it has no answer.

    Args:
        questions: all with as many turns.
        ask: the policy.

    Returns:
        Answers per question; None from the first missing one on.
    """
    answers: list[list[str | None]] = [[] for _ in questions]
    for turn in range(len(questions[0].turns)):
        going = [i for i, said in enumerate(answers) if None not in said]
        found = ask([questions[i].prompt(turn, answers[i]) for i in going]) if going else []
        of_turn = dict(zip(going, found, strict=True))
        for i, said in enumerate(answers):
            said.append(of_turn.get(i))
    return [tuple(said) for said in answers]


def graded(questions: Sequence[Question], answers: Sequence[Sequence[str | None]], judges: Sequence[Annotator], chunk: int = 32) -> Tensor:
    """Grades from 1 to 10, ``[questions, turns]`` in float64; NaN where there is no answer or the judge gave no valid grade.

    Args:
        questions: all with as many turns.
        answers: one per turn, of every question.
        judges: of each turn, set up already; their scores are those of a scoring judge, from -1 to 1.
        chunk: answers that are graded together.
    """
    grades = torch.full((len(questions), len(judges)), math.nan, dtype=torch.float64)
    for turn, judge in enumerate(judges):
        there = [i for i, said in enumerate(answers) if said[turn] is not None]
        for start in range(0, len(there), chunk):
            rows = there[start : start + chunk]
            prompts = [questions[i].prompt(turn, answers[i]) for i in rows]
            said = judge.annotate(text_rollouts(prompts, [(answers[i][turn] or "",) for i in rows]))
            grades[rows, turn] = (said.scores[:, 0].double().cpu() * HALF + MIDDLE).where(said.valid[:, 0].cpu(), math.nan)
    return grades


def summarised(questions: Sequence[Question], grades: Tensor, *, level: float = 0.95, seed: int = 0) -> dict[str, Grade]:
    """Mean grades of all answers, of every turn, and of every category, with bootstrap intervals over questions.

    Args:
        questions: that were asked.
        grades: see `graded`.
        level: of confidence, between 0 and 1.
        seed: of the bootstrap.
    """
    found = {"all": _mean(grades, level, seed)}
    found |= {f"turn {turn + 1}": _mean(grades[:, turn : turn + 1], level, seed) for turn in range(grades.shape[1])}
    for category in sorted({question.category for question in questions} - {""}):
        found[category] = _mean(grades[[question.category == category for question in questions]], level, seed)
    return found


def _mean(grades: Tensor, level: float, seed: int) -> Grade:
    """Over what is no NaN; both answers to a question are drawn together. Of a single question nothing is known."""
    there = ~grades.isnan()
    rows = there.any(-1)
    sums, counts = grades.where(there, 0.0).sum(-1)[rows], there.sum(-1)[rows].double()
    n = int(there.sum())
    if not n:
        return Grade(math.nan, 1.0, 10.0, 0)
    value = float(sums.sum() / n)
    if len(sums) == 1:
        return Grade(value, 1.0, 10.0, n)
    low, high = bootstrap_interval(lambda drawn: (drawn @ sums) / (drawn @ counts), len(sums), level=level, resamples=2000, seed=seed)
    return Grade(value, float(low), float(high), n)


def _shown(grade: Grade) -> str:
    return f"{grade.value:.2f} ({grade.low:.2f} to {grade.high:.2f}; {grade.n})" if grade.n else "none"
