"""How far people and a judge agree, as numbers with intervals."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import torch

from lit_align.evaluation.agreement.intervals import Estimate, estimate, resampled_sums
from lit_align.evaluation.agreement.measures import BINS, measures_of, reliability
from lit_align.evaluation.agreement.pairs import LabelledPairs
from lit_align.evaluation.win_rate import wilson


@final
@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """``pairs`` whose confidence is at least ``low`` and below the next bin's: its mean, and how often the judge was right."""

    low: float
    pairs: int
    confidence: float
    accuracy: float


@final
@dataclass(frozen=True, slots=True)
class AgreementReport:
    """What `agreement` found.

    Attributes:
        pairs: how many have a human label and a verdict of the judge.
        prompts: how many prompts those have.
        unlabelled: how many pairs no human has labelled.
        unjudged: how many of the others the judge said nothing about.
        measures: by name; those of docs/trust.md that the pairs allow.
        reliability: of a judge that gives probabilities, bins of confidence from 1/2 to 1 that are not empty.
    """

    pairs: int
    prompts: int
    unlabelled: int
    unjudged: int
    measures: Mapping[str, Estimate]
    reliability: tuple[ReliabilityBin, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What JSON can hold; null where nothing is known."""
        return json.loads(json.dumps(asdict(self), allow_nan=False))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "AgreementReport":
        """The report that `as_json` made this of."""
        measures = {name: Estimate(**one) for name, one in found["measures"].items()}
        bins = tuple(ReliabilityBin(**one) for one in found["reliability"])
        return cls(**{**found, "measures": measures, "reliability": bins})


def agreement(pairs: LabelledPairs, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> AgreementReport:
    """Every measure that the pairs allow, each with its interval.

    **Interval.** Percentiles of a bootstrap that draws whole prompts. A share that is the same for every prompt (all right, say) has
    no spread to draw from; its interval is Wilson's, for one observation per prompt. Other measures have none then.

    Args:
        pairs: labelled by people and by the judge.
        level: of confidence, between 0 and 1.
        resamples: bootstrap draws.
        seed: of the bootstrap's own generator.
    """
    measures = measures_of(pairs)
    sums = resampled_sums(torch.cat([m.features for m in measures.values()], -1), pairs.prompts, resamples=resamples, seed=seed)
    found: dict[str, Estimate] = {}
    for (name, measure), part in zip(measures.items(), sums.split([m.features.shape[1] for m in measures.values()], -1), strict=True):
        one = estimate(measure.statistic(part), int(measure.counted.sum()), level=level)
        if one.value is not None and one.low is None and measure.is_share:
            one = Estimate(one.value, *wilson(one.value, len(pairs.prompts[measure.counted].unique()), level), one.n)
        found[name] = one
    labelled = pairs.human >= 0
    both = labelled & (pairs.ai >= 0)
    return AgreementReport(
        pairs=int(both.sum()),
        prompts=len(pairs.prompts[both].unique()),
        unlabelled=int((~labelled).sum()),
        unjudged=int((labelled & ~both).sum()),
        measures=found,
        reliability=_bins(pairs) if pairs.soft else (),
    )


def agreement_by_subset(pairs: LabelledPairs, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> dict[str, AgreementReport]:
    """`agreement` of every subset that the pairs name, in alphabetical order."""
    found = {}
    for name in sorted(set(pairs.subsets)):
        inside = pairs.rows([i for i, subset in enumerate(pairs.subsets) if subset == name])
        found[name] = agreement(inside, level=level, resamples=resamples, seed=seed)
    return found


def _bins(pairs: LabelledPairs) -> tuple[ReliabilityBin, ...]:
    table = reliability(pairs)[0].sum(0).reshape(3, BINS).T.tolist()
    edges = torch.linspace(0.5, 1, BINS + 1, dtype=torch.float64).tolist()
    return tuple(ReliabilityBin(low, int(n), sure / n, right / n) for low, (n, sure, right) in zip(edges, table, strict=False) if n)
