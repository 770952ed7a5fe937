"""Which of two judges agrees more with people, pair by pair."""

import math
from dataclasses import dataclass
from typing import final

import torch

from lit_align.evaluation.agreement.intervals import Estimate, estimate, resampled_sums
from lit_align.evaluation.agreement.measures import ratio
from lit_align.evaluation.agreement.pairs import TIE, LabelledPairs


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """Two judges on the ``n`` pairs of ``prompts`` prompts where people made a choice and both judges said something.

    Attributes:
        accuracy, against: share of these pairs where the one, the other judge chose what people chose; a tie is half right.
        difference: ``accuracy - against``.
        better, worse: pairs that the first judge alone was more right, less right about.
        p_value: of the exact sign test of ``better`` against ``worse``.
    """

    n: int
    prompts: int
    accuracy: Estimate
    against: Estimate
    difference: Estimate
    better: int
    worse: int
    p_value: float


def compare(one: LabelledPairs, other: LabelledPairs, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Both judges on the same pairs, so that what makes a pair hard cancels.

    The interval of the difference draws whole prompts, with everything that both judges said about them: pairs of one prompt are no
    independent evidence. The sign test (McNemar's exact test, where no judge says tie) takes all pairs for independent. It still
    says something where the interval can't: where every prompt gives the same difference. Where several pairs share a prompt, go by
    the interval.

    Raises:
        ValueError: if they are not the same pairs.
    """
    if not torch.equal(one.prompts, other.prompts) or not torch.equal(one.votes, other.votes):
        raise ValueError("The two judges are compared on the same labelled pairs in the same order, and these are not.")
    counted = (one.human >= 0) & (one.human != TIE) & (one.ai >= 0) & (other.ai >= 0)
    prompts, n = one.prompts[counted], int(counted.sum())
    credits = [(pairs.ai == pairs.human).double().masked_fill(pairs.ai == TIE, 0.5)[counted] for pairs in (one, other)]  # [n] each
    difference = credits[0] - credits[1]
    sums = resampled_sums(torch.stack([*credits, difference, torch.ones_like(difference)], -1), prompts, resamples=resamples, seed=seed)
    accuracy, against, gap = (estimate(ratio(sums[:, [column, 3]]), n, level=level) for column in range(3))
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(n, len(prompts.unique()), accuracy, against, gap, better, worse, sign_test(better, worse))


def sign_test(better: int, worse: int) -> float:
    """How likely a fair coin would be as far from even or further.

    >>> sign_test(3, 0), sign_test(2, 2)
    (0.25, 1.0)
    """
    n = better + worse
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(better, worse) + 1)) / 2**n)
