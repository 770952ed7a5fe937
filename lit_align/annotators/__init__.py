"""Annotators: what labels the policy's responses."""

from lit_align.annotators.ensemble import Combine, Ensemble, Mean, MeanMinusVariance, WeightedSum, WorstCase
from lit_align.annotators.function import FunctionAnnotator, ScoreFunction
from lit_align.annotators.label_file import LabelFile
from lit_align.annotators.length_penalty import LengthPenalty
from lit_align.annotators.local_lm import LocalLM
from lit_align.annotators.pairwise import PairwiseJudge
from lit_align.annotators.refreshed import Refreshed
from lit_align.annotators.repeat_rank import RepeatRank
from lit_align.annotators.reward_model import RewardModelAnnotator
from lit_align.annotators.router import Router
from lit_align.annotators.scoring import ScoringJudge
from lit_align.annotators.template import Template

__all__ = [
    "Combine",
    "Ensemble",
    "FunctionAnnotator",
    "LabelFile",
    "LengthPenalty",
    "LocalLM",
    "Mean",
    "MeanMinusVariance",
    "PairwiseJudge",
    "Refreshed",
    "RepeatRank",
    "RewardModelAnnotator",
    "Router",
    "ScoreFunction",
    "ScoringJudge",
    "Template",
    "WeightedSum",
    "WorstCase",
]
