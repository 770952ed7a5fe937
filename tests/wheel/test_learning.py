"""A run whose reward model learns: 4 rollouts of 8 prompts, of 4 of which the teacher labels the responses; fitted again after the second
and the fourth."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.algorithms import ReferenceStd, RunningMax
from lit_align.annotators import Ensemble, FunctionAnnotator, Refreshed, RewardModelAnnotator
from lit_align.types import Annotation, Annotator, UserError
from tests.annotators.test_reward_model import write_reward_model
from tests.tiny import make_dar, sgd, vowels
from tests.wheel.harness import Killed, differing, fit


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_reward_model(tmp_path_factory.mktemp("reward model"))


def made(model, teacher):
    return Refreshed(RewardModelAnnotator(model), teacher, 2, prompts_per_rollout=4, memory=6, prompts_per_step=3, optimizer=sgd(0.05))


class Dies(Annotator):
    """`vowels`, until it was asked so often."""

    identity = "teacher"

    def __init__(self, at=10**6):
        self.left, self.asked = at, []

    def annotate(self, rollouts):
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.asked += [(rollouts.policy_version, prompt.id) for prompt in rollouts.prompts]
        scores = torch.tensor([vowels(p, t) for p, t in zip(rollouts.prompts, rollouts.texts, strict=True)])
        return Annotation(scores=scores, valid=torch.ones_like(scores, dtype=torch.bool))


def run(root, tiny, model, teacher=None, *, epochs=4, wrapped=False, **options):
    """Whatever has a state: the policy, a running scale, the reward model."""
    learner = made(model, teacher or Dies())
    kept = ModelCheckpoint(root, save_last=True, save_top_k=-1, filename="{epoch}", enable_version_counter=False)
    trainer = {"max_epochs": epochs, "enable_checkpointing": True}
    annotator = Ensemble([learner, FunctionAnnotator(vowels)]) if wrapped else learner
    module = make_dar(tiny, scale=RunningMax())
    return fit(root, tiny, module=module, callbacks=[kept], trainer=trainer, annotator=annotator, chunk_prompts=3, **options)


def learnt(result):
    """Weights of policy, optimizer and reward model."""
    states = result.data.annotator.state_dict()
    return result.state | {f"reward.{name}": value for name, value in states.get("0", states)["weights"].items()}


def refreshes(result):
    """What the last fit said of itself."""
    return {name: value for name, value in result.recorder.metrics[-1].items() if name.startswith("refresh/")}


@pytest.fixture(scope="module")
def whole(tiny, model, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return run(root, tiny, model), root


def test_labels_of_a_rollout_are_of_one_version_and_the_scale_follows(whole):
    result, _ = whole
    assert [annotation.annotator_version for annotation in result.recorder.annotations] == [0, 0, 1, 1]
    assert [batch.annotator_version for batch in result.recorder.batches] == [0, 0, 1, 1]
    assert result.state["measured_version"] == 1
    assert ["refresh/accuracy" in metrics for metrics in result.recorder.metrics] == [False, True, True, True]
    assert result.recorder.metrics[3]["labels/annotator_version"] == 1
    assert result.recorder.metrics[3]["labels/used"] == 4 * 8 * 4 + 3 * 4 * 4, (
        "the teacher's of three rollouts count, the fourth's come after"
    )


@pytest.mark.parametrize(("stopped_after", "wrapped"), [(1, False), (2, False), (3, True)])
def test_resumed_between_fits_it_is_as_if_it_had_not_been_stopped(stopped_after, wrapped, whole, tiny, model, root, tmp_path):
    expected = run(tmp_path / "other", tiny, model, wrapped=True) if wrapped else whole[0]
    run(root, tiny, model, epochs=stopped_after, wrapped=wrapped)
    teacher = Dies()
    resumed = run(root, tiny, model, teacher, wrapped=wrapped, ckpt_path=root / "last.ckpt")
    assert differing(learnt(expected), learnt(resumed)) == []
    assert {number for number, _ in teacher.asked} == set(range(stopped_after, 4))
    assert refreshes(resumed) == refreshes(expected)
    assert refreshes(expected)


@pytest.mark.parametrize("asked", [1, 3])
def test_killed_while_the_teacher_is_asked(asked, whole, tiny, model, root):
    """Before the fit and in the rollout after it: what was labelled is not asked for again."""
    first, second = Dies(asked), Dies()
    with pytest.raises(Killed):
        run(root, tiny, model, first)
    resumed = run(root, tiny, model, second, ckpt_path=root / "last.ckpt")
    assert differing(learnt(whole[0]), learnt(resumed)) == []
    assert not set(first.asked) & set(second.asked)
    assert len(first.asked) + len(second.asked) == 4 * 4


def test_a_unit_that_is_measured_once_is_refused_when_the_model_has_learnt(tiny, model, root):
    with pytest.raises(UserError, match="ReferenceStd measured its unit once, in scores of version 0"):
        fit(root, tiny, module=make_dar(tiny, scale=ReferenceStd()), annotator=made(model, Dies()), trainer={"max_epochs": 3})


def test_a_checkpoint_of_a_model_that_learns_wants_one(whole, tiny, root):
    with pytest.raises(UserError, match="FunctionAnnotator learns nothing"):
        fit(root, tiny, module=make_dar(tiny, scale=RunningMax()), ckpt_path=whole[1] / "last.ckpt", trainer={"max_epochs": 5})
