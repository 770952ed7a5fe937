"""What every algorithm that trains a policy shares: the policy, its reference, and one training step."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial, check_checkpoint
from lit_align.algorithms.exact_kl import read_with_kl
from lit_align.algorithms.heldout import prediction_rows, sample_metrics, unlabelled_batch
from lit_align.algorithms.mismatch import corrected, mismatch, warning, with_engine_factors
from lit_align.algorithms.reduction import counted, in_chunks, widened
from lit_align.algorithms.stepping import OptimizerCallable, ScheduleCallable, SteppingModule
from lit_align.functional.distributed import global_mean
from lit_align.functional.logprobs import response_logps
from lit_align.models.moving import MovingWeights
from lit_align.models.reference import MovingReference
from lit_align.types import (
    AlignmentBatch,
    Critic,
    Diagnostics,
    Needs,
    Policy,
    PolicyOutput,
    Reference,
    Samples,
    StepOutput,
    UserError,
)


class AlignmentModule(SteppingModule):
    """Owns the policy and turns ``objective`` into optimizer steps; a subclass says what is worth imitating.

    Args:
        policy: the language model to train.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule from the optimizer; it advances once per optimizer step.
        anchor: which policy is the reference.
        critic: what gives the values where `needs` asks for them; None for the policy's own value head.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerCallable,
        lr_schedule: ScheduleCallable | None,
        anchor: Anchor = Initial(),
        critic: Critic | None = None,
    ) -> None:
        super().__init__(optimizer, lr_schedule)
        self.policy, self.anchor, self.critic = policy, anchor, critic
        self._reference: Reference | None = None
        self.reference_weights = MovingWeights(policy) if anchor.moves else None
        self._sampler_checked = self._mismatch_said = False

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
    def text_model(self) -> Policy:
        """The policy."""
        return self.policy

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
        """Reference log-probs and values where someone needs them, then the algorithm's own columns."""
        if self.reference_weights is not None:
            number = self.trainer.current_epoch
            self.reference_weights.advance(self.policy, number, self.anchor.share(number))
        if batch.sampling_logps is not None:
            batch = self._with_engine_factors(self._with_training_logps(batch, chunk_prompts))
        if needs.reference:
            batch = replace(batch, reference_logps=in_chunks(self.reference.token_logps, batch, chunk_prompts))
        if needs.values:
            batch = replace(batch, values=in_chunks(self._values, batch, chunk_prompts))
        batch, diagnostics = self.prepare(batch)
        self.log_rollout({name: global_mean(value, counted(value, batch)) for name, value in diagnostics.items()})
        return batch, diagnostics

    @final
    def training_step(self, batch: AlignmentBatch, batch_idx: int) -> StepOutput:
        """One micro-batch: the sum of its losses over the normaliser of the whole optimizer step."""
        if batch.dropout_seed is not None:
            torch.manual_seed(batch.dropout_seed)
        output = self._read(batch)
        losses, diagnostics = self.objective(batch, output)
        losses = corrected(losses, batch)
        loss = self.step_loss(losses, diagnostics, batch)
        logps = response_logps(output.token_logps.detach(), batch.loss_mask)
        step = StepOutput(loss=loss, losses=losses.detach(), logps=logps, diagnostics=diagnostics)
        if batch.weights is not None:
            step["weights"] = batch.weights
        return step

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
    def on_fit_start(self) -> None:
        """Choose how forwards are laid out, before the first of them."""
        with self.trainer.precision_plugin.forward_context():
            self.policy.choose_layouts()

    @final
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep that choice, and how the policy is sampled from: others round differently."""
        checkpoint["layouts"], checkpoint["decoding"] = self.policy.layouts, self.policy.decoding

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """See `anchors.check_checkpoint`; and go on in the layouts of the run that wrote it, and in its way of sampling, which is tried
        before it is taken. An evaluation, which may have settings that no layout was tried with, reads rows."""
        check_checkpoint(self.anchor, checkpoint, "reference_weights.")
        self.policy.decoding = checkpoint.get("decoding") or self.policy.decoding
        saved = tuple(checkpoint.get("layouts", ()))
        fits = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING  # a module may be loaded without a Trainer
        exact = not self.policy.layouts or set(saved) <= set(self.policy.layouts)  # chosen before the checkpoint is read, or after
        if saved and fits and exact:
            self.policy.layouts = saved

    def _load_initial(self) -> Reference:
        reference = self.policy.make_reference()
        self.trainer.precision_plugin.convert_module(reference.policy)
        return reference

    def _with_training_logps(self, batch: AlignmentBatch, chunk_prompts: int) -> AlignmentBatch:
        """Sampling log-probs of the policy in the precision that is trained in. In float32 those of its own sampler are kept, after the
        first chunk of a process has shown that both see the same tokens at the same positions."""
        exact = self.trainer.precision == "32-true" and all(p.dtype == torch.float32 for p in self.policy.parameters())
        exact = exact and batch.engine_logps is None
        sampled = batch.sampled.nonzero().squeeze(-1)
        if not len(sampled) or (exact and self._sampler_checked):
            return batch
        if not exact:
            drawn = batch.rows(sampled)
            values = widened(in_chunks(self._logps, drawn, chunk_prompts), batch, drawn)
            return replace(batch, sampling_logps=values.new_zeros(batch.response_mask.shape).index_copy(0, sampled, values))
        first = batch.rows(sampled[:chunk_prompts])
        assert first.sampling_logps is not None
        self._compare_with_sampler((self._logps(first) - first.sampling_logps).abs()[first.response_mask])
        self._sampler_checked = True
        return batch

    def _with_engine_factors(self, batch: AlignmentBatch) -> AlignmentBatch:
        """See `mismatch.with_engine_factors`; what was measured is logged, and a large mismatch said in words."""
        batch = with_engine_factors(batch)
        measured = mismatch(batch)
        self.log_rollout(measured)
        if (words := warning(measured)) and not self._mismatch_said:
            self._mismatch_said = True
            rank_zero_warn(words)
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

    def _logps(self, batch: AlignmentBatch) -> Tensor:
        """Of the policy as it is, ``[B, K, T]``."""
        return self.policy(batch).token_logps

    def _values(self, batch: AlignmentBatch) -> Tensor:
        """Of the critic as it is, or of the policy's value head, in eval mode, ``[B, K, T]``."""
        if self.critic is None:
            return self.policy(batch).values
        training = self.critic.training
        try:
            return self.critic.eval()(batch)
        finally:
            self.critic.train(training)

    def _read(self, batch: AlignmentBatch) -> PolicyOutput:
        """What the policy says of the responses that the objective depends on: of K = 8, best against worst reads 2."""
        used = batch.used
        return self._forward(batch if used.all() else replace(batch, response_mask=batch.response_mask & used.unsqueeze(-1)))

    def _forward(self, batch: AlignmentBatch) -> PolicyOutput:
        """One training forward of all that `needs` asks for."""
        needs = self.needs
        if needs.kl:
            output = read_with_kl(self.policy, self.reference, batch, needs.kl, needs.entropy)
        else:
            output = self.policy(batch, entropy=needs.entropy)
        return output if self.critic is None else replace(output, values=self.critic(batch))

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
        self.log_means(stage, metrics)
