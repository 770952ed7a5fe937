"""One LightningModule per algorithm, and the parts they are made of."""

from lit_align.algorithms.anchors import Anchor, Initial, MovingAverage, PreviousRound
from lit_align.algorithms.base import AlignmentModule
from lit_align.algorithms.baselines import BatchMean, group_centred, leave_one_out
from lit_align.algorithms.dar import DAR
from lit_align.algorithms.dar_policy_gradient import DARPolicyGradient
from lit_align.algorithms.dar_regression import DARRegression
from lit_align.algorithms.dpo import DPO, AlphaDivergence, forward_kl, jensen_shannon, reverse_kl
from lit_align.algorithms.grpo import GRPO
from lit_align.algorithms.inpo import INPO
from lit_align.algorithms.ipo import IPO
from lit_align.algorithms.iterative_sft import Above, IterativeSFT, best_of_group
from lit_align.algorithms.kto import KTO
from lit_align.algorithms.orpo import ORPO
from lit_align.algorithms.pairing import AllPairs, BestVersusWorst, Pairing
from lit_align.algorithms.preference import PreferenceModule
from lit_align.algorithms.reinforce_pp import ReinforcePP
from lit_align.algorithms.reward_losses import BradleyTerry, PlackettLuce, RewardLoss
from lit_align.algorithms.reward_model import RewardModel
from lit_align.algorithms.rloo import RLOO
from lit_align.algorithms.sail import SAIL
from lit_align.algorithms.scales import AdvantageScale, BatchStd, FixedScale, ReferenceStd, RunningMax
from lit_align.algorithms.sft import SFT
from lit_align.algorithms.simpo import SimPO
from lit_align.algorithms.slic import SLiC
from lit_align.algorithms.stepping import SteppingModule
from lit_align.algorithms.surrogates import CISPO, Clip, OverlongPenalty, SequenceClip, SumOver, mean_per_response, token_mean
from lit_align.algorithms.weighting import CentredWeights, ClippedWeights, GroupWeights, KLTarget, Weighting
from lit_align.functional.advantages import group_standardised

__all__ = [
    "CISPO",
    "DAR",
    "DPO",
    "GRPO",
    "INPO",
    "IPO",
    "KTO",
    "ORPO",
    "RLOO",
    "SAIL",
    "SFT",
    "Above",
    "AdvantageScale",
    "AlignmentModule",
    "AllPairs",
    "AlphaDivergence",
    "Anchor",
    "BatchMean",
    "BatchStd",
    "BestVersusWorst",
    "BradleyTerry",
    "CentredWeights",
    "Clip",
    "ClippedWeights",
    "DARPolicyGradient",
    "DARRegression",
    "FixedScale",
    "GroupWeights",
    "Initial",
    "IterativeSFT",
    "KLTarget",
    "MovingAverage",
    "OverlongPenalty",
    "Pairing",
    "PlackettLuce",
    "PreferenceModule",
    "PreviousRound",
    "ReferenceStd",
    "ReinforcePP",
    "RewardLoss",
    "RewardModel",
    "RunningMax",
    "SLiC",
    "SequenceClip",
    "SimPO",
    "SteppingModule",
    "SumOver",
    "Weighting",
    "best_of_group",
    "forward_kl",
    "group_centred",
    "group_standardised",
    "jensen_shannon",
    "leave_one_out",
    "mean_per_response",
    "reverse_kl",
    "token_mean",
]
