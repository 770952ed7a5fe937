"""What a judge's verdicts add up to, as numbers and as a page to read."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, final

import torch

from lit_align.evaluation.judging import Verdicts
from lit_align.evaluation.length import LengthBin, LengthControlled, by_length, length_controlled
from lit_align.evaluation.ratings import Rating, bradley_terry
from lit_align.evaluation.win_rate import WinRate, verdict_rate


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides: the win rate of ``first`` as it is, at equal length and by length, and mean lengths in characters."""

    first: str
    second: str
    win_rate: WinRate
    length_controlled: LengthControlled
    by_length: list[LengthBin]
    lengths: tuple[float, float]
    invalid: int  # matches without a verdict


@final
@dataclass(frozen=True, slots=True)
class Report:
    """All of it. ``ratings`` are there where there are more than two sides; ``trained_for_judge`` are sides that this judge trained."""

    judge: str
    soft: bool
    prompts: int
    level: float
    comparisons: list[Comparison]
    ratings: dict[str, Rating]
    trained_for_judge: list[str]

    @property
    def json(self) -> str:
        """Every number, by name; a bin without an upper end has null."""
        return json.dumps(without_infinities(asdict(self)), indent=2, ensure_ascii=False) + "\n"

    @property
    def markdown(self) -> str:
        """A page."""
        lines = [f"Judge: {self.judge}, {self.prompts} prompts.", *judge_warning(self.trained_for_judge)]
        if self.ratings:
            lines += ["", *self._rating_table(), "", *self._pair_table()]
        else:
            lines += ["", *_comparison_table(self.comparisons[0], self.level)]
        return "\n".join(lines) + "\n"

    def _rating_table(self) -> list[str]:
        best = sorted(self.ratings.items(), key=lambda entry: -entry[1].value)
        rows = [[name, f"{r.value:+.2f}", f"{r.low:+.2f} to {r.high:+.2f}"] for name, r in best]
        return table([["answers", "rating (log-odds)", f"{self.level:.0%} interval"], *rows])

    def _pair_table(self) -> list[str]:
        rows = []
        for pair in self.comparisons:
            controlled, n = pair.length_controlled, pair.win_rate.n
            rows.append(
                [pair.first, pair.second, *_rate(pair.win_rate), *_rate(controlled), str(n)]
                if n
                else [pair.first, pair.second, *"----", "0"]
            )
        interval = f"{self.level:.0%} interval"
        return table([["first", "second", "win rate of first", interval, "at equal length", interval, "pairs"], *rows])


def reported(
    verdicts: Verdicts, judge: str, *, soft: bool = False, trained_for_judge: Sequence[str] = (), level: float = 0.95, seed: int = 0
) -> Report:
    """Compare every two sides, and rate them where they are more than two.

    Args:
        verdicts: see `judged`.
        judge: its identity.
        soft: whether verdicts are probabilities.
        trained_for_judge: sides that were trained by this judge's labels.
        level: of confidence, between 0 and 1.
        seed: of the bootstraps.

    Raises:
        UserError: if verdicts don't connect all of more than two sides.
    """
    sides, comparisons = range(len(verdicts.names)), []
    for i, j in combinations(sides, 2):
        wins, mine, other, about = verdicts.of(i, j)
        rate = verdict_rate(wins, about, level=level, seed=seed)
        controlled = length_controlled(wins, mine - other, about, level=level, seed=seed)
        bins = by_length(wins, mine, other, about, level=level, seed=seed)
        lengths = (float(mine.mean()), float(other.mean())) if rate.n else (math.nan, math.nan)
        names = verdicts.names[i], verdicts.names[j]
        comparisons.append(Comparison(*names, rate, controlled, bins, lengths, invalid=len(verdicts.wins) - rate.n))
    ratings = {}
    if len(sides) > 2:
        i, j = torch.tensor(list(combinations(sides, 2))).T
        wins = verdicts.wins[:, i, j]  # [N, pairs]
        valid = ~wins.isnan()
        about = verdicts.about.unsqueeze(-1).expand_as(wins)
        rated = bradley_terry(
            wins[valid], i.expand_as(wins)[valid], j.expand_as(wins)[valid], about[valid], len(sides), level=level, seed=seed
        )
        ratings = dict(zip(verdicts.names, rated, strict=True))
    prompts = len(verdicts.about.unique())
    return Report(judge, soft, prompts, level, comparisons, ratings, [*trained_for_judge])


def judge_warning(names: Sequence[str]) -> list[str]:
    """Lines that say that these sides were trained by the judge's own labels; none where no one was."""
    if not names:
        return []
    return [
        "",
        f"This judge is the annotator that {', '.join(names)} was trained for. The numbers say how well the policy learned what this judge "
        "likes, its mistakes included, and not how good the answers are. Judge with another one.",
    ]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, columns aligned; the first row is the head."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _comparison_table(found: Comparison, level: float) -> list[str]:
    rows = [
        ["all", *_rate(found.win_rate), str(found.win_rate.n)],
        ["at equal length", *_rate(found.length_controlled), str(found.win_rate.n)],
    ]
    for part in found.by_length:
        if part.rate.n:
            ratio = f"more than {part.above:g}" if math.isinf(part.below) else f"{part.above:g} to {part.below:g}"
            rows.append([f"{ratio} times as long", *_rate(part.rate), str(part.rate.n)])
    odds = math.exp(found.length_controlled.effect)
    ridge = " Length alone tells wins from losses: the fit is held by a ridge." if found.length_controlled.ridge else ""
    return [
        f"{found.first} against {found.second}:",
        "",
        *table([["pairs", f"win rate of {found.first}", f"{level:.0%} interval", "n"], *rows]),
        "",
        f"Ties: {found.win_rate.ties:.1%}, counted as half a win. Without a valid verdict: {found.invalid}. Mean length in characters: "
        f"{found.lengths[0]:.0f} against {found.lengths[1]:.0f}.",
        f"Length: much longer than the other multiplies the odds of winning by up to {odds:.3g}.{ridge}",
    ]


def _rate(rate: WinRate | LengthControlled) -> tuple[str, str]:
    return f"{rate.value:.1%}", f"{rate.low:.1%} to {rate.high:.1%}"


def without_infinities(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
