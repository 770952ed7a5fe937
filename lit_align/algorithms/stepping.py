"""How every module here takes optimizer steps, whatever it trains."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_align.algorithms.reduction import normaliser, reduced
from lit_align.algorithms.resume import rewind
from lit_align.functional.distributed import global_sum
from lit_align.functional.gradients import squared_norm_share
from lit_align.models.sharding import shard
from lit_align.types import AlignmentBatch, Diagnostics, TextModel, UserError

Companion = tuple[nn.Module, Mapping[str, Any]]
"""What is trained beside the text model, and the settings in which its group of the optimizer differs."""

OptimizerCallable = Callable[[Iterable[Parameter]], Optimizer]
ScheduleCallable = Callable[[Optimizer], LRScheduler]


class SteppingModule(LightningModule, ABC):
    """One optimizer step: the mean over all that counts in its micro-batches on all ranks, taken by every rank or by none.

    A subclass says what it trains and reduces the losses of a micro-batch by `step_loss`.

    Args:
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule from the optimizer; it advances once per optimizer step.
    """

    def __init__(self, optimizer: OptimizerCallable, lr_schedule: ScheduleCallable | None) -> None:
        super().__init__()
        self._optimizer, self._lr_schedule = optimizer, lr_schedule
        self._pending: dict[str, float] = {}  # rollout metrics, until the epoch starts
        self._sums: dict[str, Tensor] = {}  # of the optimizer step under way
        self.register_buffer("skipped_steps", torch.zeros((), dtype=torch.long))

    @property
    @abstractmethod
    def text_model(self) -> TextModel:
        """What is trained and saved, and reads the data."""

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """A subclass's own reasons to refuse a checkpoint."""

    def takes_step(self, measured: Mapping[str, float]) -> bool:
        """Whether to take the optimizer step whose gradient is ready. Asked on every rank, with what all of them measured in it (under the
        names of the logs), so the answer is the same; what a subclass remembers of it is a buffer."""
        return True

    @property
    def companion(self) -> Companion | None:
        """A module that is trained beside the text model."""
        return None

    @final
    def log_rollout(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Keep these, equal on all ranks, until the epoch starts; they are plotted over the rollout's number."""
        self._pending |= {name: float(value) for name, value in metrics.items()}

    @final
    def on_train_epoch_start(self) -> None:
        """Hand the rollout's metrics to every logger, and to callbacks that monitor them."""
        if self._pending:
            for logger in self.trainer.loggers:
                logger.log_metrics(self._pending, step=self.trainer.current_epoch)
            self.log_dict(self._pending, logger=False, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
            self._pending = {}

    @final
    def step_loss(self, losses: Tensor, diagnostics: Diagnostics, batch: AlignmentBatch) -> Tensor:
        """The share of a micro-batch in the loss of its optimizer step, ``[]`` with gradient; it and the diagnostics are kept for the
        logs. ``losses`` is what `reduced` takes."""
        loss = reduced(losses, batch)
        bad = ~loss.detach().isfinite() | (normaliser(losses, batch) == 0)
        entries = {"bad": bad.float(), "train/loss": loss.detach().float()}
        for name, value in diagnostics.items():
            entries[name] = reduced(value.detach().float(), batch) if value.dim() else value.detach().float()
        # Under accumulation Lightning would log the last micro-batch only.
        self._sums = {name: self._sums[name] + value if name in self._sums else value for name, value in entries.items()}
        return loss

    @final
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """After backward, before clipping. A step without a valid row, or not finite on any rank, is taken by nobody."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._sums["squared_norm"] = squared_norm_share(gradients).to(self._sums["bad"].device)
        names = sorted(self._sums)
        totals = dict(zip(names, global_sum(torch.stack([self._sums[name] for name in names])).tolist(), strict=True))
        self._sums = {}
        norm = math.sqrt(totals.pop("squared_norm"))
        bad = bool(totals.pop("bad")) or not math.isfinite(norm)
        self.skipped_steps += bad
        shares = self.trainer.world_size * self.trainer.accumulate_grad_batches
        metrics = {name: value / shares for name, value in totals.items()}
        if bad or not self.takes_step(metrics):
            optimizer.zero_grad(set_to_none=True)  # without a gradient, optimizers leave weights and state untouched
        if gradients:  # DeepSpeed keeps them to itself
            metrics["train/gradient_norm"] = norm
        if (rate := optimizer.param_groups[0]["lr"]) is not None:  # Adafactor may choose its own
            metrics["train/learning_rate"] = float(rate)
        self.log_dict(metrics | {"train/skipped_steps": float(self.skipped_steps)}, on_step=True, on_epoch=False, batch_size=1)

    @final
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume after the last optimizer step. A checkpoint written between two steps has no gradients, so the micro-batches
        since the last one are given out again."""
        self.check_checkpoint(checkpoint)
        if self._trainer is not None and "loops" in checkpoint:
            rewind(checkpoint["loops"]["fit_loop"], self._trainer.accumulate_grad_batches)

    @final
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the trained parameters, a companion's in a group of its own, and the schedule per optimizer step."""
        optimizer = self._grouped_optimizer()
        if self._lr_schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._lr_schedule(optimizer), "interval": "step"}}

    @final
    def configure_model(self) -> None:
        """Under FSDP2 (Lightning's ModelParallelStrategy), shard the model; no other strategy asks for anything."""
        if self.device_mesh is not None:
            for model in (self.text_model, *([] if self.companion is None else self.companion[:1])):
                shard(model, self.device_mesh["data_parallel"])

    @final
    def setup(self, stage: str) -> None:
        """Refuse a precision whose gradient scaler can't skip a step."""
        if str(self.trainer.precision).startswith("16"):
            raise UserError(f"precision {self.trainer.precision} scales gradients and can't leave a step out; use bf16-mixed or 32-true.")

    def _grouped_optimizer(self) -> Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        if self.companion is None:
            return self._optimizer(trained)
        module, settings = self.companion
        own = list(module.parameters())
        others = [p for p in trained if all(p is not q for q in own)]
        groups: Any = [{"params": others}, {"params": own, **settings}]
        optimizer = self._optimizer(groups)
        if unknown := sorted(settings.keys() - optimizer.defaults.keys()):  # torch would keep them and read them nowhere
            raise UserError(
                f"{type(optimizer).__name__} knows no {', '.join(unknown)}: the settings of the critic's group should be among "
                f"{', '.join(sorted(optimizer.defaults))}."
            )
        return optimizer

    @final
    def log_means(self, stage: str, metrics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Log ``stage/name`` of an evaluation: the mean of values over where bool tensors of their shape say that they count. Every
        rank calls this as often, also where nothing counts."""
        for name, (values, which) in metrics.items():
            size = int(which.sum())
            mean = values.where(which, 0.0).sum() / max(size, 1)
            # Lightning averages the sizes of the ranks to an integer: only a multiple of their number is not rounded.
            self.log(f"{stage}/{name}", mean, sync_dist=True, on_epoch=True, batch_size=size * self.trainer.world_size)
