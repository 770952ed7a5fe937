"""A fit in one call, and what happened in it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lit_align.algorithms import AlignmentModule
from lit_align.data import AlignmentDataModule
from lit_align.types import AlignmentBatch, Annotation, Annotator, Diagnostics, Prompt, RolloutCallback, Rollouts
from tests.tiny import make_dar, make_data, make_trainer, vowels


class Killed(BaseException):
    """What no ``except Exception`` catches."""


@final
class Scores(Annotator):
    """Scores of a function, quietly invalid where they are NaN; every prompt that was asked about is in ``asked``."""

    def __init__(self, function: Callable[[Prompt, Sequence[str]], list[float]] = vowels) -> None:
        self.function = function
        self.asked: list[int] = []

    def annotate(self, rollouts: Rollouts) -> Annotation:
        self.asked += [prompt.id for prompt in rollouts.prompts]
        rows = [self.function(prompt, texts) for prompt, texts in zip(rollouts.prompts, rollouts.texts, strict=True)]
        scores = torch.tensor(rows)
        return Annotation(scores=scores.nan_to_num(), valid=~scores.isnan())


def patchy(prompt: Prompt, texts: Sequence[str]) -> list[float]:
    """`vowels`, but some responses have no score, and one prompt a single one: a group that can't be compared."""
    scores = vowels(prompt, texts)
    lone = prompt.content == "jiji"
    return [math.nan if (k if lone else (len(prompt.content) + k) % 3 == 0) else score for k, score in enumerate(scores)]


@dataclass
class Recorder(RolloutCallback):
    """What a fit sampled, prepared, trained on and logged."""

    rollouts: list[Rollouts] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    batches: list[AlignmentBatch] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)  # of every micro-batch
    losses: list[float] = field(default_factory=list)  # of every optimizer step
    metrics: list[dict[str, float]] = field(default_factory=list)  # at every rollout's end

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        self.rollouts.append(rollouts)
        self.annotations.append(annotation)
        self.batches.append(batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ids.append(batch.prompt_ids.tolist())
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def steps(self, accumulate: int) -> list[set[int]]:
        """Prompt ids of every optimizer step of this rank."""
        return [{i for part in self.ids[start : start + accumulate] for i in part} for start in range(0, len(self.ids), accumulate)]


@dataclass
class Poison(Callback):
    """An infinite weight in these micro-batches, counted over the run, on these ranks."""

    at: tuple[int, ...]
    ranks: tuple[int, ...] = (0, 1)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx in self.at and trainer.global_rank in self.ranks:
            batch.weights[0, 0] = math.inf


@dataclass
class PlantedGradient(Callback):
    """One entry of the gradient of this optimizer step, counted over the run, on these ranks."""

    at: int
    value: float = math.inf
    ranks: tuple[int, ...] = (0, 1)
    norms: list[float] = field(default_factory=list)  # of every step, before anything is planted

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        self.norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        if trainer.global_step == self.at and trainer.global_rank in self.ranks:
            gradients[0].view(-1)[0] = self.value


@dataclass
class Weights(Callback):
    """The whole state after every optimizer step."""

    seen: list[dict[str, Tensor]] = field(default_factory=list)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(state(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.seen.append(state(trainer))


@final
class Memory(Logger):
    """Every loss with the step that it is plotted at."""

    name = "memory"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[tuple[int | None, float]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            self.losses.append((step, metrics["train/loss"]))

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        pass


@dataclass
class Fit:
    trainer: Trainer
    module: AlignmentModule
    data: AlignmentDataModule
    recorder: Recorder

    @property
    def state(self) -> dict[str, Tensor]:
        return state(self.trainer)


def fit(
    root: Path,
    model: str,
    *,
    module: AlignmentModule | None = None,
    data: AlignmentDataModule | None = None,
    callbacks: Sequence[Callback] = (),
    ckpt_path: str | Path | None = None,
    trainer: dict[str, Any] | None = None,
    **data_options: Any,
) -> Fit:
    """Train in ``root``, by default DAR on the tiny online data, and say what happened. ``root`` is made if missing."""
    recorder = Recorder()
    made = make_trainer(root, callbacks=[recorder, *callbacks], **(trainer or {}))
    result = Fit(made, module or make_dar(model), data or make_data(**data_options), recorder)
    made.fit(result.module, result.data, ckpt_path=ckpt_path)
    return result


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of weights, buffers, optimizer state and learning rates."""
    found = {name: value.detach().clone() for name, value in trainer.lightning_module.state_dict().items()}
    for number, moments in trainer.optimizers[0].state_dict()["state"].items():
        found |= {f"optimizer.{number}.{name}": value.clone() for name, value in moments.items() if isinstance(value, Tensor)}
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    return found | {"lr": torch.tensor(rates, dtype=torch.float64)}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of what is not the same to the bit, or only in one."""
    return [name for name in one.keys() | other.keys() if name not in one or name not in other or not torch.equal(one[name], other[name])]
