"""A reward model that learns from its teacher, as often as it should, and is the same one after a stop."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import softplus
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from lit_align.annotators import FunctionAnnotator, Refreshed, RewardModelAnnotator
from lit_align.annotators.refit import comparisons_of
from lit_align.data.journal import LabelJournal
from lit_align.types import Annotation, Stream, UserError
from tests.annotators.test_reward_model import write_reward_model
from tests.annotators.worlds import rollouts
from tests.tiny import sgd, vowels
from tests.wheel.harness import Scores, differing

NAN = math.nan
PROMPTS = ["ab", "c", "de"]
TEXTS = [["a", "b", "ab"], ["aaa", "bb", "ca"], ["d", "bd", "bb"]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_reward_model(tmp_path_factory.mktemp("reward model"))


def count_a(prompt, texts):
    return [float(text.count("a")) for text in texts]


def made(model, teacher=None, **options):
    defaults = {"every_n_rollouts": 1, "prompts_per_rollout": 3, "prompts_per_step": 3, "optimizer": sgd(0.05)}
    return Refreshed(RewardModelAnnotator(model), teacher or FunctionAnnotator(count_a), **(defaults | options))


def said(number=0, texts=TEXTS, prompts=PROMPTS):
    return replace(rollouts(texts, prompts), policy_version=number)


def ask(annotator, rollouts):
    return annotator.annotate(rollouts)


def weights(annotator):
    return {name: value.clone() for name, value in annotator.annotator.host.model.state_dict().items()}


def test_one_step_is_the_gradient_of_the_mean_of_all_pairs(model):
    learner = made(model)
    learner.setup(CPU)
    learner.learn(said(), ask)
    alone = AutoModelForSequenceClassification.from_pretrained(model).eval()
    values = [[_score(alone, learner, prompt, text) for text in texts] for prompt, texts in zip(PROMPTS, TEXTS, strict=True)]
    gaps = [values[0][0] - values[0][1], values[0][2] - values[0][1]]  # counts of a: 1 0 1; 3 0 1; 0 0 0
    gaps += [values[1][0] - values[1][1], values[1][0] - values[1][2], values[1][2] - values[1][1]]
    softplus(-torch.stack(gaps)).mean().backward()
    found = dict(learner.annotator.host.model.named_parameters())
    moved = 0
    for name, parameter in alone.named_parameters():
        step = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_close(found[name], parameter.detach() - 0.05 * step, atol=1e-6, rtol=0)
        moved += int(step.abs().max() > 1e-3)
    assert moved > 3
    assert not any(parameter.requires_grad for parameter in found.values())
    assert all(parameter.grad is None for parameter in found.values())


def _score(model, learner, prompt, text):
    return model(input_ids=torch.tensor([learner.annotator.row(type(rollouts([["a"]]).prompts[0])(0, prompt), text)])).logits[0, 0]


def test_the_head_alone(model):
    learner = made(model, head_only=True)
    learner.setup(CPU)
    before = weights(learner)
    learner.learn(said(), ask)
    assert differing(before, weights(learner)) == ["score.weight"]
    assert list(learner.state_dict()["weights"]) == ["score.weight"]


def test_it_learns_what_its_teacher_likes(model):
    learner = made(model, epochs=40, optimizer=partial(torch.optim.AdamW, lr=5e-3))
    learner.setup(CPU)
    metrics = [dict(learner.learn(said(number), ask)) for number in range(2)]
    assert [m["refresh/pairs"] for m in metrics] == [5, 10]
    assert metrics[0]["refresh/accuracy"] < 1
    assert metrics[0]["refresh/fitted"] == metrics[1]["refresh/accuracy"] == 1, "the second rollout is the first again"
    scores = learner.annotate(said()).scores
    assert (scores[0, [0, 2]] > scores[0, 1]).all()
    assert scores[1, 0] > scores[1, 2] > scores[1, 1]


def test_what_is_a_comparison(model):
    student = RewardModelAnnotator(model, max_tokens=5)
    scores = torch.tensor([[1.0, 0.0, 2.0], [1.0, 3.0, 2.0], [5.0, 5.0, 5.0]])
    valid = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    labels = Annotation(scores=scores, valid=valid)
    found = comparisons_of(student, said(texts=[["a", "b", "c"], ["a", "abcdefgh", "b"], ["a", "b", "c"]]), labels, soft=False)
    assert [group.pairs for group in found] == [[(0, 1, 1.0)], [(2, 0, 1.0)], []], "invalid, too long to be read, and ties"
    [same] = comparisons_of(student, said(texts=[["a", "a", "b"]], prompts=["x"]), labels.rows([1]), soft=False)
    assert same.pairs == [(1, 2, 1.0), (2, 0, 1.0)], "the same text twice"
    [soft, *_] = comparisons_of(student, said(texts=[["a", "b", "c"]] * 3), labels, soft=True)
    assert soft.pairs == [(0, 1, pytest.approx(1 / (1 + math.exp(-1))))]
    judged = torch.full((3, 3, 3), NAN)
    judged[0, 0, 1], judged[0, 1, 0] = 0.2, 0.8
    [by_judge, other, _] = comparisons_of(student, said(texts=[["a", "b", "c"]] * 3), replace(labels, preferences=judged), soft=True)
    assert by_judge.pairs == [(1, 0, pytest.approx(0.8))]
    assert [pair[:2] for pair in other.pairs] == [(1, 0), (1, 2), (2, 0)], "nobody compared these: by their scores"


def test_it_is_fitted_when_it_is_time_and_is_another_one_then(model):
    learner = made(model, every_n_rollouts=3, prompts_per_rollout=2, memory=5)
    latest = learner.annotator.row(said().prompts[0], "jjj")
    learner.setup(CPU)
    seen = []
    for number in range(6):
        before = weights(learner)
        texts = TEXTS[:2] if number < 5 else [["jjj", "a"], ["a", "jjj"]]
        metrics = learner.learn(said(number, texts=texts, prompts=PROMPTS[:2]), ask)
        assert bool(metrics) == bool(differing(before, weights(learner))) == (number in (2, 5))
        seen.append((learner.version, learner.identity, len(learner.state_dict()["known"])))
    assert [version for version, _, _ in seen] == [0, 0, 1, 1, 1, 2]
    assert [known for *_, known in seen] == [2, 4, 5, 5, 5, 5], "the oldest are forgotten"
    known = learner.state_dict()["known"]
    assert [latest in group["rows"] for group in known].count(True) == 1
    assert all(len(group["rows"]) == 2 for group in known[-2:])
    assert len({identity for _, identity, _ in seen}) == 3
    assert learner.annotate(said()).annotator_version == 2
    other = made(model, every_n_rollouts=3, optimizer=sgd(0.06))
    other.setup(CPU)
    for number in range(3):
        other.learn(said(number), ask)
    assert other.version == 1
    assert other.identity != seen[2][1], "what learnt something else has another name at the same version"


def test_the_first_identity_is_the_models_own(model):
    assert made(model).identity == f"Refreshed({model})"


def test_prompts_are_drawn_and_each_has_its_turn(model):
    teacher = Scores(vowels)
    learner = made(model, teacher, every_n_rollouts=1000, prompts_per_rollout=1)
    learner.setup(CPU)
    for number in range(20):
        learner.learn(said(number), ask)
        assert len(teacher.asked) == number + 1
    assert set(teacher.asked) == {0, 1, 2}


def test_nothing_to_learn_is_no_new_version(model):
    learner = made(model, FunctionAnnotator(lambda prompt, texts: [1.0 for _ in texts]))
    learner.setup(CPU)
    assert learner.learn(said(), ask) == {}
    assert learner.version == 0


def test_what_was_learnt_outlives_the_model(model):
    learner = made(model)
    learner.setup(CPU)
    fresh = learner.annotate(said()).scores
    learner.learn(said(), ask)
    scores = learner.annotate(said()).scores
    learner.close()
    assert torch.equal(learner.annotate(said()).scores, scores), "loaded again by itself"
    learner.close()
    learner.setup(CPU)
    assert torch.equal(learner.annotate(said()).scores, scores)
    other = made(model)
    other.setup(CPU)
    other.load_state_dict({})
    assert torch.equal(other.annotate(said()).scores, fresh)
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other.annotate(said()).scores, scores)
    assert (other.version, other.identity) == (learner.version, learner.identity)
    other.learn(said(1), ask)
    learner.learn(said(1), ask)
    assert differing(weights(other), weights(learner)) == []


def test_a_teacher_may_learn_too(model):
    inner = made(model, every_n_rollouts=2)
    learner = made(model, inner)
    learner.setup(CPU)
    names = [set(learner.learn(said(number), ask)) for number in range(2)]
    assert [{"refresh/accuracy_teacher", "refresh/pairs_teacher"} <= found for found in names] == [False, True]
    again = made(model, made(model, every_n_rollouts=2))
    again.setup(CPU)
    again.load_state_dict(learner.state_dict())
    assert again.teacher.version == 1
    assert again.teacher.identity == inner.identity


def test_the_journal_replays_what_each_version_said(model, tmp_path):
    learner, stream = made(model), Stream(0, "train", 0)
    learner.setup(CPU)
    journal = LabelJournal(tmp_path, 0)
    first = journal.annotate(learner, said(), stream)
    learner.learn(said(), ask)
    second = journal.annotate(learner, said(), stream)
    assert (first.annotator_version, second.annotator_version) == (0, 1)
    assert not torch.equal(first.scores, second.scores)
    used = journal.labels_used
    journal.close()
    again = LabelJournal(tmp_path, 0)
    assert torch.equal(again.annotate(learner, said(), stream).scores, second.scores)
    assert again.labels_used == used
    again.close()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda path: made(path, every_n_rollouts=0), "every_n_rollouts should be at least 1, got 0"),
        (lambda path: made(path, memory=0), "memory should be at least 1, got 0"),
        (lambda path: Refreshed(RewardModelAnnotator(path, dtype="bfloat16"), Scores()), "`dtype: float32`, got bfloat16"),
        (lambda path: made(path).learn(said(texts=[["a"]] * 3), ask), "responses_per_prompt to be at least 2, got 1"),
        (lambda path: made(path, optimizer=sgd(1e38), epochs=3).learn(said(), ask), "Lower the learning rate"),
        (lambda path: made(path).load_state_dict(state({"gone": torch.zeros(2)})), r"gone of shape \[2\]"),
        (lambda path: made(path).load_state_dict(state({"score.weight": torch.zeros(1, 5)})), r"score.weight of shape \[1, 5\]"),
    ],
)
def test_mistakes_are_named(run, message, model):
    with pytest.raises(UserError, match=message):
        run(model)


def state(weights):
    return {"version": 1, "weights": weights, "known": [], "new": 0, "teacher": {}}
