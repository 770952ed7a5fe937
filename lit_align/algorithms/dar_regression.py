"""DAR without exponential weights: its optimum as the solution of a least-squares problem."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.scales import AdvantageScale, ReferenceStd, measured
from lit_align.functional.advantages import comparable, group_centred
from lit_align.functional.dar import dar_regression_loss, dar_regression_targets
from lit_align.functional.logprobs import response_logps
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput, UserError


@final
class DARRegression(AlignmentModule):
    r"""Bring every log-prob to where Theorem 4.1 has it, up to what all responses to a prompt have in common.

    .. math:: L = \frac{1}{2(K-1)} \sum_k (z_k - \bar z)^2, \qquad
        z = \log \pi_\theta - \frac{\alpha \log \pi_{ref} + \beta \log \pi_t + A/s}{\alpha + \beta}

    The normaliser Z(x) is the group's mean, so nothing is exponentiated or clipped, and a bad response is pushed down. At
    ``pi_theta = pi_t`` its gradient is RLOO's, with the price alpha in the reward, divided by ``alpha + beta``.

    Args:
        policy: the language model to train.
        alpha: price of a nat of divergence from the reference, in units of ``scale``.
        beta: price of a nat of divergence from the policy that sampled.
        scale: what advantages are divided by.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``alpha`` or ``beta`` is negative, or both are 0.
    """

    measured_scale: Tensor
    measured_version: Tensor

    def __init__(
        self,
        policy: Policy,
        alpha: float = 0.125,
        beta: float = 0.125,
        scale: AdvantageScale = ReferenceStd(),
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, anchor)
        if min(alpha, beta) < 0 or alpha + beta == 0:
            raise UserError(f"DARRegression needs prices alpha, beta >= 0 that are not both 0, got {alpha} and {beta}.")
        self.alpha, self.beta, self.scale = alpha, beta, scale
        self.register_buffer("measured_scale", torch.zeros(()))
        self.register_buffer("measured_version", torch.zeros((), dtype=torch.long))

    @property
    def needs(self) -> Needs:
        """The reference, and siblings whose mean stands for Z(x)."""
        return Needs(reference=True, responses=2, sampled=True)

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Where log-probs should be, ``[B, K]``."""
        valid = comparable(batch.valid)
        sampling, reference = batch.sampling_response_logps, batch.reference_response_logps
        advantages = group_centred(batch.scores, valid)
        scale = measured(self.scale, self.measured_scale, self.measured_version, batch, advantages, valid)  # [B]
        advantages = advantages / scale.unsqueeze(-1)
        targets = dar_regression_targets(advantages, reference, sampling, alpha=self.alpha, beta=self.beta)
        return replace(batch, valid=valid, advantages=advantages, targets=targets), {"kl/price": self.alpha * scale.mean()}

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """K times a response's part of the sum, ``[B, K]``, so that their mean is the loss of a prompt."""
        assert batch.targets is not None
        logps = response_logps(output.token_logps, batch.loss_mask)
        return dar_regression_loss(logps, batch.targets, batch.valid), {}
