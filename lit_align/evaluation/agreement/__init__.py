"""How far people and a judge agree: measures with intervals, verdicts of an annotator, two judges pair by pair."""

from lit_align.evaluation.agreement.comparison import Comparison, compare
from lit_align.evaluation.agreement.intervals import Estimate
from lit_align.evaluation.agreement.judging import PairVerdicts, judge_pairs
from lit_align.evaluation.agreement.measures import cohen_kappa
from lit_align.evaluation.agreement.pairs import LabelledPairs
from lit_align.evaluation.agreement.picture import agreement_picture
from lit_align.evaluation.agreement.report import AgreementReport, agreement, agreement_by_subset

__all__ = [
    "AgreementReport",
    "Comparison",
    "Estimate",
    "LabelledPairs",
    "PairVerdicts",
    "agreement",
    "agreement_by_subset",
    "agreement_picture",
    "cohen_kappa",
    "compare",
    "judge_pairs",
]
