"""A stopped run goes on as if it had not been stopped, to the bit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import LambdaLR

from lit_align.algorithms import DAR, KLTarget, ReferenceStd
from tests.tiny import make_dar, vowels
from tests.wheel.harness import Fit, Killed, Memory, Scores, differing, fit

# 4 micro-batches of a rollout, twice: 8 positions, 4 optimizer steps.
DATA: dict[str, Any] = {"micro_batch_prompts": 2, "inner_epochs": 2, "chunk_prompts": 2}
ACCUMULATE = 2
MICRO_BATCHES = 8
EPOCHS = 3


def everything(model: str) -> DAR:
    """Whatever has a state: running scale and price, moments, a schedule."""
    return make_dar(
        model, alpha=0.5, beta=0.5, scale=ReferenceStd(), kl_target=KLTarget(nats=0.5), lr_schedule=lambda o: LambdaLR(o, lambda i: 0.9**i)
    )


def run(root: Path, model: str, callbacks: Any = (), trainer: dict[str, Any] | None = None, **options: Any) -> Fit:
    trainer = {"max_epochs": EPOCHS, "accumulate_grad_batches": ACCUMULATE} | (trainer or {})
    return fit(root, model, callbacks=callbacks, trainer=trainer, **({"module": everything(model)} | DATA | options))


@dataclass
class Saves(Callback):
    """A checkpoint at the beginning and the end of every micro-batch of the second rollout."""

    folder: Path
    steps: dict[str, int] = field(default_factory=dict)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.save(trainer, f"before-{batch_idx}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.save(trainer, f"after-{batch_idx}")

    def save(self, trainer: Trainer, name: str) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.folder / f"{name}.ckpt")
            self.steps[name] = trainer.global_step


@pytest.fixture(scope="module")
def saved(tiny_with_dropout: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fit, Saves]:
    folder = tmp_path_factory.mktemp("saved")
    saves = Saves(folder)
    return run(folder / "run", tiny_with_dropout, [saves], {"logger": Memory()}), saves


@pytest.fixture(scope="module")
def whole(tiny_with_dropout: str, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    return run(tmp_path_factory.mktemp("whole"), tiny_with_dropout)


def test_saving_does_not_disturb(whole: Fit, saved: tuple[Fit, Saves]) -> None:
    assert differing(whole.state, saved[0].state) == []


def test_everything_that_has_a_state_moved(whole: Fit) -> None:
    state = whole.state
    assert state["measured_scale"] > 0
    assert state["price_factor"] != 1
    assert 0 < state["lr"] < 1e-2
    assert whole.trainer.global_step == EPOCHS * MICRO_BATCHES // ACCUMULATE


def test_dropout_is_at_work(whole: Fit) -> None:
    policy, batch = whole.module.policy, whole.recorder.batches[0]
    torch.manual_seed(0)
    first = policy(batch).token_logps
    torch.manual_seed(1)
    assert not torch.equal(first, policy(batch).token_logps)


@pytest.mark.parametrize("moment", [f"{side}-{j}" for j in range(MICRO_BATCHES) for side in ("before", "after")])
def test_resumed_at_any_micro_batch(moment: str, whole: Fit, saved: tuple[Fit, Saves], tiny_with_dropout: str, root: Path) -> None:
    uninterrupted, memory = saved[0].trainer.logger, Memory()
    resumed = run(root, tiny_with_dropout, trainer={"logger": memory}, ckpt_path=saved[1].folder / f"{moment}.ckpt")
    assert differing(whole.state, resumed.state) == []
    assert isinstance(uninterrupted, Memory)
    assert memory.losses == uninterrupted.losses[saved[1].steps[moment] :], "plotted where they belong"
    assert resumed.trainer.global_step == whole.trainer.global_step
    assert resumed.recorder.losses == whole.recorder.losses[saved[1].steps[moment] :]
    assert len(resumed.recorder.rollouts) == 1, "the rollout under way came with the checkpoint, the third one is new"


def kept(folder: Path) -> ModelCheckpoint:
    """A checkpoint at every rollout's end."""
    return ModelCheckpoint(folder, save_last=True, save_top_k=-1, filename="{epoch}", enable_version_counter=False)


WITH_CHECKPOINTS: dict[str, Any] = {"enable_checkpointing": True}


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_resumed_at_the_end_of_a_rollout(stopped_after: int, whole: Fit, tiny_with_dropout: str, root: Path) -> None:
    run(root, tiny_with_dropout, [kept(root)], WITH_CHECKPOINTS | {"max_epochs": stopped_after})
    resumed = run(root, tiny_with_dropout, [kept(root)], WITH_CHECKPOINTS, ckpt_path=root / "last.ckpt")
    assert differing(whole.state, resumed.state) == []
    assert len(resumed.recorder.rollouts) == EPOCHS - stopped_after, "no rollout is drawn twice"
    assert resumed.recorder.metrics[-1] == pytest.approx(whole.recorder.metrics[-1])


class KillAt:
    """Kills the process, as far as a test can, when it is asked for the score of this prompt, counted over the run."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, prompt: Any, texts: Any) -> list[float]:
        self.left -= 1
        if self.left == 0:
            raise Killed
        return vowels(prompt, texts)


@pytest.mark.parametrize("number", [11, 12, 16, 17])  # in the second chunk of the second rollout, its last one, the third rollout
def test_killed_in_the_rollout_phase(number: int, whole: Fit, tiny_with_dropout: str, root: Path) -> None:
    killed, again = Scores(KillAt(number)), Scores()
    with pytest.raises(Killed):
        run(root, tiny_with_dropout, [kept(root)], WITH_CHECKPOINTS, annotator=killed)
    resumed = run(root, tiny_with_dropout, [kept(root)], WITH_CHECKPOINTS, annotator=again, ckpt_path=root / "last.ckpt")
    assert differing(whole.state, resumed.state) == []
    assert len(killed.asked) + len(again.asked) == EPOCHS * 8 + DATA["chunk_prompts"], "the chunk in flight is asked about again"
    assert resumed.recorder.metrics[-1]["labels/used"] == EPOCHS * 8 * 4, "and what was not answered is not counted"


@dataclass
class SavesItsEnd(Callback):
    """A last checkpoint wherever the run fails, as ``OnExceptionCheckpoint`` and a cluster's signal make one."""

    folder: Path

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        trainer.save_checkpoint(self.folder / "end.ckpt")


@dataclass
class FailsIn(Callback):
    """Fails in the backward pass of this micro-batch, counted over the run."""

    number: int

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.number:
            raise Killed


@pytest.mark.parametrize("number", [0, 3, 8, 11, 15])
def test_resumed_from_a_checkpoint_of_the_failure_in_training(number: int, whole: Fit, tiny_with_dropout: str, root: Path) -> None:
    with pytest.raises(Killed):
        run(root, tiny_with_dropout, [SavesItsEnd(root), FailsIn(number)])
    resumed = run(root, tiny_with_dropout, ckpt_path=root / "end.ckpt")
    assert differing(whole.state, resumed.state) == []
    assert resumed.trainer.global_step == whole.trainer.global_step


@pytest.mark.parametrize("number", [1, 11, 17])
def test_resumed_from_a_checkpoint_of_the_failure_in_the_rollout_phase(number: int, whole: Fit, tiny_with_dropout: str, root: Path) -> None:
    with pytest.raises(Killed):
        run(root, tiny_with_dropout, [SavesItsEnd(root)], annotator=Scores(KillAt(number)))
    resumed = run(root, tiny_with_dropout, ckpt_path=root / "end.ckpt")
    assert differing(whole.state, resumed.state) == []
    assert resumed.trainer.global_step == whole.trainer.global_step


def test_resumed_with_smaller_micro_batches(tiny: str, root: Path) -> None:
    """The way out of a run that ran out of memory: the place is kept in optimizer steps."""
    saves = Saves(root)
    plain = fit(root / "whole", tiny, callbacks=[saves], trainer={"accumulate_grad_batches": ACCUMULATE}, **DATA)
    smaller = DATA | {"micro_batch_prompts": 1}
    resumed = fit(root / "rest", tiny, trainer={"accumulate_grad_batches": 4}, ckpt_path=root / "after-5.ckpt", **smaller)
    assert resumed.recorder.losses == pytest.approx(plain.recorder.losses[saves.steps["after-5"] :], abs=1e-4)
    assert len(resumed.recorder.losses) == 1


def test_a_second_fit_with_the_same_data_samples_again(tiny: str, root: Path) -> None:
    first = fit(root / "one", tiny, trainer={"max_epochs": 1})
    second = fit(root / "two", tiny, data=first.data, module=make_dar(tiny), trainer={"max_epochs": 1})
    assert len(second.recorder.rollouts) == 1
    assert differing(first.state, second.state) == []


def test_a_checkpoint_loads_without_a_trainer(tiny: str) -> None:
    make_dar(tiny).on_load_checkpoint({"loops": {}})
