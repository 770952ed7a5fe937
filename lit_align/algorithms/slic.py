"""Sequence likelihood calibration, offline and online. https://arxiv.org/abs/2305.10425"""

from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import OptimizerCallable, ScheduleCallable
from lit_align.algorithms.pairing import BestVersusWorst, Pairing
from lit_align.algorithms.parts import require_price
from lit_align.algorithms.preference import PreferenceModule
from lit_align.functional.preference import slic_loss
from lit_align.types import Policy


@final
class SLiC(PreferenceModule):
    r"""The preferred response should lead by a margin; beyond it nothing pulls.

    .. math:: L = \max(0, 1 - \beta h), \qquad h = \log\frac{\pi_\theta}{\pi_{ref}}(y_w) - \log\frac{\pi_\theta}{\pi_{ref}}(y_l)

    The form of OAIF, https://arxiv.org/abs/2402.04792: log-ratios to the reference instead of log-probs, and no cross-entropy term.

    Args:
        policy: the language model to train.
        beta: a pair is settled at a margin of ``1 / beta`` nats.
        pairing: which responses are compared.
        label_smoothing: the chance that a label is wrong.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``beta`` is not positive.
    """

    def __init__(
        self,
        policy: Policy,
        beta: float = 0.002,
        pairing: Pairing = BestVersusWorst(),
        label_smoothing: float = 0.0,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, pairing, label_smoothing, optimizer, lr_schedule, anchor)
        require_price("beta", beta)
        self.beta = beta

    def pair_loss(self, margins: Tensor, labels: Tensor) -> Tensor:
        """See `slic_loss`."""
        return slic_loss(margins, beta=self.beta, labels=labels)
