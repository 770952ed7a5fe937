"""Iterative Nash policy optimization. https://arxiv.org/abs/2407.00617"""

from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import OptimizerCallable, ScheduleCallable
from lit_align.algorithms.pairing import BestVersusWorst, Pairing
from lit_align.algorithms.preference import PreferenceModule
from lit_align.functional.preference import ipo_loss
from lit_align.types import AlignmentBatch, Needs, Policy, UserError


@final
class INPO(PreferenceModule):
    r"""No-regret self-play: each rollout is a step from the policy that sampled towards what it prefers, held by the reference.

    .. math:: L = \Big( \Delta_\theta - \frac{\tau}{\eta} \Delta_{ref} - \frac{\eta - \tau}{\eta} \Delta_t - \frac{1}{2\eta} \Big)^2, \qquad
        \Delta_p = \log p(y_w) - \log p(y_l)

    With A(y) = P(y beats pi_t) a fitted round is DAR's optimum at alpha = tau, beta = eta - tau; rounds end at the regularised Nash
    policy. At ``tau = eta`` it is IPO with ``beta = eta``.

    Args:
        policy: the language model to train.
        eta: price of a nat in both divergences together, in units of preference.
        tau: the reference's part of it, at most ``eta``.
        pairing: which responses are compared.
        label_smoothing: the chance that a label is wrong.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.
    """

    def __init__(
        self,
        policy: Policy,
        eta: float = 0.0075,
        tau: float = 0.0025,
        pairing: Pairing = BestVersusWorst(),
        label_smoothing: float = 0.0,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, pairing, label_smoothing, optimizer, lr_schedule, anchor)
        if not 0 <= tau <= eta or eta <= 0:
            raise UserError(f"INPO needs 0 <= tau <= eta and eta > 0, got tau = {tau} and eta = {eta}.")
        self.eta, self.tau = eta, tau

    @property
    def needs(self) -> Needs:
        """Pairs, the reference and the policy that sampled."""
        return Needs(reference=True, responses=2, sampled=True)

    def value(self, batch: AlignmentBatch, logps: Tensor) -> Tensor:
        """Above the mixture of reference and sampling policy, in nats, ``[B, K]``."""
        share = self.tau / self.eta
        return logps - share * batch.reference_response_logps - (1 - share) * batch.sampling_response_logps

    def pair_loss(self, margins: Tensor, labels: Tensor) -> Tensor:
        """See `ipo_loss`."""
        return ipo_loss(margins, beta=self.eta, labels=labels)
