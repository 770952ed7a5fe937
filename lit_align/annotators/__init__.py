"""Annotators: what labels the policy's responses."""

from lit_align.annotators.cached import Cached
from lit_align.annotators.chat_api import ChatAPI
from lit_align.annotators.checklist import Checklist, Item
from lit_align.annotators.constitution import Constitution
from lit_align.annotators.ensemble import Combine, Ensemble, Mean, MeanMinusVariance, WeightedSum, WorstCase
from lit_align.annotators.function import FunctionAnnotator, ScoreFunction
from lit_align.annotators.label_file import LabelFile
from lit_align.annotators.length_penalty import LengthPenalty
from lit_align.annotators.local_lm import LocalLM
from lit_align.annotators.mathematical import Mathematical
from lit_align.annotators.pairwise import PairwiseJudge
from lit_align.annotators.refreshed import Refreshed
from lit_align.annotators.repeat_rank import RepeatRank
from lit_align.annotators.reward_model import RewardModelAnnotator
from lit_align.annotators.router import Router
from lit_align.annotators.rubric import Rubric
from lit_align.annotators.rules import Contained, Exact, Numeric, ReferenceRule, Regex, Rule
from lit_align.annotators.scoring import ScoringJudge
from lit_align.annotators.template import Template
from lit_align.annotators.verifier import Verifier

__all__ = [
    "Cached",
    "ChatAPI",
    "Checklist",
    "Combine",
    "Constitution",
    "Contained",
    "Ensemble",
    "Exact",
    "FunctionAnnotator",
    "Item",
    "LabelFile",
    "LengthPenalty",
    "LocalLM",
    "Mathematical",
    "Mean",
    "MeanMinusVariance",
    "Numeric",
    "PairwiseJudge",
    "ReferenceRule",
    "Refreshed",
    "Regex",
    "RepeatRank",
    "RewardModelAnnotator",
    "Router",
    "Rubric",
    "Rule",
    "ScoreFunction",
    "ScoringJudge",
    "Template",
    "Verifier",
    "WeightedSum",
    "WorstCase",
]
