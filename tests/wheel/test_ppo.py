"""A critic and several inner epochs through the Trainer: groups of the optimizer, steps left out, and a stopped run that goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lit_align.algorithms import PPO, KLTarget
from lit_align.models import CausalPolicy, LoRA, ValueModel
from lit_align.types import UserError
from tests.tiny import adamw, make_data, make_trainer
from tests.wheel.harness import Fit, Weights, differing, fit
from tests.wheel.test_resume import Saves

# 2 optimizer steps of a rollout, three times, of 2 micro-batches each.
DATA: dict[str, Any] = {"micro_batch_prompts": 2, "inner_epochs": 3}
STEPS, ACCUMULATE, EPOCHS = 6, 2, 2


class Distances(Callback):
    """``ratio/kl`` of every optimizer step, before it was taken or left out."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.seen.append(float(trainer.callback_metrics["ratio/kl"]))


def make_ppo(model: str, **options: Any) -> PPO:
    """Whatever has a state: the mean of the first rollout, a price that moves, moments, a schedule."""
    defaults: dict[str, Any] = {
        "optimizer": adamw(3e-3),
        "critic_settings": {"lr": 1e-2, "weight_decay": 0.1},
        "kl_target": KLTarget(0.5),
        "lr_schedule": lambda o: LambdaLR(o, lambda i: 0.99**i),
    }
    return PPO(CausalPolicy(model), **(defaults | options))


def run(root: Path, model: str, callbacks: Any = (), ckpt_path: Path | None = None, **options: Any) -> Fit:
    trainer = {"max_epochs": EPOCHS, "accumulate_grad_batches": ACCUMULATE}
    return fit(root, model, module=make_ppo(model, **options), callbacks=callbacks, trainer=trainer, ckpt_path=ckpt_path, **DATA)


@pytest.fixture(scope="module")
def distances(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of a run that never stops."""
    seen = Distances()
    run(tmp_path_factory.mktemp("distances"), tiny, [seen])
    assert len(seen.seen) == STEPS * EPOCHS
    return seen.seen


@pytest.fixture(scope="module")
def stopping(distances: list[float], tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fit, Weights, Saves, float]:
    """A run that stops where the policy is further than it was before its second step."""
    folder = tmp_path_factory.mktemp("stopping")
    weights, saves = Weights(), Saves(folder)
    result = run(folder / "run", tiny, [weights, saves], kl_stop=distances[1])
    return result, weights, saves, distances[1]


def test_the_first_step_is_at_ratio_one(distances: list[float]) -> None:
    assert [distances[0], distances[STEPS]] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert distances[2] > distances[1] > 1e-5


def expected_stops(weights: Weights) -> list[bool]:
    """Which steps left everything as it was."""
    return [not changed(before, after) for before, after in zip(weights.seen[:-1], weights.seen[1:], strict=True)]


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Of policy, critic and the optimizer's moments; a step that is left out still is one for the schedule."""
    return [name for name in differing(before, after) if name.startswith(("policy.", "critic.", "optimizer."))]


def test_what_is_too_far_is_left_out_with_all_that_follows(stopping: tuple[Fit, Weights, Saves, float]) -> None:
    """At exactly ``kl_stop`` the second step is taken; before the third the policy is further. Nothing moves then, moments included."""
    result, weights, _, _ = stopping
    left_out = expected_stops(weights)
    assert left_out[:STEPS] == [False, False, True, True, True, True]
    assert not left_out[STEPS], "the next rollout begins anew"
    module = result.module
    assert isinstance(module, PPO)
    assert int(module.stopped_steps) == sum(left_out)
    assert int(module.skipped_steps) == 0
    assert result.trainer.callback_metrics["train/stopped_steps"] == sum(left_out)
    assert result.trainer.global_step == STEPS * EPOCHS


def test_steps_that_are_left_out_read_no_response(distances: list[float], tiny: str, root: Path) -> None:
    read: list[int] = []

    class Counting(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, PPO)
            assert pl_module.critic is not None
            for model in (pl_module.policy, pl_module.critic):
                model.register_forward_pre_hook(
                    lambda module, inputs: read.append(int(inputs[0].response_mask.any(-1).sum())) if torch.is_grad_enabled() else None
                )

    trainer = {"max_epochs": 1, "accumulate_grad_batches": ACCUMULATE}
    fit(root, tiny, module=make_ppo(tiny, kl_stop=distances[1]), callbacks=[Counting()], trainer=trainer, **DATA)
    assert read == [8] * 12 + [0] * 12  # policy and critic, 12 micro-batches; the first of the steps left out had to be read


@pytest.mark.parametrize("moment", ["after-0", "before-3", "after-5", "after-7", "before-9", "after-11"])
def test_resumed_inside_the_inner_epochs(moment: str, stopping: tuple[Fit, Weights, Saves, float], tiny: str, root: Path) -> None:
    whole, weights, saves, kl_stop = stopping
    assert any(expected_stops(weights)[STEPS:]), "some of these are after a stop"
    resumed = run(root, tiny, ckpt_path=saves.folder / f"{moment}.ckpt", kl_stop=kl_stop)
    assert differing(whole.state, resumed.state) == []
    assert resumed.trainer.global_step == whole.trainer.global_step


def test_critic_and_policy_are_groups_of_their_own(tiny: str) -> None:
    module = make_ppo(tiny, lr_schedule=None)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    policy, critic = optimizer.param_groups
    assert [p is q for p, q in zip(policy["params"], module.policy.parameters(), strict=True)] == [True] * len(policy["params"])
    assert module.critic is not None
    assert [p is q for p, q in zip(critic["params"], module.critic.parameters(), strict=True)] == [True] * len(critic["params"])
    assert (policy["lr"], critic["lr"], policy["weight_decay"], critic["weight_decay"]) == (3e-3, 1e-2, 0.01, 0.1)


def test_a_setting_that_the_optimizer_does_not_know_is_refused(tiny: str) -> None:
    with pytest.raises(UserError, match=r"AdamW knows no learning_rate: .*betas"):
        make_ppo(tiny, critic_settings={"learning_rate": 1.0}).configure_optimizers()


def test_a_shared_trunk_learns_both(tiny: str, root: Path) -> None:
    module = PPO(CausalPolicy(tiny, value_head=True), optimizer=adamw(3e-3), critic_settings={"lr": 0.03})
    trainer = {"max_epochs": 2}
    fit(root, tiny, module=module, trainer=trainer, micro_batch_prompts=8)
    assert module.companion[0].weight.abs().max() > 0.01  # pyright: ignore
    assert "policy._value_head.weight" in module.state_dict()


def test_an_adapter_is_trained_beside_a_whole_critic(tiny: str, root: Path) -> None:
    policy = CausalPolicy(tiny, lora=LoRA(rank=2))
    module = PPO(policy, ValueModel(tiny, seed=1), optimizer=adamw(3e-3))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    make_trainer(root, max_epochs=2).fit(module, make_data(micro_batch_prompts=8))
    names = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert names == {name for name, p in module.named_parameters() if p.requires_grad}
    saved = {name for name in module.state_dict() if name.startswith("policy.")}
    assert saved == {name for name in names if name.startswith("policy.")}


def test_without_a_word_the_critic_is_made_of_the_policys_folder(tiny: str) -> None:
    module = PPO(CausalPolicy(tiny))
    assert isinstance(module.critic, ValueModel)
    assert module.critic.path == tiny
    assert module.companion[0] is module.critic


def test_two_critics_are_refused(tiny: str) -> None:
    with pytest.raises(UserError, match="one critic"):
        PPO(CausalPolicy(tiny, value_head=True), ValueModel(tiny))


@pytest.mark.parametrize("kept", [False, True])
def test_dropout_is_off_unless_it_is_kept(kept: bool, tiny_with_dropout: str) -> None:
    policy = CausalPolicy(tiny_with_dropout)
    module = PPO(policy, dropout=kept)
    layers: list[Any] = [*policy.model.model.layers, *module.critic.trunk.layers]  # pyright: ignore
    assert [layer.self_attn.attention_dropout for layer in layers] == [0.2 if kept else 0.0] * 4
    assert policy.model.config.attention_dropout == 0.2, "it is saved as it was"
    assert policy.training
