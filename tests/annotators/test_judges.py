"""Judges: exact with backends whose answers are known, and from text to `Annotation` with models trained here."""

import json
import math
import random

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from lit_align.annotators import LocalLM, PairwiseJudge, RewardModelAnnotator, ScoringJudge
from lit_align.types import Annotator, UserError
from tests.annotators.worlds import PAIRWISE, SCORING, Fake, journal_means, make_tokenizer, rollouts, write_judge
from tests.tiny import LETTERS, adamw, make_dar, make_data, make_trainer, write_tiny

TEXTS = [["abc", "d", "aaa"], ["e", "aa", "j"]]


def certain(i, n):
    """All mass on option ``i`` of ``n``."""
    return [0.0 if j == i else -math.inf for j in range(n)]


@pytest.fixture
def templates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("scoring.yaml", SCORING), ("pairwise.yaml", PAIRWISE)):
        (tmp_path / name).write_text(content, encoding="utf-8")


def response_of(question):
    """Of a question by the templates of these tests."""
    return question.split("|")[1].removesuffix("\n\n=")


# A judge that grades


def grade_by_length(question):
    return certain(min(len(response_of(question)), 10) - 1, 10)


def test_a_certain_grade_is_the_score(templates):
    annotation = ScoringJudge(Fake(grade_by_length), "scoring.yaml").annotate(rollouts(TEXTS))
    grades = torch.tensor([[len(text) for text in row] for row in TEXTS]).float()
    torch.testing.assert_close(annotation.scores, (grades - 5.5) / 4.5, atol=1e-6, rtol=0)
    assert annotation.valid.all()
    assert annotation.mass.tolist() == [[1.0] * 3] * 2
    assert annotation.preferences is None
    assert annotation.scores.dtype == torch.float32


def test_flat_grades_are_zero_and_only_the_proportions_count(templates):
    flat = ScoringJudge(Fake(lambda _: [math.log(0.06)] * 10), "scoring.yaml").annotate(rollouts(TEXTS))
    assert flat.scores.abs().max() < 1e-6
    assert flat.mass.flatten().tolist() == pytest.approx([0.6] * 6)
    steep = [math.log(0.05 + 0.01 * i) for i in range(10)]
    one, other = (
        ScoringJudge(Fake(lambda _, shift=shift: [x - shift for x in steep]), "scoring.yaml").annotate(rollouts(TEXTS))
        for shift in (0.0, 0.5)
    )
    torch.testing.assert_close(one.scores, other.scores, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.mass, one.mass * math.exp(-0.5), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("share", "valid"), [(0.51, True), (0.49, False), (0.0, False), (math.nan, False)])
def test_little_mass_is_invalid(share, valid, templates, recwarn):
    def answer(question):
        return [math.log(share / 10) if share else -math.inf] * 10 if response_of(question) == "d" else [math.log(0.1)] * 10

    judge = ScoringJudge(Fake(answer), "scoring.yaml")
    annotation = judge.annotate(rollouts(TEXTS))
    assert annotation.valid.tolist() == [[True, valid, True], [True] * 3]
    assert annotation.scores.isfinite().all()
    assert annotation.mass[0, 1].item() == pytest.approx(0.0 if math.isnan(share) else share, abs=1e-6)
    assert judge.asker.refused == (not valid)
    assert len(recwarn) == (not valid)
    if not valid:
        assert "answers '1' to '10', but 1 of 6 times" in str(recwarn[0].message)
        judge.annotate(rollouts(TEXTS))
        assert len(recwarn) == 1


def test_the_mass_that_is_asked_for_can_be_set(templates):
    low = Fake(lambda _: [math.log(0.03)] * 10)
    assert ScoringJudge(low, "scoring.yaml", min_mass=0.2).annotate(rollouts(TEXTS)).valid.all()
    with pytest.raises(UserError, match=r"min_mass should be a probability, from 0 to 1, got 1\.5"):
        ScoringJudge(low, "scoring.yaml", min_mass=1.5)


def test_the_same_response_is_asked_about_once(templates):
    backend = Fake(grade_by_length)
    annotation = ScoringJudge(backend, "scoring.yaml").annotate(rollouts([["abc", "d", "abc"], ["abc", "d", "d"]], ["a", "b"]))
    assert len(backend.questions) == len(set(backend.questions)) == 4
    assert annotation.scores[0, 0] == annotation.scores[0, 2] == annotation.scores[1, 0]


def test_a_question_holds_the_texts_as_they_are(templates):
    backend = Fake(lambda _: [math.log(0.1)] * 10)
    chat = ({"role": "user", "content": "{x}"}, {"role": "assistant", "content": "b"})
    ScoringJudge(backend, "scoring.yaml").annotate(rollouts([["{response} %s"]], [chat]))
    assert backend.questions == ["j\n\nUser: {x}\n\nAssistant: b|{response} %s\n\n="]


@pytest.mark.parametrize(("kind", "template"), [(ScoringJudge, "scoring.yaml"), (PairwiseJudge, "pairwise.yaml")])
def test_identity_names_backend_and_words_and_the_backend_is_woken(kind, template, templates):
    backend = Fake(grade_by_length)
    judge = kind(backend, template)
    assert judge.identity.startswith(f"{kind.__name__}(fake, {template}:")
    other = kind(backend, "tldr")
    assert other.identity != judge.identity
    judge.setup(torch.device("cpu"))
    judge.close()
    assert backend.devices == [torch.device("cpu"), None]


# A judge that compares


def shorter_is_better(question, bias=0.0):
    """Logit of "2" against "1" by lengths, plus ``bias``."""
    first, second = question.split("|")[1:3]
    z = len(first) - len(second) + bias
    return [-math.log1p(math.exp(z)), -math.log1p(math.exp(-z))]


def test_preferences_are_those_of_the_judge(templates):
    texts = [["a", "bbb", "cc"]]
    annotation = PairwiseJudge(Fake(shorter_is_better), "pairwise.yaml").annotate(rollouts(texts))
    lengths = torch.tensor([1.0, 3.0, 2.0])
    expected = torch.sigmoid(lengths.unsqueeze(0) - lengths.unsqueeze(1))  # P(i beats j)
    off = ~torch.eye(3, dtype=torch.bool)
    torch.testing.assert_close(annotation.preferences[0][off], expected[off], atol=1e-6, rtol=0)
    assert annotation.preferences[0].diagonal().isnan().all()
    torch.testing.assert_close(annotation.scores[0], expected.where(off, 0.0).sum(-1) / 2, atol=1e-6, rtol=0)
    assert annotation.scores[0].argsort().tolist() == [1, 2, 0]
    assert annotation.mass[0].tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("bias", [0.0, 1.5, -4.0])
def test_both_sides_add_up_to_one_whatever_the_bias(bias, templates):
    judge = PairwiseJudge(Fake(lambda question: shorter_is_better(question, bias)), "pairwise.yaml")
    p = judge.annotate(rollouts([["a", "bbb", "cc", "c"], ["dddd", "", "ee", "f"]])).preferences
    off = ~torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close((p + p.mT)[:, off], torch.ones(2, 12), atol=1e-6, rtol=0)
    assert p[0, 0, 1] > 0.5 > p[0, 1, 0]


def test_a_judge_of_places_alone_has_no_opinion(templates):
    annotation = PairwiseJudge(Fake(lambda _: [math.log(0.02), math.log(0.98)]), "pairwise.yaml").annotate(rollouts(TEXTS))
    off = ~torch.eye(3, dtype=torch.bool)
    assert (annotation.preferences[:, off] == 0.5).all()
    assert (annotation.scores == 0.5).all()


def test_what_was_said_in_each_order_is_kept(templates):
    said = PairwiseJudge(Fake(lambda question: shorter_is_better(question, 1.5)), "pairwise.yaml").annotate(rollouts([["a", "bbb", "cc"]]))
    assert said.preferences is not None
    assert said.seen_first is not None
    lengths = torch.tensor([1.0, 3.0, 2.0])
    expected = torch.sigmoid(lengths.unsqueeze(0) - lengths.unsqueeze(1) - 1.5)  # the bias is against what is shown first
    off = ~torch.eye(3, dtype=torch.bool)
    torch.testing.assert_close(said.seen_first[0][off], expected[off], atol=1e-6, rtol=0)
    torch.testing.assert_close(said.preferences, (said.seen_first + 1 - said.seen_first.mT) / 2, atol=1e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize(("margin", "tie"), [(1e-3, False), (0.3, True), (0.0, False)])
def test_a_tie_is_half(margin, tie, templates):
    p = PairwiseJudge(Fake(shorter_is_better), "pairwise.yaml", tie_margin=margin).annotate(rollouts([["a", "bb"]])).preferences
    assert (p[0, 0, 1] == 0.5) == (p[0, 1, 0] == 0.5) == tie


@pytest.mark.parametrize(
    ("k", "opponents", "met"), [(2, None, 1), (4, None, 3), (5, None, 4), (4, 1, 2), (5, 2, 2), (6, 3, 4), (4, 3, 3), (3, 9, 2), (6, 5, 5)]
)
def test_every_response_meets_as_many_others(k, opponents, met, templates):
    backend = Fake(shorter_is_better)
    judge = PairwiseJudge(backend, "pairwise.yaml", opponents=opponents)
    annotation = judge.annotate(rollouts([list("abcdefghij"[:k])]))
    asked = ~annotation.preferences[0].isnan()
    assert asked.sum(-1).tolist() == [met] * k
    assert torch.equal(asked, asked.T)
    assert len(backend.questions) == k * met
    assert judge.asker.asked == k * met


def test_one_refusal_unmakes_the_pair_only(templates):
    def answer(question):
        return [math.log(0.1)] * 2 if question.split("|")[1:3] == ["bbb", "a"] else shorter_is_better(question)

    judge = PairwiseJudge(Fake(answer), "pairwise.yaml")
    with pytest.warns(UserWarning, match="PairwiseJudge expected a judge that answers '1' to '2', but 1 of 6 times"):
        annotation = judge.annotate(rollouts([["a", "bbb", "cc"]]))
    missing = [[True, True, False], [True, True, False], [False, False, True]]
    assert annotation.preferences[0].isnan().tolist() == missing
    assert annotation.seen_first[0].isnan().tolist() == [[True, False, False], [True, True, False], [False, False, True]]  # (bbb, a) alone
    assert annotation.valid.all()
    assert annotation.scores[0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=1e-6)
    assert annotation.mass[0].tolist() == pytest.approx([0.8, 0.8, 1.0])


def test_without_any_answer_a_response_is_invalid(templates):
    judge = PairwiseJudge(Fake(lambda question: [math.log(0.1)] * 2 if "j" in question else shorter_is_better(question)), "pairwise.yaml")
    with pytest.warns(UserWarning, match="4 of 6 times"):
        annotation = judge.annotate(rollouts([["a", "bb", "j"]]))
    assert annotation.valid.tolist() == [[True, True, False]]
    assert annotation.scores.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"), [({"tie_margin": 0.5}, "less than 0.5, got 0.5"), ({"opponents": 0}, "at least 1, .* got 0")]
)
def test_numbers_out_of_range_are_refused(options, message, templates):
    with pytest.raises(UserError, match=message):
        PairwiseJudge(Fake(shorter_is_better), "pairwise.yaml", **options)


def test_one_response_cannot_be_compared(templates):
    with pytest.raises(UserError, match="at least 2, got responses_per_prompt = 1"):
        PairwiseJudge(Fake(shorter_is_better), "pairwise.yaml").annotate(rollouts([["a"]]))


# Judges that were trained to prefer the letter a


def some_text(generator, longest=6):
    return "".join(generator.choice("aaa" + LETTERS[:10]) for _ in range(generator.randint(0, longest)))


def grade(text):
    return (1, 4, 7, 10)[min(text.count("a"), 3)]


@pytest.fixture(scope="module")
def grader(tmp_path_factory):
    """Grades 1, 4, 7, 10 by the number of a's, "10" as two tokens."""
    generator = random.Random(0)

    def examples(n):
        texts = [some_text(generator) for _ in range(n)]
        return [(f"j{some_text(generator, 3)}|{text}=", str(grade(text))) for text in texts]

    return write_judge(tmp_path_factory.mktemp("grader"), make_tokenizer(), examples, steps=250)


@pytest.fixture(scope="module")
def comparer(tmp_path_factory):
    """Prefers more a's, and the second place by 1.5 nats."""
    generator = random.Random(0)

    def examples(n):
        pairs = [(some_text(generator), some_text(generator)) for _ in range(n)]
        second = [generator.random() < 1 / (1 + math.exp(-2 * (y.count("a") - x.count("a")) - 1.5)) for x, y in pairs]
        return [(f"|{x}|{y}|=", "2" if wins else "1") for (x, y), wins in zip(pairs, second, strict=True)]

    return write_judge(tmp_path_factory.mktemp("comparer"), make_tokenizer(), examples, steps=250)


def held_out(b, k):
    generator = random.Random(1)
    return [[some_text(generator) for _ in range(k)] for _ in range(b)]


def test_a_trained_grader_grades(grader, templates):
    texts = held_out(32, 4)
    annotation = ScoringJudge(LocalLM(grader), "scoring.yaml").annotate(rollouts(texts))
    grades = torch.tensor([[(grade(text) - 5.5) / 4.5 for text in row] for row in texts])
    assert annotation.valid.all()
    assert annotation.mass.min() > 0.9
    assert (annotation.scores - grades).abs().mean() < 0.15
    best = annotation.scores[grades == 1.0]
    assert len(best) > 3
    assert best.mean() > 0.7  # a "1" that took the mass of "10" would have made them the worst


def test_a_trained_comparer_prefers_through_its_bias(comparer, templates):
    texts = held_out(24, 4)
    judge = PairwiseJudge(LocalLM(comparer), "pairwise.yaml")
    annotation = judge.annotate(rollouts(texts))
    counts = torch.tensor([[text.count("a") for text in row] for row in texts])
    difference = counts.unsqueeze(-1) - counts.unsqueeze(-2)  # [B, K, K]
    p = annotation.preferences
    assert annotation.valid.all()
    assert ((p > 0.5) == (difference > 0))[difference.abs() >= 1].float().mean() > 0.9
    off = ~torch.eye(4, dtype=torch.bool)
    assert (p - 0.5).abs()[(difference == 0) & off].mean() < 0.1
    # The bias is there where only one order is asked.
    same = [f"|{text}|{text}|=" for row in texts for text in row]
    second = LocalLM(comparer).option_logps(same, ("1", "2")).softmax(-1)[:, 1]
    assert second.mean() > 0.7


@pytest.mark.parametrize("kind", ["scoring", "pairwise"])
def test_dar_learns_from_a_judge(kind, grader, comparer, templates, tmp_path):
    backend = LocalLM(grader if kind == "scoring" else comparer)
    judge = {"scoring": ScoringJudge, "pairwise": PairwiseJudge}[kind](backend, f"{kind}.yaml")
    data, trainer = make_data(annotator=judge), make_trainer(tmp_path, max_epochs=10)
    trainer.fit(make_dar(write_tiny(tmp_path / "policy"), optimizer=adamw(3e-2)), data)
    metrics = trainer.callback_metrics
    assert metrics["labels/used"] == 10 * 32
    assert 0.5 < metrics["labels/option_mass"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "journal" / "labels-0.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [mass for row in rows if row["rollout"] == 9 for mass in row["mass"]]
    assert sum(last) / len(last) == pytest.approx(metrics["labels/option_mass"].item(), abs=1e-5)
    if kind == "scoring":
        means = journal_means(tmp_path)
        assert min(means[-2:]) > max(means[:2]) + 0.2
    else:
        assert all(row["preferences"] is not None for row in rows)


# From a YAML

EXPECTED = {"reward_model": RewardModelAnnotator, "scoring_judge": ScoringJudge, "pairwise_judge": PairwiseJudge}


@pytest.mark.parametrize("name", EXPECTED)
def test_from_a_shipped_yaml(name, request):
    path = request.config.rootpath / "configs" / "annotator" / f"{name}.yaml"
    annotator = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["init_args"]["annotator"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--annotator", type=Annotator)
    made = parser.instantiate(parser.parse_object({"annotator": annotator})).annotator
    assert type(made) is EXPECTED[name]
    if name != "reward_model":
        assert isinstance(made.backend, LocalLM)
        assert made.identity.startswith(f"{EXPECTED[name].__name__}(my-judge, helpfulness:")
