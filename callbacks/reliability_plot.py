"""Whether a reward model is as sure as it is right."""

from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks._logging import log_image
from lit_align.evaluation.drawing import reliability_diagram
from lit_align.functional import global_sum
from lit_align.types import UserError


@final
class ReliabilityPlot(Callback):
    """Draws, after every evaluation of a `RewardModel` while it is trained, how often it was right about held-out pairs against how
    sure it was: ``val/reliability``, over all ranks. On the diagonal it is calibrated, below it too sure.

    Args:
        bins: of the winner's probability, between 1/2 and 1.

    Raises:
        UserError: if there is none.
    """

    def __init__(self, bins: int = 10) -> None:
        if bins < 1:
            raise UserError(f"ReliabilityPlot needs at least one bin, got bins = {bins}.")
        self.bins = bins
        self._sums: Tensor | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._sums = torch.zeros(3, self.bins, dtype=torch.float64)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count pairs, add up how sure and how right the model was of them."""
        if isinstance(outputs, dict) and "margins" in outputs and self._sums is not None:
            self._sums += binned(outputs["margins"].cpu(), self.bins)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, where there was a pair."""
        assert self._sums is not None
        count, sure, right = global_sum(self._sums.float().to(pl_module.device)).cpu()
        if count.sum() and not trainer.sanity_checking:
            log_image(trainer, "val/reliability", reliability_diagram(count, sure, right), trainer.current_epoch)


def binned(margins: Tensor, bins: int) -> Tensor:
    """Of pairs with these margins, winner minus loser, ``[N]``: how many are in each bin of the model's confidence, the sum of that
    confidence, and how many it got right, ``[3, bins]`` in float64."""
    sure = margins.double().abs().sigmoid()
    which = ((sure - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    rows = torch.stack([torch.ones_like(sure), sure, (margins > 0).double()])
    return torch.zeros(3, bins, dtype=torch.float64).index_add(1, which, rows)
