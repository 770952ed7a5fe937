"""Rubrics, checklists and constitutions: exact with backends whose answers are known."""

import math
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
import yaml

from lit_align.annotators import Checklist, Constitution, Exact, PairwiseJudge, Regex, Rubric, ScoringJudge, Verifier
from lit_align.types import Prompt, UserError
from tests.annotators.worlds import Fake, rollouts

TEXTS = [["abc", "d", "aaa"], ["e", "aa", "j"]]
SCORING = "preamble: j\nsample: '{prompt}|{response}'\nending: '='\n"
RUBRIC = "preamble: j\nsample: '{prompt}|{response}|{aspect}|'\nending: '='\n"
CHECKLIST = "preamble: j\nsample: '{prompt}|{response}|{item}|'\nending: '='\n"
PAIRWISE = "preamble: '{prompt}'\nsample: '|{response_1}|{response_2}|'\nending: '='\n"
CONSTITUTION = "preamble: '{prompt}'\nsample: '|{response_1}|{response_2}|{principle}|'\nending: '='\n"


@pytest.fixture(autouse=True)
def templates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"scoring": SCORING, "rubric": RUBRIC, "checklist": CHECKLIST, "pairwise": PAIRWISE, "constitution": CONSTITUTION}
    for name, content in named.items():
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")


def with_meta(asked, *metas, references=None):
    changed = [
        replace(prompt, meta=meta, reference=reference)
        for prompt, meta, reference in zip(asked.prompts, metas, references or [None] * len(metas), strict=True)
    ]
    return replace(asked, prompts=tuple(changed))


def places(question):
    return question.split("|")[1:-1]


# Rubric


def certain_grade(question):
    """Of the length: the text's; of the letter: 9 with an a, else 2."""
    text, aspect = places(question)
    grade = len(text) if aspect == "Length?" else 9 if "a" in text else 2
    return [0.0 if i == grade - 1 else -math.inf for i in range(10)]


ASPECTS = {"length": "Length?", "letter": "Is there an a?"}


def scale(grade):
    return (grade - 5.5) / 4.5


def test_a_rubric_is_the_weighted_mean_of_its_parts():
    backend = Fake(certain_grade)
    annotation = Rubric(backend, ASPECTS, {"letter": 3.0}, "rubric.yaml").annotate(rollouts(TEXTS))
    length = scale(torch.tensor([[3.0, 1, 3], [1, 2, 1]]))
    letter = scale(torch.tensor([[9.0, 2, 9], [2, 9, 2]]))
    assert list(annotation.parts) == ["length", "letter"]
    torch.testing.assert_close(annotation.parts["length"], length, atol=1e-6, rtol=0)
    torch.testing.assert_close(annotation.parts["letter"], letter, atol=1e-6, rtol=0)
    torch.testing.assert_close(annotation.scores, (length + 3 * letter) / 4, atol=1e-6, rtol=0)
    assert annotation.valid.all()
    assert len(backend.questions) == 6 * 2


def test_one_aspect_is_the_plain_judge():
    answer = lambda question: [math.log(0.06 + 0.01 * ((len(question) + i) % 4)) for i in range(10)]  # noqa: E731
    one = Rubric(Fake(lambda question: answer(question.removesuffix("x|\n\n=") + "\n\n=")), {"a": "x"}, template="rubric.yaml")
    plain = ScoringJudge(Fake(lambda question: answer(question.replace("\n\n=", "|\n\n="))), "scoring.yaml")
    torch.testing.assert_close(one.annotate(rollouts(TEXTS)).scores, plain.annotate(rollouts(TEXTS)).scores, atol=1e-6, rtol=0)


def test_only_the_proportions_of_weights_count():
    one, other = (Rubric(Fake(certain_grade), ASPECTS, {"length": w, "letter": 2 * w}, "rubric.yaml") for w in (1.0, 7.0))
    torch.testing.assert_close(one.annotate(rollouts(TEXTS)).scores, other.annotate(rollouts(TEXTS)).scores)
    assert one.identity != other.identity


def test_a_refused_aspect_drops_out_and_without_any_a_response_is_invalid():
    def answer(question):
        text, aspect = places(question)
        return [math.log(0.01)] * 10 if text == "d" or (text == "aa" and aspect == "Length?") else certain_grade(question)

    judge = Rubric(Fake(answer), ASPECTS, template="rubric.yaml")
    with pytest.warns(UserWarning, match="Rubric expected a judge that answers '1' to '10', but 3 of 12 times"):
        annotation = judge.annotate(rollouts(TEXTS))
    assert annotation.valid.tolist() == [[True, False, True], [True, True, True]]
    assert annotation.scores[1, 1].item() == pytest.approx(scale(9), abs=1e-6)
    assert annotation.parts["length"].isnan().tolist() == [[False, True, False], [False, True, False]]
    assert annotation.scores.isfinite().all()


@pytest.mark.parametrize(
    ("aspects", "options", "message"),
    [
        ({}, {}, "aspects should say what counts"),
        ({"mean": "x"}, {}, "'mean', but reward/mean is no free name"),
        ({"a": "x"}, {"weights": {"b": 1.0}}, "weights has 'b', which is no aspect. The aspects are a"),
        ({"a": "x"}, {"weights": {"a": 0.0}}, r"the weight of 'a' should be positive, got 0\.0"),
        ({"a": "x"}, {"weights": {"a": math.nan}}, "should be positive, got nan"),
        ({"a": "x"}, {"verdict": "firm"}, "Rubric: verdict should be 'soft' or 'hard', got 'firm'"),
    ],
)
def test_a_rubric_that_makes_no_sense(aspects, options, message):
    with pytest.raises(UserError, match=message):
        Rubric(Fake(certain_grade), aspects, **options)


# Checklist


def yes(p, small=0.5):
    """Probability p of yes, spread over its spellings."""
    return [math.log(x) if x else -math.inf for x in (p * small, p * (1 - small), (1 - p) * small, (1 - p) * (1 - small))]


def likely(question):
    text, item = places(question)
    return yes({"a?": 0.9 if "a" in text else 0.2, "short?": 0.7 if len(text) < 2 else 0.4}[item], small=0.3)


def test_a_checklist_is_the_weighted_share_of_yes():
    backend = Fake(likely)
    judge = Checklist(backend, ["a?", {"question": "short?", "weight": 3}], template="checklist.yaml")
    annotation = judge.annotate(rollouts(TEXTS))
    letter = torch.tensor([[0.9, 0.2, 0.9], [0.2, 0.9, 0.2]])
    short = torch.tensor([[0.4, 0.7, 0.4], [0.7, 0.4, 0.7]])
    torch.testing.assert_close(annotation.scores, (letter + 3 * short) / 4, atol=1e-6, rtol=0)
    torch.testing.assert_close(annotation.mass, torch.ones(2, 3), atol=1e-6, rtol=0)
    assert len(backend.questions) == 12


def test_a_prompt_brings_its_own_items():
    asked = with_meta(rollouts(TEXTS), {"checklist": ["a?", {"question": "short?", "weight": None}]}, {})
    annotation = Checklist(Fake(likely), ["short?"], template="checklist.yaml").annotate(asked)
    expected = torch.tensor([[(0.9 + 0.4) / 2, (0.2 + 0.7) / 2, (0.9 + 0.4) / 2], [0.7, 0.4, 0.7]])
    torch.testing.assert_close(annotation.scores, expected, atol=1e-6, rtol=0)


def test_rules_alone_are_the_verifier_and_ask_nobody():
    rule = Regex("a")
    items = [{"verifier": "a"}, {"verifier": "word", "weight": 3.0}]
    asked = with_meta(rollouts(TEXTS), {}, {}, references=["d", "aa"])
    annotation = Checklist(items=items, verifiers={"a": rule, "word": Exact()}).annotate(asked)
    letter, word = (Verifier(r).annotate(asked).scores for r in (rule, Exact()))
    torch.testing.assert_close(annotation.scores, (letter + 3 * word) / 4)
    assert annotation.scores[0].tolist() == [0.25, 0.75, 0.25]
    assert annotation.mass is None


def test_an_item_without_a_verdict_drops_out_of_both_sums():
    items = ["a?", {"verifier": "word", "weight": 9.0}]
    judge = Checklist(Fake(lambda q: [math.log(0.01)] * 4 if "|e|" in q else likely(q)), items, {"word": Exact()}, "checklist.yaml")
    asked = with_meta(rollouts(TEXTS), {}, {}, references=["d", None])
    with pytest.warns(UserWarning, match="Checklist expected (a judge|yes, no or)") as warned:
        annotation = judge.annotate(asked)
    assert len(warned) == 2
    expected = torch.tensor([[0.09, 0.92, 0.09], [0.0, 0.9, 0.2]])
    torch.testing.assert_close(annotation.scores, expected, atol=1e-6, rtol=0)
    assert annotation.valid.tolist() == [[True] * 3, [False, True, True]]
    assert judge.decider.undecided == 3


def test_a_prompt_without_a_checklist_is_invalid_and_said_once():
    judge = Checklist(Fake(likely), template="checklist.yaml")
    with pytest.warns(UserWarning, match='items in meta."checklist".*prompt 1 has none') as warned:
        annotation = judge.annotate(with_meta(rollouts(TEXTS), {"checklist": ["a?"]}, {}))
    assert annotation.valid.tolist() == [[True] * 3, [False] * 3]
    assert len(warned) == 1
    assert judge.unlisted == 1


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("a?", "items: expected a list of texts or of mappings with question, verifier, weight, got 'a\\?'"),
        ([3], "item 1: expected a text or a mapping"),
        (["a?", {"qestion": "b?"}], "item 2: 'qestion' is none of question, verifier, weight. Did you mean 'question'"),
        ([{"verifier": "wrod"}], "item 1: there is no verifier 'wrod': `verifiers` of Checklist has word"),
        ([{"question": " "}], "item 1: expected a question or the name of a verifier"),
        ([{"question": "a?", "weight": -1}], "item 1: the weight should be a positive number, got -1"),
        ([{"question": "a?", "weight": "2"}], "item 1: the weight should be a positive number, got '2'"),
    ],
)
def test_a_wrong_item_is_named(items, message):
    with pytest.raises(UserError, match=message):
        Checklist(Fake(likely), items, {"word": Exact()})
    judge = Checklist(Fake(likely), ["a?"], {"word": Exact()}, "checklist.yaml")
    with pytest.raises(UserError, match="prompt 1.*" + message.removeprefix("items: ")):
        judge.annotate(with_meta(rollouts(TEXTS), {}, {"checklist": items}))


def test_a_question_needs_a_judge():
    with pytest.raises(UserError, match="'a\\?' is a question, but Checklist has no backend"):
        Checklist(items=["a?"])


# Constitution

PRINCIPLES = ["Short.", "Letter a.", "Long.", "Vowels."]


def by_principle(question):
    first, second, principle = places(question)
    value = {"Short.": lambda t: -len(t), "Letter a.": lambda t: 2 * t.count("a"), "Long.": len, "Vowels.": lambda t: len(set(t))}[
        principle
    ]
    z = 0.7 * (value(second) - value(first)) + 0.4  # likes the second place
    return [-math.log1p(math.exp(z)), -math.log1p(math.exp(-z))]


def constitution(**options):
    return Constitution(Fake(by_principle), **({"principles": PRINCIPLES, "template": "constitution.yaml"} | options))


def of_one(principle):
    """The judge that knows one principle only."""

    def answer(question):
        return by_principle(question.replace("|\n\n=", f"|{principle}|\n\n="))

    return PairwiseJudge(Fake(answer), "pairwise.yaml", tie_margin=0.0)


def test_all_principles_are_the_mean_of_their_judges():
    p = constitution(draws=4, tie_margin=0.0).annotate(rollouts(TEXTS)).preferences
    each = torch.stack([of_one(principle).annotate(rollouts(TEXTS)).preferences for principle in PRINCIPLES])
    torch.testing.assert_close(p, each.mean(0), atol=1e-6, rtol=0, equal_nan=True)


def test_one_principle_is_drawn_for_both_orders_of_a_pair():
    judge = constitution(tie_margin=0.0)
    texts = [["abc", "d", "aaa", "ee"]] * 16
    p = judge.annotate(rollouts(texts)).preferences
    each = torch.stack([of_one(principle).annotate(rollouts(texts)).preferences for principle in PRINCIPLES])
    off = ~torch.eye(4, dtype=torch.bool)
    matches = ((p - each).abs() < 1e-6)[:, :, off]
    assert matches.any(0).all()
    torch.testing.assert_close((p + p.mT)[:, off], torch.ones(16, 12), atol=1e-6, rtol=0)
    drawn = [judge.drawn(f"0/0/{b}/0/{i}/{j}")[0] for b in range(16) for i in range(4) for j in range(i + 1, 4)]
    counts = torch.bincount(torch.tensor(drawn), minlength=4)
    assert counts.min() > 10  # of 96 draws, 24 each expected
    for b, (i, j) in product(range(16), combinations(range(4), 2)):
        n = judge.drawn(f"0/0/{b}/0/{i}/{j}")[0]
        assert p[b, i, j].item() == pytest.approx(each[n, b, i, j].item(), abs=1e-6)


def test_what_is_drawn_depends_on_the_query_alone():
    texts = [["abc", "d", "aaa"]] * 6
    asked = rollouts(texts)
    p = constitution().annotate(asked).preferences
    torch.testing.assert_close(constitution().annotate(asked.rows([4, 1])).preferences, p[[4, 1]], atol=0, rtol=0, equal_nan=True)
    for other in (
        constitution(seed=1).annotate(asked),
        constitution().annotate(replace(asked, policy_version=1)),
        constitution().annotate(replace(asked, occurrences=torch.ones(6, dtype=torch.long))),
        constitution().annotate(replace(asked, prompts=tuple(Prompt(prompt.id + 100, "") for prompt in asked.prompts))),
    ):
        assert (other.preferences - p).nan_to_num(0.0).abs().max() > 0.01


def test_draws_do_not_repeat():
    judge = constitution(draws=3)
    assert all(len(set(judge.drawn(str(n)))) == 3 for n in range(50))


def test_principles_are_data(tmp_path):
    shipped = Constitution(Fake(by_principle))
    assert len(set(shipped.principles)) >= 10
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(PRINCIPLES), encoding="utf-8")
    assert Constitution(Fake(by_principle), "mine.yaml").principles == PRINCIPLES
    one, other = (Constitution(Fake(by_principle), listed) for listed in (PRINCIPLES, [*PRINCIPLES[:3], "Vowel."]))
    assert one.identity != other.identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 5}, "draws should be from 1 to the number of principles, 4, got 5"),
        ({"draws": 0}, "got 0"),
        ({"principles": []}, "expected a list of texts"),
        ({"principles": ["a", 3]}, "expected a list of texts"),
        ({"principles": ["a", "b", "a "]}, "'a' is there 2 times"),
        ({"principles": "nowhere.yaml"}, "`general`, a list of texts, or a readable YAML file"),
        ({"principles": "scoring.yaml"}, "principles scoring.yaml: expected a list of texts, each a principle, got \"{'preamble'"),
        ({"tie_margin": 0.5}, "Constitution: tie_margin should be"),
    ],
)
def test_a_constitution_that_makes_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        constitution(**options)


# All of them


@pytest.mark.parametrize(
    "judge",
    [
        lambda backend: Rubric(backend, {"a": "x"}),
        lambda backend: Checklist(backend, ["x"]),
        lambda backend: Constitution(backend),
    ],
)
def test_the_backend_is_woken_and_the_words_are_in_the_identity(judge):
    backend = Fake(certain_grade)
    made = judge(backend)
    made.setup(torch.device("cpu"))
    made.close()
    assert backend.devices == [torch.device("cpu"), None]
    assert made.identity.startswith(f"{type(made).__name__}(fake, general:")
