"""Annotators: what labels the policy's responses."""

from lit_align.annotators.cached import Cached
from lit_align.annotators.checklist import Checklist, Item
from lit_align.annotators.constitution import Constitution
from lit_align.annotators.function import FunctionAnnotator, ScoreFunction
from lit_align.annotators.local_lm import LocalLM
from lit_align.annotators.pairwise import PairwiseJudge
from lit_align.annotators.reward_model import RewardModelAnnotator
from lit_align.annotators.rubric import Rubric
from lit_align.annotators.rules import Contained, Exact, Mathematical, Numeric, ReferenceRule, Regex, Rule
from lit_align.annotators.scoring import ScoringJudge
from lit_align.annotators.template import Template
from lit_align.annotators.verifier import Verifier

__all__ = [
    "Cached",
    "Checklist",
    "Constitution",
    "Contained",
    "Exact",
    "FunctionAnnotator",
    "Item",
    "LocalLM",
    "Mathematical",
    "Numeric",
    "PairwiseJudge",
    "ReferenceRule",
    "Regex",
    "RewardModelAnnotator",
    "Rubric",
    "Rule",
    "ScoreFunction",
    "ScoringJudge",
    "Template",
    "Verifier",
]
