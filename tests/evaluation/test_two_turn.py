"""Conversations in the policy's own words, grades on their scale, means that know what belongs together."""

import json
import math

import pytest
import torch

from lit_align.annotators import ScoringJudge
from lit_align.evaluation.two_turn import Grade, GradeReport, Question, converse, graded, summarised
from tests.annotators.worlds import SCORING, Fake

QUESTIONS = [
    Question(1, ("one?", "and now?"), ("uno", "due"), "counting"),
    Question(2, ("two?", "then?"), (None, None), "counting"),
    Question(3, ("three?", "so?"), (None, "drei"), "other"),
]


def test_the_second_turn_is_asked_after_the_policys_own_answer():
    asked = []

    def ask(prompts):
        asked.append([[(turn["role"], turn["content"]) for turn in prompt.content] for prompt in prompts])
        return [None if prompt.id == 2 else f"answer {len(asked)} to {prompt.id}" for prompt in prompts]

    found = converse(QUESTIONS, ask)
    assert found == [("answer 1 to 1", "answer 2 to 1"), (None, None), ("answer 1 to 3", "answer 2 to 3")]
    assert asked[0] == [[("user", "one?")], [("user", "two?")], [("user", "three?")]]
    assert asked[1] == [
        [("user", "one?"), ("assistant", "answer 1 to 1"), ("user", "and now?")],
        [("user", "three?"), ("assistant", "answer 1 to 3"), ("user", "so?")],
    ]


def test_a_policy_that_says_nothing_is_not_asked_again():
    calls = []
    assert converse(QUESTIONS[:1], lambda prompts: calls.append(prompts) or [None]) == [(None, None)]
    assert len(calls) == 1


def test_every_answer_gets_the_judges_grade_with_its_conversation(tmp_path):
    (tmp_path / "t.yaml").write_text(SCORING, encoding="utf-8")
    backend = Fake(lambda text: [0.0 if grade == len(text.rpartition("|")[2].split("\n")[0]) else -40.0 for grade in range(1, 11)])
    judge = ScoringJudge(backend, str(tmp_path / "t.yaml"))
    answers = [("a" * 4, "a" * 10), ("a", None), (None, None)]
    found = graded(QUESTIONS, answers, [judge, judge], chunk=1)
    expected = torch.tensor([[4.0, 10.0], [1.0, math.nan], [math.nan, math.nan]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-5, rtol=0)
    assert len(backend.questions) == 3
    assert "User: one?\n\nAssistant: aaaa\n\nUser: and now?|aaaaaaaaaa" in backend.questions[-1]
    assert [QUESTIONS[0].prompt(turn, ("x", "y")).reference for turn in (0, 1)] == ["uno", "due"]


def test_a_judge_per_turn(tmp_path):
    (tmp_path / "t.yaml").write_text(SCORING, encoding="utf-8")
    judges = [
        ScoringJudge(Fake(lambda _, g=grade: [0.0 if i == g else -40.0 for i in range(1, 11)]), str(tmp_path / "t.yaml"))
        for grade in (3, 7)
    ]
    assert graded(QUESTIONS[:1], [("a", "b")], judges).tolist() == [[pytest.approx(3), pytest.approx(7)]]


def test_an_invalid_grade_is_no_grade(tmp_path):
    (tmp_path / "t.yaml").write_text(SCORING, encoding="utf-8")
    judge = ScoringJudge(Fake(lambda text: [-9.0] * 10), str(tmp_path / "t.yaml"))
    with pytest.warns(UserWarning, match="less than 0.5 of its probability"):
        assert graded(QUESTIONS[:1], [("a", "b")], [judge, judge]).isnan().all()


def test_means_by_turn_and_category():
    grades = torch.tensor([[4.0, 10.0], [1.0, math.nan], [7.0, 3.0]], dtype=torch.float64)
    found = summarised(QUESTIONS, grades)
    assert {name: (grade.value, grade.n) for name, grade in found.items()} == {
        "all": (5.0, 5),
        "turn 1": (4.0, 3),
        "turn 2": (6.5, 2),
        "counting": (5.0, 3),
        "other": (5.0, 2),
    }
    assert found["turn 1"].low < 4.0 < found["turn 1"].high
    assert (found["other"].low, found["other"].high) == (1.0, 10.0)  # one question
    assert math.isnan(summarised(QUESTIONS, grades * math.nan)["all"].value)


def test_both_answers_to_a_question_are_drawn_together():
    generator = torch.Generator().manual_seed(0)
    one = (torch.rand(80, 1, generator=generator) * 9 + 1).double()
    questions = [Question(i, ("a", "b"), (None, None)) for i in range(80)]
    both = summarised(questions, one.expand(80, 2))
    half = (both["all"].high - both["all"].low) / 2
    assert half == pytest.approx(both["turn 1"].high - both["turn 1"].value, rel=0.2)
    assert half == pytest.approx(1.96 * float(one.std()) / math.sqrt(80), rel=0.1)


def test_the_page_has_a_column_per_model():
    models = {
        "a": {"all": Grade(5.25, 4.0, 6.5, 8), "turn 1": Grade(math.nan, 1.0, 10.0, 0)},
        "b": {"all": Grade(6.0, 5.0, 7.0, 8), "turn 1": Grade(6.0, 5.0, 7.0, 4)},
    }
    report = GradeReport("judge", 4, 0.95, models, ["b"])
    assert "| all     | 5.25 (4.00 to 6.50; 8) | 6.00 (5.00 to 7.00; 8) |" in report.markdown
    assert "| turn 1  | none " in report.markdown
    assert "This judge is the annotator that b was trained for." in report.markdown
    numbers = json.loads(report.json)
    assert numbers["models"]["a"]["turn 1"] == {"value": None, "low": 1.0, "high": 10.0, "n": 0}
