"""Policies, the references they are measured against, and what scores their responses."""

from lit_align.models.lora import LoRA
from lit_align.models.moving import MovingWeights
from lit_align.models.policy import CausalPolicy
from lit_align.models.reference import AdapterOffReference, FrozenReference, MovingReference
from lit_align.models.reward import RewardNetwork
from lit_align.models.value import ValueModel

__all__ = [
    "AdapterOffReference",
    "CausalPolicy",
    "FrozenReference",
    "LoRA",
    "MovingReference",
    "MovingWeights",
    "RewardNetwork",
    "ValueModel",
]
