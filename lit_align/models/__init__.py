"""Policies and the references they are measured against."""

from lit_align.models.lora import LoRA
from lit_align.models.policy import CausalPolicy
from lit_align.models.reference import AdapterOffReference, FrozenReference

__all__ = ["AdapterOffReference", "CausalPolicy", "FrozenReference", "LoRA"]
