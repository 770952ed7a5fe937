"""Policies and the references they are measured against."""

from lit_align.models.lora import LoRA
from lit_align.models.moving import MovingWeights
from lit_align.models.policy import CausalPolicy
from lit_align.models.reference import AdapterOffReference, FrozenReference, MovingReference

__all__ = ["AdapterOffReference", "CausalPolicy", "FrozenReference", "LoRA", "MovingReference", "MovingWeights"]
