"""Simple preference optimization with a reference-free reward. https://arxiv.org/abs/2405.14734"""

from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.base import OptimizerCallable, ScheduleCallable
from lit_align.algorithms.pairing import BestVersusWorst, Pairing
from lit_align.algorithms.parts import require_price
from lit_align.algorithms.preference import PreferenceModule
from lit_align.functional.preference import simpo_loss
from lit_align.types import AlignmentBatch, Needs, Policy


@final
class SimPO(PreferenceModule):
    r"""The preferred response should be likelier per token, by a margin; there is no reference.

    .. math:: L = -\log \sigma\Big( \frac{\beta}{|y_w|} \log \pi_\theta(y_w) - \frac{\beta}{|y_l|} \log \pi_\theta(y_l) - \gamma \Big)

    One of two objectives here that average over tokens: a long response is not less likely because it is long.

    Args:
        policy: the language model to train.
        beta: weight of the mean log-prob per token.
        gamma: the margin, in units of log-odds.
        pairing: which responses are compared.
        label_smoothing: the chance that a label is wrong.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``beta`` is not positive.
    """

    def __init__(
        self,
        policy: Policy,
        beta: float = 2.0,
        gamma: float = 1.0,
        pairing: Pairing = BestVersusWorst(),
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, pairing, label_smoothing, optimizer, lr_schedule)
        require_price("beta", beta)
        self.beta, self.gamma = beta, gamma

    @property
    def needs(self) -> Needs:
        """Somebody to be compared with."""
        return Needs(responses=2)

    def value(self, batch: AlignmentBatch, logps: Tensor) -> Tensor:
        """The mean log-prob per token, ``[B, K]``."""
        return logps / batch.loss_mask.sum(-1).clamp(min=1)

    def pair_loss(self, margins: Tensor, labels: Tensor) -> Tensor:
        """See `simpo_loss`."""
        return simpo_loss(margins, beta=self.beta, gamma=self.gamma, labels=labels)
