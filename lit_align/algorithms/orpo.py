"""Odds ratio preference optimization. https://arxiv.org/abs/2403.07691"""

from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.base import OptimizerCallable, ScheduleCallable
from lit_align.algorithms.pairing import BestVersusWorst, Pairing
from lit_align.algorithms.parts import require_price
from lit_align.algorithms.preference import PreferenceModule
from lit_align.functional.preference import dpo_loss, log_odds
from lit_align.types import AlignmentBatch, Needs, Policy


@final
class ORPO(PreferenceModule):
    r"""Imitate the preferred response, and make its odds larger than the other's; there is no reference.

    .. math:: L = -\frac{1}{|y_w|}\log \pi_\theta(y_w) - \lambda \log \sigma\Big( \log\frac{odds(y_w)}{odds(y_l)} \Big), \qquad
        odds = \frac{p}{1 - p}, \quad \log p = \frac{1}{|y|} \log \pi_\theta(y)

    One of two objectives here that average over tokens.

    Args:
        policy: the language model to train.
        odds: weight of the odds ratio, the paper's lambda.
        pairing: which responses are compared.
        label_smoothing: the chance that a label is wrong.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``odds`` is negative.
    """

    def __init__(
        self,
        policy: Policy,
        odds: float = 0.1,
        pairing: Pairing = BestVersusWorst(),
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, pairing, label_smoothing, optimizer, lr_schedule)
        require_price("odds", odds, zero=True)
        self.odds = odds

    @property
    def needs(self) -> Needs:
        """A loser to each winner."""
        return Needs(responses=2)

    def value(self, batch: AlignmentBatch, logps: Tensor) -> Tensor:
        """Log odds of the mean token, ``[B, K]``."""
        return log_odds(logps / batch.loss_mask.sum(-1).clamp(min=1))

    def extra_loss(self, batch: AlignmentBatch, logps: Tensor) -> Tensor:
        """The winner's mean negative log-likelihood per token, ``[B, K]``."""
        return -logps / batch.loss_mask.sum(-1).clamp(min=1)

    def pair_loss(self, margins: Tensor, labels: Tensor) -> Tensor:
        """The odds ratio's part."""
        return self.odds * dpo_loss(margins, beta=1.0, labels=labels)
