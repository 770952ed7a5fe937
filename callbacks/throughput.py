"""How fast a run samples and learns."""

from time import perf_counter
from typing import Any, cast, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._logging import log_now
from lit_align.types import Aligner, AlignmentBatch, Annotation, Diagnostics, RolloutCallback, Rollouts


@final
class Throughput(RolloutCallback):
    """Measures where the time goes, in tokens per second of all ranks together; the slowest rank's clock counts.

    - ``throughput/rollout_tokens_per_second``, once per rollout: response tokens of what is trained on over the seconds of the rollout
      phase: sampling, annotation, log-probs, ``prepare``.
    - ``throughput/annotation_share``: the part of these seconds in which there was nothing to do but wait for an annotator, of the rank
      where it is largest.
    - ``throughput/train_tokens_per_second``, at the epoch's end: prompt and response tokens, padding apart, that optimizer steps
      read, over the seconds of these steps. What happens between two micro-batches (an evaluation, a checkpoint) is not counted.
    """

    def __init__(self) -> None:
        self._began = self._last = self._annotating = 0.0
        self._annotated = 0  # responses
        self._batch_began = self._training = 0.0
        self._read: Tensor | int = 0  # tokens of this epoch

    def on_rollout_start(self, trainer: Trainer, module: LightningModule, rollout: int, total: int) -> None:
        """Start the clock."""
        self._began = self._last = perf_counter()
        self._annotating, self._annotated = 0.0, 0

    def on_rollout_progress(self, trainer: Trainer, module: LightningModule, sampled: int, annotated: int) -> None:
        """Say whose the time since the last call was."""
        now = perf_counter()
        if annotated > self._annotated:
            self._annotating += now - self._last
        self._last, self._annotated = now, annotated

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        """Stop it."""
        seconds = perf_counter() - self._began
        rate, share = _over_ranks(module, rollouts.response_mask.sum(), seconds, self._annotating / max(seconds, 1e-9))
        cast(Aligner, module).log_rollout({"throughput/rollout_tokens_per_second": rate, "throughput/annotation_share": share})

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing read so far."""
        self._read, self._training = 0, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: AlignmentBatch, batch_idx: int) -> None:
        """Start the clock of a micro-batch."""
        self._batch_began = perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: AlignmentBatch, batch_idx: int) -> None:
        """Count what it read: of the responses that were used, a prompt once for each."""
        self._training += perf_counter() - self._batch_began
        lengths = batch.prompt_mask.sum(-1, keepdim=True) + batch.response_mask.sum(-1)  # [B, K]
        self._read = self._read + lengths.where(batch.used, 0).sum()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's rate, at the rollout that was trained on."""
        if isinstance(self._read, Tensor):
            rate, _ = _over_ranks(pl_module, self._read, self._training, 0.0)
            log_now(trainer, {"throughput/train_tokens_per_second": rate}, trainer.current_epoch)


def _over_ranks(module: LightningModule, tokens: Tensor, seconds: float, share: float) -> tuple[float, float]:
    """Everyone's tokens over the longest time, and the largest share."""
    here = torch.tensor([float(tokens), seconds, share], device=module.device)
    ranks = cast(Tensor, module.all_gather(here)).view(-1, 3)  # [ranks, 3]
    longest, largest = ranks[:, 1:].amax(0).tolist()
    return float(ranks[:, 0].sum()) / max(longest, 1e-9), largest
