"""Identity preference optimization, offline and online. https://arxiv.org/abs/2310.12036"""

from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import OptimizerCallable, ScheduleCallable
from lit_align.algorithms.pairing import BestVersusWorst, Pairing
from lit_align.algorithms.parts import require_price
from lit_align.algorithms.preference import PreferenceModule
from lit_align.functional.preference import ipo_loss
from lit_align.types import Policy


@final
class IPO(PreferenceModule):
    r"""The log-ratio should grow by a certain amount and no further.

    .. math:: L = (h - 1/(2\beta))^2, \qquad h = \log\frac{\pi_\theta}{\pi_{ref}}(y_w) - \log\frac{\pi_\theta}{\pi_{ref}}(y_l)

    Log-probs are summed over tokens: with means, as in other libraries, the target means something else for every length.

    Args:
        policy: the language model to train.
        beta: the margin aimed at is ``1 / (2 beta)`` nats.
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
        beta: float = 1.0,
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
        """See `ipo_loss`."""
        return ipo_loss(margins, beta=self.beta, labels=labels)
