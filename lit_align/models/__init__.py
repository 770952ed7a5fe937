"""Policies and the references they are measured against."""

from lit_align.models.policy import CausalPolicy
from lit_align.models.reference import FrozenReference

__all__ = ["CausalPolicy", "FrozenReference"]
