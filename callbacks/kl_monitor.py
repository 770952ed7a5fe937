"""How far the policy has gone, and where that ends."""

import math
from typing import Any, cast, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks._logging import log_now
from lit_align.functional.distributed import global_mean, global_sum
from lit_align.types import Aligner, AlignmentBatch, Annotation, Diagnostics, Needs, RolloutCallback, Rollouts, Source, UserError


@final
class KLMonitor(RolloutCallback):
    r"""Measures the policy's divergence in nats per response, and ends the run before it trains further than ``ceiling``.

    Over the valid responses of all ranks, log-probs summed over response tokens:

    - ``kl/reference``, once per rollout: the mean of :math:`\log \pi_t(y|x) - \log \pi_{ref}(y|x)`, an unbiased estimate of
      :math:`KL(\pi_t \| \pi_{ref})` that can be negative. Where an ``anchor`` moves the reference, it is measured from where that is
      now: it falls whenever the reference moves, and is no distance from the policy before training.
    - ``kl/reference_standard_error``: its standard error, prompts being the independent draws, not the responses to one prompt.
    - ``kl/sampling``, at the epoch's end: the mean over its micro-batches of :math:`\log \pi_t - \log \pi_\theta`, an estimate
      of how far training has moved from the policy that sampled, over the responses that were trained on (a chosen few for
      algorithms that pair or pick). 0 with one optimizer step per rollout; after a resume in the middle of an epoch, of the
      rest of it.

    Args:
        ceiling: in nats, on ``kl/reference``. A rollout above it is not trained on: the run ends there, and the weights, like
            the last checkpoint, are those of the rollout before.

    Raises:
        UserError: if the ceiling is not positive, or if the Trainer's ``min_epochs`` or ``min_steps`` would train past it.
    """

    needs = Needs(reference=True)

    def __init__(self, ceiling: float = math.inf) -> None:
        if not ceiling > 0:
            raise UserError(f"KLMonitor: ceiling should be a positive number of nats, got {ceiling}. Leave it out for no ceiling.")
        self.ceiling = ceiling
        self._kl: float | None = None  # of the rollout that is about to be trained on
        self._moved: Tensor | None = None  # sum of log pi_t - log pi_theta, and of how many responses, of this epoch and rank

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer that would not stop when told to."""
        if stage == "fit" and self.ceiling < math.inf and (trainer.min_epochs or trainer.min_steps):
            raise UserError(
                f"KLMonitor: ceiling {self.ceiling:g} should end the run whenever it is passed, but min_epochs = {trainer.min_epochs} and "
                f"min_steps = {trainer.min_steps} make the Trainer go on. Leave them out of the trainer, or the ceiling out of KLMonitor."
            )

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        """Measure against the reference."""
        divergence = batch.sampling_response_logps - batch.reference_response_logps  # [B, K]
        unasked = (batch.sources == Source.FRESH_SELF).unsqueeze(-1)
        valid = annotation.valid | unasked  # an algorithm may train on fewer, and choose them by their scores
        kl = global_mean(divergence, valid)
        off = (divergence - kl).where(valid, 0.0).sum(-1)  # [B]
        sums = torch.stack([off.square().sum(), valid.sum().float(), valid.any(-1).sum().float()])
        squares, responses, prompts = global_sum(sums).tolist()
        if not responses:  # nothing is known of it
            return
        self._kl = float(kl)
        metrics = {"kl/reference": self._kl}
        if prompts > 1:
            metrics["kl/reference_standard_error"] = math.sqrt(squares * prompts / (prompts - 1)) / responses
        cast(Aligner, module).log_rollout(metrics)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here, before the first micro-batch and with this rollout's numbers logged, if they are over the ceiling."""
        kl, self._kl, self._moved = self._kl, None, None
        if kl is not None and self.ceiling < math.inf and not kl <= self.ceiling:  # NaN is over it, too
            trainer.should_stop = True
            rank_zero_info(
                f"KLMonitor: kl/reference is {kl:.4g} nats in rollout {trainer.current_epoch}, over the ceiling of {self.ceiling:g}, so "
                "the run ends without training on it. The last checkpoint is from before. To go on, raise the ceiling; to stay closer, "
                "make divergence dearer (for DAR: raise alpha, or set kl_target) or lower the learning rate."
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: AlignmentBatch, batch_idx: int) -> None:
        """Add up how far this micro-batch has moved."""
        if batch.sampling_logps is not None:
            drawn = batch.used & batch.sampled.unsqueeze(-1)
            moved = (batch.sampling_response_logps - outputs["logps"]).where(drawn, 0.0).sum()
            here = torch.stack([moved, drawn.sum().to(moved.dtype)])
            self._moved = here if self._moved is None else self._moved + here

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``kl/sampling``, at the rollout that was trained on."""
        if self._moved is not None:
            moved, responses = global_sum(self._moved).tolist()
            if responses:
                log_now(trainer, {"kl/sampling": moved / responses}, trainer.current_epoch)
