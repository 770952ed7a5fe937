"""What every algorithm shares: the policy, its reference, one training step and one reduction."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_align.algorithms.anchors import Anchor, Initial, check_checkpoint
from lit_align.algorithms.heldout import prediction_rows, sample_metrics, unlabelled_batch
from lit_align.algorithms.reduction import counted, normaliser, reduced, scattered, widened
from lit_align.algorithms.resume import rewind
from lit_align.functional.distributed import global_mean, global_sum
from lit_align.functional.gradients import squared_norm_share
from lit_align.functional.logprobs import response_logps
from lit_align.models.moving import MovingWeights
from lit_align.models.reference import MovingReference
from lit_align.models.sharding import shard
from lit_align.types import (
    AlignmentBatch,
    Diagnostics,
    Needs,
    Policy,
    PolicyOutput,
    Reference,
    Samples,
    StepOutput,
    UserError,
)

OptimizerCallable = Callable[[Iterable[Parameter]], Optimizer]
ScheduleCallable = Callable[[Optimizer], LRScheduler]


class AlignmentModule(LightningModule, ABC):
    """Owns the policy and turns ``objective`` into optimizer steps; a subclass says what is worth imitating.

    Args:
        policy: the language model to train.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule from the optimizer; it advances once per optimizer step.
        anchor: which policy is the reference.
    """

    def __init__(
        self, policy: Policy, optimizer: OptimizerCallable, lr_schedule: ScheduleCallable | None, anchor: Anchor = Initial()
    ) -> None:
        super().__init__()
        self.policy, self._optimizer, self._lr_schedule = policy, optimizer, lr_schedule
        self.anchor = anchor
        self._reference: Reference | None = None
        self.reference_weights = MovingWeights(policy) if anchor.moves else None
        self._sampler_checked = False
        self._pending: dict[str, float] = {}  # rollout metrics, until the epoch starts
        self._sums: dict[str, Tensor] = {}  # of the optimizer step under way
        self.register_buffer("skipped_steps", torch.zeros((), dtype=torch.long))

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What must be computed for this algorithm."""

    @abstractmethod
    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Once per rollout, on this rank's rows, without gradient: advantages, weights, pairs, with global statistics."""

    @abstractmethod
    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """A loss for every response ``[B, K]``, for every token ``[B, K, T]`` or, where ``prepare`` made pairs, for every pair
        ``[B, K, K]``. The base class reduces it, once. Log-probs of responses that are not ``batch.used`` are 0."""

    @property
    def reference(self) -> Reference:
        """The policy that divergence is measured against: loaded when first asked for, or where ``anchor`` has moved it to."""
        if self._reference is None:
            weights = self.reference_weights
            self._reference = self._load_initial() if weights is None else MovingReference(self.policy, weights)
        return self._reference

    @final
    def initial_reference(self) -> Reference:
        """The policy as it was before training: the reference or, where that moves, loaded anew and not kept."""
        return self.reference if self.reference_weights is None else self._load_initial()

    @final
    @torch.no_grad()
    def prepare_rollout(self, batch: AlignmentBatch, needs: Needs, chunk_prompts: int) -> tuple[AlignmentBatch, Diagnostics]:
        """Reference log-probs where someone needs them, then the algorithm's own columns."""
        if self.reference_weights is not None:
            number = self.trainer.current_epoch
            self.reference_weights.advance(self.policy, number, self.anchor.share(number))
        if batch.sampling_logps is not None:
            batch = self._with_training_logps(batch, chunk_prompts)
        if needs.reference:
            rows = torch.arange(len(batch.scores), device=batch.scores.device).split(chunk_prompts)
            logps = [widened(self.reference.token_logps(part := batch.rows(r)), batch, part) for r in rows]
            batch = replace(batch, reference_logps=torch.cat(logps))
        batch, diagnostics = self.prepare(batch)
        self.log_rollout({name: global_mean(value, counted(value, batch)) for name, value in diagnostics.items()})
        return batch, diagnostics

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
    def training_step(self, batch: AlignmentBatch, batch_idx: int) -> StepOutput:
        """One micro-batch: the sum of its losses over the normaliser of the whole optimizer step."""
        if batch.dropout_seed is not None:
            torch.manual_seed(batch.dropout_seed)
        output = self._read(batch)
        losses, diagnostics = self.objective(batch, output)
        loss = reduced(losses, batch)
        self._account(loss, normaliser(losses, batch), diagnostics, batch)
        logps = response_logps(output.token_logps.detach(), batch.loss_mask)
        step = StepOutput(loss=loss, losses=losses.detach(), logps=logps, diagnostics=diagnostics)
        if batch.weights is not None:
            step["weights"] = batch.weights
        return step

    @final
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """After backward, before clipping. A step without a valid row, or not finite on any rank, is taken by nobody."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._sums["squared_norm"] = squared_norm_share(gradients).to(self._sums["bad"].device)
        names = sorted(self._sums)
        totals = dict(zip(names, global_sum(torch.stack([self._sums[name] for name in names])).tolist(), strict=True))
        self._sums = {}
        norm = math.sqrt(totals.pop("squared_norm"))
        if totals.pop("bad") or not math.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)  # without a gradient, optimizers leave weights and state untouched
            self.skipped_steps += 1
        shares = self.trainer.world_size * self.trainer.accumulate_grad_batches
        metrics = {name: value / shares for name, value in totals.items()} | {"train/skipped_steps": float(self.skipped_steps)}
        if gradients:  # DeepSpeed keeps them to itself
            metrics["train/gradient_norm"] = norm
        if (rate := optimizer.param_groups[0]["lr"]) is not None:  # Adafactor may choose its own
            metrics["train/learning_rate"] = float(rate)
        self.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)

    @final
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume after the last optimizer step. A checkpoint written between two steps has no gradients, so the micro-batches
        since the last one are given out again."""
        check_checkpoint(self.anchor, checkpoint, "reference_weights.")
        if self._trainer is not None and "loops" in checkpoint:
            rewind(checkpoint["loops"]["fit_loop"], self._trainer.accumulate_grad_batches)

    @final
    def validation_step(self, batch: Samples | AlignmentBatch, batch_idx: int) -> None:
        """Log ``val/*`` of held-out data."""
        self._log_evaluation("val", batch)

    @final
    def test_step(self, batch: Samples | AlignmentBatch, batch_idx: int) -> None:
        """Log ``test/*`` of held-out data."""
        self._log_evaluation("test", batch)

    @final
    def predict_step(self, batch: Samples | AlignmentBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One row per held-out prompt: prompt, responses, log-probs, and scores where there is an annotator."""
        if not isinstance(batch, Samples):
            raise UserError("predict writes sampled answers: use OnlineDataModule with eval_prompts.")
        return prediction_rows(batch)

    @final
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the trained parameters, and the schedule per optimizer step."""
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        if self._lr_schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._lr_schedule(optimizer), "interval": "step"}}

    @final
    def configure_model(self) -> None:
        """Under FSDP2 (Lightning's ModelParallelStrategy), shard the policy; no other strategy asks for anything."""
        if self.device_mesh is not None:
            shard(self.policy, self.device_mesh["data_parallel"])

    @final
    def setup(self, stage: str) -> None:
        """Refuse a precision whose gradient scaler can't skip a step."""
        if str(self.trainer.precision).startswith("16"):
            raise UserError(f"precision {self.trainer.precision} scales gradients and can't leave a step out; use bf16-mixed or 32-true.")

    def _load_initial(self) -> Reference:
        reference = self.policy.make_reference()
        self.trainer.precision_plugin.convert_module(reference.policy)
        return reference

    def _with_training_logps(self, batch: AlignmentBatch, chunk_prompts: int) -> AlignmentBatch:
        """Sampling log-probs in the precision that is trained in. In float32 the sampler's own are kept, after the first
        chunk of a process has shown that both see the same tokens at the same positions."""
        exact = self.trainer.precision == "32-true" and all(p.dtype == torch.float32 for p in self.policy.parameters())
        if exact and self._sampler_checked:
            return batch
        rows = torch.arange(len(batch.scores), device=batch.scores.device).split(chunk_prompts)
        logps = [widened(self.policy(part := batch.rows(r)).token_logps, batch, part) for r in (rows[:1] if exact else rows)]
        if not exact:
            return replace(batch, sampling_logps=torch.cat(logps))
        gaps = (logps[0] - batch.sampling_logps[rows[0]]).abs()  # pyright: ignore[reportOptionalSubscript]
        self._compare_with_sampler(gaps[batch.response_mask[rows[0]]])
        self._sampler_checked = True
        return batch

    def _compare_with_sampler(self, gaps: Tensor) -> None:
        """Tell a wrong mask or position from rounding: ``gaps`` are nats between two readings of the same tokens."""
        gap, mean = float(gaps.max()), float(gaps.mean())
        if gap > 1e-2:
            raise UserError(
                f"The sampler and the training forward disagree by {gap:.3g} nats on a token of the same response. They should agree to "
                f"1e-4 in float32. {type(self.policy).__name__} reads masks or positions differently with a cache: its numbers can't be "
                "trusted, so the run stops here."
            )
        if mean > 1e-4:
            warnings.warn(
                f"The sampler and the training forward differ by {mean:.1e} nats per token, more than the 1e-4 that rounding in float32 "
                "explains; log-ratios are off by as much. On a GPU, TF32 matrix products may be the cause "
                "(torch.set_float32_matmul_precision('highest')).",
                stacklevel=2,
            )

    def _read(self, batch: AlignmentBatch) -> PolicyOutput:
        """What the policy says of the responses that the objective depends on: of K = 8, best against worst reads 2."""
        used = batch.used
        if used.all():
            return self.policy(batch)
        rows, columns = used.nonzero(as_tuple=True)
        if not len(rows):  # sharded policies need every rank in every forward
            rows = columns = rows.new_zeros(1)
        single = batch.responses(rows, columns)
        output: PolicyOutput = self.policy(single.rows(torch.arange(len(rows), device=rows.device)))
        return PolicyOutput(token_logps=scattered(output.token_logps, rows, columns, batch))

    def _account(self, loss: Tensor, count: Tensor, diagnostics: Diagnostics, batch: AlignmentBatch) -> None:
        """Add a micro-batch to the sums of its optimizer step; under accumulation Lightning would log the last one only."""
        bad = ~loss.detach().isfinite() | (count == 0)
        entries = {"bad": bad.float(), "train/loss": loss.detach().float()}
        for name, value in diagnostics.items():
            entries[name] = reduced(value.detach().float(), batch) if value.dim() else value.detach().float()
        self._sums = {name: self._sums[name] + value if name in self._sums else value for name, value in entries.items()}

    def _log_evaluation(self, stage: str, batch: Samples | AlignmentBatch) -> None:
        if isinstance(batch, Samples):
            metrics = sample_metrics(batch)
            if self.needs.reference:
                scored = self._with_training_logps(unlabelled_batch(batch.rollouts), len(batch.rollouts.prompts))
                reference = response_logps(self.reference.token_logps(scored), scored.loss_mask)
                metrics["kl_reference"] = scored.sampling_response_logps - reference, torch.ones_like(scored.finished)
        else:
            if self.needs.reference:
                batch = replace(batch, reference_logps=self.reference.token_logps(batch))
            batch, _ = self.prepare(batch)
            losses, diagnostics = self.objective(batch, self._read(batch))
            named = {"loss": losses} | {name.rpartition("/")[2]: value for name, value in diagnostics.items()}
            metrics = {name: (value, counted(value, batch)) for name, value in named.items()}
        for name, (values, which) in metrics.items():  # on every rank, also where nothing counts
            size = int(which.sum())
            mean = values.where(which, 0.0).sum() / max(size, 1)
            # Lightning averages the sizes of the ranks to an integer: only a multiple of their number is not rounded.
            self.log(f"{stage}/{name}", mean, sync_dist=True, on_epoch=True, batch_size=size * self.trainer.world_size)
