"""What a mean hides: how reward, length and divergence are spread over the responses of a rollout."""

from typing import final

from lightning.pytorch import LightningModule, Trainer

from callbacks._logging import log_histogram
from lit_align.types import AlignmentBatch, Annotation, Diagnostics, RolloutCallback, Rollouts, UserError


@final
class Histograms(RolloutCallback):
    """Plots one histogram per rollout, over the responses of the first rank, each of

    - ``reward/distribution``: the annotator's valid scores, before any ``missing_eos_penalty``.
    - ``response/length_distribution``: tokens of every response, EOS included.
    - ``kl/reference_distribution``: log pi_t - log pi_ref in nats, summed over tokens, of the valid responses; only where the
      algorithm or another callback asks for the reference.

    Those of the weights are `WeightClipping`'s.

    Args:
        every_n_rollouts: how often.

    Raises:
        UserError: if it is not positive.
    """

    def __init__(self, every_n_rollouts: int = 1) -> None:
        if every_n_rollouts < 1:
            raise UserError(f"Histograms counts from 1, got every_n_rollouts = {every_n_rollouts}.")
        self.every_n_rollouts = every_n_rollouts

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        """Plot them."""
        rollout = trainer.current_epoch
        if rollout % self.every_n_rollouts:
            return
        log_histogram(trainer, "reward/distribution", annotation.scores[annotation.valid], rollout)
        log_histogram(trainer, "response/length_distribution", rollouts.response_mask.sum(-1).flatten(), rollout)
        if batch.reference_logps is not None:
            divergence = batch.sampling_response_logps - batch.reference_response_logps  # [B, K]
            log_histogram(trainer, "kl/reference_distribution", divergence[batch.valid], rollout)
