"""How much of a rollout its weights leave to learn from."""

import math
from typing import cast, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._logging import log_histogram
from lit_align.functional.advantages import has_spread
from lit_align.functional.distributed import global_mean, global_sum
from lit_align.types import Aligner, AlignmentBatch, Annotation, Diagnostics, RolloutCallback, Rollouts


@final
class WeightClipping(RolloutCallback):
    r"""Watches what few responses the policy is about to imitate; silent where the algorithm has no weights.

    Of the valid responses of a rollout, on all ranks:

    - ``weights/effective_sample_size``: :math:`(\sum |w|)^2 / (n \sum w^2)`, the share of them that does the work: 1 if all weights
      are equal, ``1/n`` if one response has it all. Of absolute values: a negative weight teaches too.
    - ``weights/largest_share``: :math:`\max |w| / \sum |w|`.
    - ``weights/mean``, ``weights/max``: of the weights as they are, signed.
    - ``reward/zero_spread``: among prompts with at least two valid scores, the share where all are equal: nothing to tell apart.

    Histograms, of the first rank: ``weights/log10`` of positive ``|w|``, and its two summands before any clipping,
    ``weights/log10_reference_part`` and ``weights/log10_advantage_part``, where the algorithm reports them.
    """

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        """Log the numbers with the rollout, and the histograms."""
        if batch.weights is None:
            return
        weights, valid = batch.weights.detach().float(), batch.valid  # [B, K]
        size = weights.abs().where(valid, 0.0)
        seen = torch.cat([weights.where(valid, -math.inf).flatten(), weights.new_tensor([-math.inf])])  # a rank may have no prompt
        here = torch.stack([seen.max(), torch.cat([size.flatten(), size.new_zeros(1)]).max()])
        highest, largest = cast(Tensor, module.all_gather(here)).view(-1, 2).amax(0).tolist()  # over all ranks
        relative = size / (largest or 1.0)  # squares of weights as they come could overflow
        compared = valid.sum(-1) > 1  # [B]
        flat_here = (compared & ~has_spread(batch.scores, valid)).sum()
        sums = torch.stack([relative.sum(), relative.square().sum(), valid.sum(), flat_here, compared.sum()])
        first, second, count, flat, prompts = global_sum(sums).tolist()
        metrics = {"reward/zero_spread": flat / prompts} if prompts else {}
        if count:
            metrics |= {"weights/mean": float(global_mean(weights, valid)), "weights/max": highest}
        if second:
            metrics |= {"weights/effective_sample_size": first**2 / (count * second), "weights/largest_share": 1 / first}
        cast(Aligner, module).log_rollout(metrics)

        log_histogram(trainer, "weights/log10", size[size > 0].log10(), trainer.current_epoch)
        for part in ("reference_part", "advantage_part"):
            if (logs := diagnostics.get(f"weights/{part}")) is not None:
                log_histogram(trainer, f"weights/log10_{part}", logs[valid] / math.log(10), trainer.current_epoch)
