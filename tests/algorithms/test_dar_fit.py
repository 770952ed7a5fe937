"""DAR through the Trainer, on a policy that writes letters."""

import pytest
import torch
from lightning.pytorch import Callback
from torch.testing import assert_close

from lit_align.algorithms import CentredWeights, FixedScale, GroupWeights, leave_one_out
from lit_align.annotators import FunctionAnnotator
from lit_align.types import RolloutCallback
from tests.tiny import make_dar, make_data, make_trainer, sgd, write_tiny


class Watch(Callback):
    """The mean reward of every rollout."""

    def __init__(self):
        self.rewards, self.reached = [], {}

    def on_train_epoch_end(self, trainer, pl_module):
        self.reached = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rewards.append(self.reached["reward/mean"])


def fit(folder, rollouts, **options):
    watch = Watch()
    torch.manual_seed(0)
    module = make_dar(write_tiny(folder / "policy"), **options)
    data = make_data(responses_per_prompt=8, micro_batch_prompts=8)
    make_trainer(folder, max_epochs=rollouts, callbacks=[watch]).fit(module, data)
    return watch


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 0.05, "beta": 0.05, "weighting": GroupWeights(), "scale": FixedScale()},
        {"alpha": 0.05, "beta": 0.05, "weighting": CentredWeights(), "scale": FixedScale(), "baseline": leave_one_out},
    ],
    ids=["published", "group weights", "centred weights"],
)
def test_a_run_raises_the_reward(tmp_path, options):
    """Measured over 8 rollouts of 64 responses, from .28: to .80, .76, .71. One rollout's mean has a standard error of .03."""
    watch = fit(tmp_path, 6, **options)
    assert watch.rewards[0] == pytest.approx(0.276, abs=0.02)  # the same samples whatever is trained
    assert watch.rewards[-1] > watch.rewards[0] + 0.25
    assert sorted(watch.rewards[:4]) == watch.rewards[:4]
    assert watch.reached["train/skipped_steps"] == 0


class Keep(RolloutCallback):
    def on_rollout_end(self, trainer, module, rollouts, annotation, batch, diagnostics):
        self.batch = batch


def test_equal_rewards_are_one_step_of_imitation(tmp_path):
    """A real model, from sampling to the optimizer: the step is that of the mean summed negative log-likelihood of the samples."""
    keep, rate = Keep(), 0.1
    folder = write_tiny(tmp_path / "policy")
    module, plain = make_dar(folder, optimizer=sgd(rate)), make_dar(folder).policy
    data = make_data(annotator=FunctionAnnotator(lambda prompt, texts: [0.3] * len(texts)), micro_batch_prompts=2)
    make_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=4, callbacks=[keep]).fit(module, data)
    assert_close(keep.batch.weights, torch.ones(8, 4), atol=1e-5, rtol=0)
    (-plain(keep.batch).token_logps.where(keep.batch.loss_mask, 0.0).sum(-1).mean()).backward()
    moved = 0.0
    for (name, before), (_, after) in zip(plain.named_parameters(), module.policy.named_parameters(), strict=True):
        assert_close(after, before - rate * before.grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        moved = max(moved, float((rate * before.grad).abs().max()))
    assert moved > 1e-2
