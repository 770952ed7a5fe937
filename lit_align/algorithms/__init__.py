"""One LightningModule per algorithm, and the parts they are made of."""

from lit_align.algorithms.base import AlignmentModule
from lit_align.algorithms.baselines import BatchMean, group_centred, leave_one_out
from lit_align.algorithms.dar import DAR
from lit_align.algorithms.scales import AdvantageScale, BatchStd, FixedScale, ReferenceStd, RunningMax
from lit_align.algorithms.sft import SFT
from lit_align.algorithms.weighting import CentredWeights, ClippedWeights, GroupWeights, KLTarget, Weighting

__all__ = [
    "DAR",
    "SFT",
    "AdvantageScale",
    "AlignmentModule",
    "BatchMean",
    "BatchStd",
    "CentredWeights",
    "ClippedWeights",
    "FixedScale",
    "GroupWeights",
    "KLTarget",
    "ReferenceStd",
    "RunningMax",
    "Weighting",
    "group_centred",
    "leave_one_out",
]
