"""Verdicts of annotators about pairs of texts: what they are taken from, and that chunks make no difference."""

import math
from typing import final

import pytest
import torch

from lit_align.annotators import FunctionAnnotator, PairwiseJudge, ScoringJudge
from lit_align.evaluation.agreement import LabelledPairs, agreement, judge_pairs
from lit_align.types import Annotation, Annotator, Prompt
from tests.annotators.worlds import PAIRWISE, SCORING, Fake

PROMPTS = [Prompt(i, f"prompt {i}") for i in range(5)]
TEXTS = [("aa", "b"), ("c", "ddd"), ("ee", "ff"), ("g", "hh"), ("iiii", "j")]


def longer(prompt, responses):
    return [float(len(text)) for text in responses]


@pytest.fixture
def templates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scoring.yaml").write_text(SCORING, encoding="utf-8")
    (tmp_path / "pairwise.yaml").write_text(PAIRWISE, encoding="utf-8")


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_of_scores_the_higher_wins_and_equal_ones_tie(chunk):
    said = judge_pairs(FunctionAnnotator(longer), PROMPTS, TEXTS, chunk_pairs=chunk)
    assert said.values.tolist() == [1, 0, 0.5, 0, 1]
    assert said.orders is None
    assert not said.soft


def test_of_log_odds_the_difference_is_a_probability():
    annotator = FunctionAnnotator(longer)
    annotator.log_odds = True
    said = judge_pairs(annotator, PROMPTS, TEXTS)
    assert said.values.tolist() == pytest.approx([1 / (1 + math.exp(-d)) for d in (1, -2, 0, -1, 3)])
    assert said.soft


def test_where_a_response_has_no_score_there_is_no_verdict():
    def picky(prompt, responses):
        return [math.nan if text in ("b", "c") else 1.0 for text in responses]

    with pytest.warns(UserWarning, match="not all finite"):
        said = judge_pairs(FunctionAnnotator(picky), PROMPTS, TEXTS)
    assert said.values.isnan().tolist() == [True, True, False, False, False]


def test_a_judge_that_compares_is_heard_in_both_orders(templates):
    def answer(question):
        first, second = question.split("|")[1:3]
        z = len(first) - len(second) - 0.5  # of "1": the longer, and the second a little
        return [-math.log1p(math.exp(-z)), -math.log1p(math.exp(z))]

    said = judge_pairs(PairwiseJudge(Fake(answer), "pairwise.yaml"), PROMPTS, TEXTS, chunk_pairs=2)
    sigmoid = [[1 / (1 + math.exp(-(d + bias))) for bias in (-0.5, 0.5)] for d in (1, -2, 0, -1, 3)]
    assert said.orders is not None
    torch.testing.assert_close(said.orders, torch.tensor(sigmoid, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(said.values, said.orders.mean(-1), atol=1e-3, rtol=0)  # within the judge's own margin of a tie
    assert said.values[2] == 0.5
    assert said.soft


def test_the_accuracy_of_a_judge_is_what_it_was_made_to_be(templates):
    """Wrong about two of five prompts, and without a view of places."""

    def grade(question):
        length = len(question.split("|")[1].removesuffix("\n\n="))
        wrong = question.startswith(("j\n\nprompt 1", "j\n\nprompt 4"))
        return [0.0 if i == (10 - length if wrong else length) else -math.inf for i in range(10)]

    said = judge_pairs(ScoringJudge(Fake(grade), "scoring.yaml"), PROMPTS, TEXTS)
    votes = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    pairs = LabelledPairs(prompts=torch.arange(5), votes=votes, verdicts=said.values, soft=said.soft)
    found = agreement(pairs).measures
    assert found["agreement"].value == pytest.approx(3 / 5)
    assert found["agreement_without_ties"].value == pytest.approx(2 / 4)


def test_without_pairs_nothing_is_asked():
    assert judge_pairs(FunctionAnnotator(longer), [], []).values.shape == (0,)


@final
class Recording(Annotator):
    def annotate(self, rollouts):
        self.seen = rollouts
        return Annotation(scores=torch.zeros(len(rollouts.prompts), 2), valid=torch.ones(len(rollouts.prompts), 2).bool())


def test_a_pair_is_shown_as_two_responses_to_its_prompt():
    annotator, told = Recording(), []

    def progress(chunks):
        told.extend(chunks)
        return chunks

    judge_pairs(annotator, PROMPTS, TEXTS, chunk_pairs=3, progress=progress)
    assert annotator.seen.prompts == tuple(PROMPTS[3:])
    assert annotator.seen.texts == tuple(TEXTS[3:])
    assert told == [range(0, 3), range(3, 5)]
