"""Annotators: what labels the policy's responses."""

from lit_align.annotators.chat_api import ChatAPI
from lit_align.annotators.function import FunctionAnnotator, ScoreFunction
from lit_align.annotators.local_lm import LocalLM
from lit_align.annotators.pairwise import PairwiseJudge
from lit_align.annotators.reward_model import RewardModelAnnotator
from lit_align.annotators.scoring import ScoringJudge
from lit_align.annotators.template import Template

__all__ = ["ChatAPI", "FunctionAnnotator", "LocalLM", "PairwiseJudge", "RewardModelAnnotator", "ScoreFunction", "ScoringJudge", "Template"]
