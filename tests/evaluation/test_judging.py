"""Answers that meet, what a judge says of them, and the page that it adds up to."""

import json
import math

import pytest
import torch

from lit_align.annotators import FunctionAnnotator, PairwiseJudge
from lit_align.evaluation.answers import Answers, matched
from lit_align.evaluation.judging import Verdicts, judged
from lit_align.evaluation.report import reported, table
from lit_align.evaluation.win_rate import win_rate
from lit_align.types import Annotation, Annotator, Prompt, UserError
from tests.annotators.worlds import PAIRWISE, Fake


def side(name: str, texts: list[list[str]], prompts: list[str] | None = None, **options) -> Answers:
    asked = [f"p{i}" for i in range(len(texts))] if prompts is None else prompts
    return Answers(name, tuple(Prompt(i, text) for i, text in enumerate(asked)), tuple(map(tuple, texts)), **options)


def by_length(prompt, responses):
    return [math.nan if text == "?" else len(text) for text in responses]


def verdicts(wins, lengths=None, about=None, names=("one", "two")):
    wins = torch.tensor(wins, dtype=torch.float64)
    matrix = torch.stack([torch.stack([wins * math.nan, wins], -1), torch.stack([1 - wins, wins * math.nan], -1)], -2)
    lengths = torch.ones(len(wins), 2) if lengths is None else lengths
    return Verdicts(names, matrix, lengths, torch.arange(len(wins)) if about is None else about)


# Who meets whom


def test_the_kth_answers_to_the_prompts_of_all_sides_meet():
    matches = matched(
        [side("a", [["a0", "A0"], ["a1", "A1"]]), side("b", [["b1", "B1"], ["b7"]], ["p1", "p7"]), side("c", [["c"], ["c1"]])]
    )
    assert [prompt.content for prompt in matches.prompts] == ["p1", "p1"]
    assert matches.texts == (("a1", "b1", "c1"), ("A1", "B1", "c1"))  # c has one answer: it meets both
    assert matches.about == (0, 0)


def test_a_prompt_that_comes_twice_is_one_prompt_and_two_matches():
    left = side("a", [["a0"], ["a1"], ["a2"]], ["x", "y", "x"])
    matches = matched([left, side("b", [["b0"], ["b1"], ["b2"]], ["x", "x", "y"])])
    assert matches.texts == (("a0", "b0"), ("a1", "b2"), ("a2", "b1"))
    assert matches.about == (0, 1, 0)


def test_a_text_is_a_users_turn_and_a_reference_goes_along():
    chat = Answers("a", (Prompt(5, ({"role": "user", "content": "x"},)),), (("A",),))
    told = Answers("b", (Prompt(9, "x", reference="gold"),), (("B",),))
    [prompt] = matched([chat, told]).prompts
    assert prompt.reference == "gold"
    system = Answers("a", (Prompt(5, ({"role": "system", "content": "x"},)),), (("A",),))
    with pytest.raises(UserError, match="No prompt is answered by all sides: a has 1, the first"):
        matched([system, told])


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ([side("a", [["x"]]), side("a", [["y"]])], "at least two sides of different names, got a, a"),
        ([side("a", [["x"]])], "at least two sides"),
        ([side("a", [["x", "y"]]), side("b", [["x", "y", "z"]])], "a has 2, b has 3"),
    ],
)
def test_sides_that_do_not_fit(sides, message):
    with pytest.raises(UserError, match=message):
        matched(sides)


# Verdicts


def test_scores_are_compared_and_what_is_invalid_has_no_verdict():
    matches = matched([side("a", [["aa"], ["a"], ["?"]]), side("b", [["b"], ["b"], ["b"]]), side("c", [["ccc"], ["?"], ["c"]])])
    with pytest.warns(UserWarning, match="not all finite"):
        found = judged(FunctionAnnotator(by_length), matches, chunk=2)
    nan = math.nan
    expected = [
        [[nan, 1, 0], [0, nan, 0], [1, 1, nan]],
        [[nan, 0.5, nan], [0.5, nan, nan], [nan, nan, nan]],
        [[nan, nan, nan], [nan, nan, 0.5], [nan, 0.5, nan]],
    ]
    torch.testing.assert_close(found.wins, torch.tensor(expected, dtype=torch.float64), equal_nan=True)
    assert found.lengths.tolist() == [[2, 1, 3], [1, 1, 1], [1, 1, 1]]
    wins, mine, other, about = found.of(0, 1)
    assert (wins.tolist(), mine.tolist(), other.tolist(), about.tolist()) == ([1.0, 0.5], [2, 1], [1, 1], [0, 1])
    with pytest.warns(UserWarning, match="not all finite"), pytest.raises(UserError, match="no valid verdict on 1 matches"):
        judged(FunctionAnnotator(by_length), matched([side("a", [["?"]]), side("b", [["b"]])]))


def test_a_judge_that_compares_is_soft_or_hard(tmp_path):
    (tmp_path / "t.yaml").write_text(PAIRWISE, encoding="utf-8")

    def answer(question: str) -> list[float]:
        first, second = question.split("|")[1:3]
        p = 0.8 if first < second else 0.2 if first > second else 0.5
        return [math.log(p), math.log(1 - p)]

    judge = PairwiseJudge(Fake(answer), str(tmp_path / "t.yaml"))
    matches = matched([side("a", [["a"], ["b"]]), side("b", [["b"], ["b"]]), side("c", [["c"], ["a"]])])
    soft, hard = judged(judge, matches, soft=True).wins, judged(judge, matches).wins
    torch.testing.assert_close(soft[0, 0, 1], torch.tensor(0.8, dtype=torch.float64))
    torch.testing.assert_close(soft[1, 0, 2], torch.tensor(0.2, dtype=torch.float64))
    assert [hard[0, 0, 1], hard[1, 0, 2], hard[1, 0, 1], soft[1, 0, 1]] == [1.0, 0.0, 0.5, 0.5]
    ring = PairwiseJudge(judge.backend, str(tmp_path / "t.yaml"), opponents=2)
    four = matched([side(name, [[name]]) for name in "abcd"])
    assert judged(ring, four).wins[0].isnan().sum() == 4 + 4  # nobody meets themselves, nor who is across


# The page


def test_it_is_win_rate_where_nothing_is_invalid():
    wins = [1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 1.0, 0.0]
    about = torch.arange(4).repeat_interleave(2)
    report = reported(verdicts(wins, about=about), "someone")
    assert report.comparisons[0].win_rate == win_rate(torch.tensor(wins).view(4, 2), torch.full((4, 2), 0.5))
    assert (report.prompts, report.ratings) == (4, {})


def test_the_numbers_and_the_page_say_the_same():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (60, 2), generator=generator).double()
    wins = (lengths[:, 0] + 8 * torch.randn(60, generator=generator) > lengths[:, 1]).double().tolist()
    report = reported(verdicts(wins, lengths), "a|judge", soft=True)
    numbers = json.loads(report.json)
    [pair] = numbers["comparisons"]
    assert (numbers["judge"], numbers["soft"], numbers["prompts"], numbers["ratings"]) == ("a|judge", True, 60, {})
    assert pair["win_rate"]["n"] == sum(part["rate"]["n"] for part in pair["by_length"]) == 60
    assert pair["by_length"][-1]["below"] is None
    assert pair["length_controlled"]["effect"] > 1
    for rate in (pair["win_rate"], pair["length_controlled"], *(p["rate"] for p in pair["by_length"] if p["rate"]["n"])):
        assert f"{rate['value']:.1%}" in report.markdown
        assert f"{rate['low']:.1%} to {rate['high']:.1%}" in report.markdown
    assert "win rate of one" in report.markdown
    assert "more than 2 times as long" in report.markdown
    assert "ridge" not in report.markdown


def test_more_than_two_sides_are_rated():
    def judge(prompt, responses):
        return [float(text) for text in responses]

    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(40, 3, generator=generator) + torch.tensor([0.0, 0.7, -0.7])).tolist()
    sides = [side(name, [[str(row[i])] for row in drawn]) for i, name in enumerate(["x", "y", "z"])]
    report = reported(judged(FunctionAnnotator(judge), matched(sides)), "rule")
    ratings = json.loads(report.json)["ratings"]
    assert ratings["y"]["value"] > ratings["x"]["value"] > ratings["z"]["value"]
    assert sum(r["value"] for r in ratings.values()) == pytest.approx(0)
    assert [(c.first, c.second) for c in report.comparisons] == [("x", "y"), ("x", "z"), ("y", "z")]
    page = report.markdown
    assert page.index("| y ") < page.index("| x ") < page.index("| z "), "best first"
    assert f"{ratings['y']['value']:+.2f}" in page


def test_a_judge_that_trained_them_is_said_to_have():
    alone, warned = (reported(verdicts([1.0, 0.0]), "someone", trained_for_judge=who) for who in ([], ["runs/a"]))
    assert "This judge is the annotator that runs/a was trained for." in warned.markdown
    assert "trained" not in alone.markdown
    assert json.loads(warned.json)["trained_for_judge"] == ["runs/a"]


def test_a_pair_that_never_met_has_no_number():
    class Half(Annotator):
        """Can't compare the first with the last."""

        def annotate(self, rollouts):
            preferences = torch.tensor([[math.nan, 0.9, math.nan], [0.1, math.nan, 0.6], [math.nan, 0.4, math.nan]])
            shape = rollouts.finished.shape
            return Annotation(scores=torch.zeros(shape), valid=torch.ones(shape).bool(), preferences=preferences.expand(shape[0], 3, 3))

    report = reported(judged(Half(), matched([side(name, [[name], [name]]) for name in "abc"])), "half")
    numbers = json.loads(report.json)
    assert numbers["comparisons"][1]["win_rate"]["n"] == 0
    assert numbers["comparisons"][1]["lengths"] == [None, None]
    [row] = [line for line in report.markdown.splitlines() if line.startswith("| a     | c ")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["a", "c", "-", "-", "-", "-", "0"]
    assert report.ratings["a"].value > report.ratings["b"].value > report.ratings["c"].value


def test_a_table_keeps_its_columns():
    assert table([["a", "long head"], ["x|y", "1"]]) == ["| a    | long head |", "|------|-----------|", "| x\\|y | 1         |"]
