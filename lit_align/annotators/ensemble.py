"""Several annotators that score the same responses."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from lit_align.annotators.composite import Composite, mean_mass, mean_preferences, numbered_parts, stacked
from lit_align.types import Annotation, Annotator, Rollouts, UserError


class Combine(ABC):
    """Makes one score of several; ``averages`` if the preferences of judges may be averaged beside it, and log-odds stay such."""

    averages: ClassVar[bool] = False

    @abstractmethod
    def combined(self, scores: Tensor, valid: Tensor) -> Tensor:
        """From scores ``[M, B, K]``, 0 where not valid, to ``[B, K]``; anything finite where none is valid."""


@final
@dataclass(frozen=True)
class Mean(Combine):
    """The mean of the valid ones."""

    averages: ClassVar[bool] = True

    def combined(self, scores: Tensor, valid: Tensor) -> Tensor:
        """See `Combine.combined`."""
        return _mean(scores, valid)


@final
@dataclass(frozen=True)
class WorstCase(Combine):
    """The smallest of the valid ones: worst-case optimisation, https://arxiv.org/abs/2310.02743."""

    def combined(self, scores: Tensor, valid: Tensor) -> Tensor:
        """See `Combine.combined`."""
        return scores.where(valid, math.inf).amin(0).where(valid.any(0), 0.0)


@final
@dataclass(frozen=True)
class MeanMinusVariance(Combine):
    r"""Uncertainty-weighted optimisation, :math:`\bar r - \lambda \frac{1}{M} \sum_m (r_m - \bar r)^2`, over the valid ones; of one alone
    its score. Source: https://arxiv.org/abs/2310.02743.

    Args:
        weight: lambda, the price of the variance, per unit of score; not negative.

    Raises:
        UserError: if it is negative.
    """

    weight: float

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"MeanMinusVariance subtracts a variance times a weight that is not negative, got {self.weight}.")

    def combined(self, scores: Tensor, valid: Tensor) -> Tensor:
        """See `Combine.combined`."""
        mean = _mean(scores, valid)
        return mean - self.weight * _mean((scores - mean).square().where(valid, 0.0), valid)


@final
class Ensemble(Composite):
    """Several annotators whose scores are made one: what one of them likes by mistake is not worth much.

    Their scores should be of one unit: reward models from one recipe, or one judge with several templates. `WeightedSum` brings
    others to one. With `Mean` the preferences of judges are averaged, pair by pair, if every member has them; else, and with any
    other ``combine``, which has no say on them, there are none, and pairs are made of the scores.

    Args:
        annotators: the members.
        combine: how several scores become one.
        min_members: how many members must have scored a response for it to be valid; null is all of them. With fewer, responses to one
            prompt may be scored by different members, so that what sets them apart may be the member.

    Raises:
        UserError: if there are no members, or ``min_members`` is not from 1 to their number.
    """

    def __init__(self, annotators: list[Annotator], combine: Combine = Mean(), min_members: int | None = None) -> None:
        super().__init__(annotators, f"{combine}, min_members={min_members}")
        self.combine, self.needed = combine, len(annotators) if min_members is None else min_members
        if not 1 <= self.needed <= len(annotators):
            raise UserError(f"Ensemble: min_members should be from 1 to the number of annotators, {len(annotators)}, got {min_members}.")

    @property
    def log_odds(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where a mean is taken, and every member's are."""
        return self.combine.averages and all(member.log_odds for member in self.members)

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores ``[B, K]`` and, if all members have them, preferences ``[B, K, K]`` on the CPU."""
        answers = [member.annotate(rollouts) for member in self.members]
        scores, valid = stacked(answers)
        enough = valid.sum(0) >= self.needed
        preferences = mean_preferences(answers, [1.0] * len(answers), self.needed) if self.combine.averages else None
        return Annotation(
            scores=self.combine.combined(scores, valid).where(enough, 0.0),
            valid=enough,
            preferences=preferences,
            mass=mean_mass(answers),
            parts=numbered_parts(answers),
            annotator_version=self.version,
        )


@final
class WeightedSum(Composite):
    """The sum of scores, each times its weight: helpfulness and a little brevity, say. A response is valid if every member scored it.

    If every member has preferences they are averaged with the weights' sizes, turned round where a weight is negative, so that with equal
    opponents the mean over a row orders responses as the sum does; else there are none.

    Args:
        annotators: the members.
        weights: one for each, in units of the sum per unit of its score.

    Raises:
        UserError: if there are no members, not as many weights, or weights that are not finite or all 0.
    """

    def __init__(self, annotators: list[Annotator], weights: list[float]) -> None:
        super().__init__(annotators, f"weights={weights}")
        if len(weights) != len(annotators) or not all(map(math.isfinite, weights)) or not any(weights):
            raise UserError(
                f"WeightedSum: weights should be {len(annotators)} finite numbers, one for each annotator and not all 0, got {weights}."
            )
        self.weights: Sequence[float] = weights

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores ``[B, K]`` and, if all members have them, preferences ``[B, K, K]`` on the CPU."""
        answers = [member.annotate(rollouts) for member in self.members]
        scores, valid = stacked(answers)
        total = sum(weight * part for weight, part in zip(self.weights, scores, strict=True))
        assert isinstance(total, Tensor)
        return Annotation(
            scores=total.where(valid.all(0), 0.0),
            valid=valid.all(0),
            preferences=mean_preferences(answers, self.weights, len(answers)),
            mass=mean_mass(answers),
            parts=numbered_parts(answers),
            annotator_version=self.version,
        )


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    return values.sum(0) / valid.sum(0).clamp(min=1)
