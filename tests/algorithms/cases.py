"""Every algorithm in small configurations, and what is true of each alone: the table that the common suite goes through.

An algorithm that is not in it fails `test_every_algorithm_is_in_the_suite`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_align.algorithms import (
    CISPO,
    DAR,
    DPO,
    GRPO,
    INPO,
    IPO,
    KTO,
    ORPO,
    RLOO,
    SAIL,
    SFT,
    Above,
    AlignmentModule,
    AllPairs,
    AlphaDivergence,
    BatchMean,
    BestVersusWorst,
    CentredWeights,
    Clip,
    ClippedWeights,
    DARPolicyGradient,
    DARRegression,
    FixedScale,
    GroupWeights,
    IterativeSFT,
    OverlongPenalty,
    ReinforcePP,
    RunningMax,
    SequenceClip,
    SimPO,
    SLiC,
    SumOver,
    best_of_group,
    forward_kl,
    group_centred,
    jensen_shannon,
    leave_one_out,
    token_mean,
)
from lit_align.types import Policy, Source
from tests.tiny import sgd


@dataclass(frozen=True)
class Case:
    """An algorithm as it is configured here.

    ``lone``: it trains on one response per prompt; every other is refused there. ``equal``, ``identical``: whether siblings of equal
    scores, or of the same tokens, still teach something while the policy is reference and sampler. ``judged``: it reads
    preferences. ``demonstrated``: it imitates answers of score 1, which is then the best one's, and 0 the others'. ``sources``: where the
    answers to each prompt come from, if not all from one place.
    """

    kind: type[AlignmentModule]
    options: Mapping[str, Any] = field(default_factory=dict)
    lone: bool = False
    equal: bool = False
    identical: bool = False
    judged: bool = False
    demonstrated: bool = False
    sources: tuple[Source, ...] = ()

    def module(self, policy: Policy, lr: float = 1e-2) -> AlignmentModule:
        """A new one, which descends the plain gradient."""
        return self.kind(policy, optimizer=sgd(lr), **self.options)  # pyright: ignore[reportCallIssue]


def imitates(kind: type[AlignmentModule], lone: bool = False, **options: Any) -> Case:
    """A response is worth something by itself, whatever its siblings are."""
    return Case(kind, options, lone=lone, equal=True, identical=True)


def compares(kind: type[AlignmentModule], judged: bool = False, **options: Any) -> Case:
    """Only differences between siblings teach anything."""
    return Case(kind, options, judged=judged)


DAPO = {"surrogate": Clip(0.2, 0.28), "normaliser": token_mean, "beta": 0.0, "overlong": OverlongPenalty(longest=8, cache=4)}
MIXED = (Source.FIXED, Source.RELABEL, Source.FRESH_ANNOTATED, Source.RELABEL, Source.FRESH_ANNOTATED)
WIDE = {"alpha": 0.5, "beta": 1.5}
CASES = {
    "sft": Case(SFT, lone=True, equal=True, identical=True, demonstrated=True),
    "dar published": imitates(DAR),
    "dar anchored": imitates(DAR, alpha=0.125, beta=0.125, weighting=GroupWeights(), scale=RunningMax(), baseline=leave_one_out),
    "dar centred": compares(DAR, **WIDE, weighting=CentredWeights(), scale=FixedScale(0.5), baseline=leave_one_out),
    "dar batch mean": imitates(DAR, lone=True, **WIDE, weighting=ClippedWeights(), baseline=BatchMean()),
    "dar regression": compares(DARRegression, scale=RunningMax()),
    "dar policy gradient": compares(DARPolicyGradient, scale=FixedScale(0.5)),
    "iterative sft": Case(IterativeSFT, {"select": best_of_group}, identical=True),
    "filtered sft": imitates(IterativeSFT, lone=True, select=Above(0.1)),
    "rloo": compares(RLOO, beta=0.1),
    "rloo without reference": compares(RLOO, beta=0.0),
    "reinforce++": imitates(ReinforcePP, lone=True, beta=0.1),
    "reinforce++ baseline": compares(ReinforcePP, beta=0.1, baseline=group_centred),
    "reinforce": imitates(ReinforcePP, lone=True, beta=0.0, whiten=False),
    "grpo": compares(GRPO),
    "dr grpo": compares(GRPO, advantage=group_centred, normaliser=SumOver(8.0), beta=0.0),
    "dapo": Case(GRPO, DAPO, equal=True),  # long ones are worth less
    "gspo": compares(GRPO, surrogate=SequenceClip(), beta=0.0),
    "cispo": compares(GRPO, surrogate=CISPO(), normaliser=token_mean, beta=0.0),
    "dpo": compares(DPO),
    "dpo soft": compares(DPO, judged=True, pairing=BestVersusWorst(soft=True)),
    "dpo all pairs": compares(DPO, pairing=AllPairs()),
    "dpo all soft pairs": compares(DPO, judged=True, pairing=AllPairs(soft=True), label_smoothing=0.1),
    "dpo by bradley-terry": compares(DPO, pairing=AllPairs(soft=True)),
    "dpo forward kl": compares(DPO, link=forward_kl),
    "dpo jensen-shannon": compares(DPO, link=jensen_shannon),
    "dpo alpha": compares(DPO, link=AlphaDivergence(0.3), nll=0.2),
    "ipo": compares(IPO),
    "slic": compares(SLiC, beta=0.1),
    "simpo": compares(SimPO),
    "orpo": compares(ORPO),
    "inpo": compares(INPO, eta=0.3, tau=0.1, pairing=AllPairs()),
    "sail": compares(SAIL, annotated_weight=1.0),
    "sail mixed": Case(SAIL, sources=MIXED),
    "sail with its price": compares(SAIL, reference_kl=0.1),
    "kto": imitates(KTO, lone=True, threshold=0.1, good_weight=1.3),
}
