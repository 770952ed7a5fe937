"""DAR's objective by its own gradient, without the regression: the baseline that tells what the regression adds."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.scales import AdvantageScale, ReferenceStd, measured
from lit_align.functional.advantages import comparable, leave_one_out
from lit_align.functional.logprobs import response_logps
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput, UserError


@final
class DARPolicyGradient(AlignmentModule):
    r"""Ascends what Theorem 4.1 maximises, with importance weights back to the policy that sampled.

    .. math:: J = E_{y \sim \pi_\theta}[A/s] - \alpha KL(\pi_\theta \| \pi_{ref}) - \beta KL(\pi_\theta \| \pi_t), \qquad
        \nabla J = E_{y \sim \pi_t}\Big[ \frac{\pi_\theta}{\pi_t} \Big( \frac{A}{s} - \alpha \log \frac{\pi_\theta}{\pi_{ref}}
        - \beta \log \frac{\pi_\theta}{\pi_t} - b \Big) \nabla \log \pi_\theta \Big]

    ``b`` is the siblings' mean of ``A/s - alpha log(pi_t / pi_ref)``. In the first optimizer step of a rollout ``beta`` has no effect,
    and the gradient is RLOO's.

    Args:
        policy: the language model to train.
        alpha: price of a nat of divergence from the reference, in units of ``scale``.
        beta: price of a nat of divergence from the policy that sampled.
        scale: what scores are divided by.
        max_ratio: ceiling of the importance weight ``pi_theta / pi_t`` of a response.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if a price is negative.
    """

    measured_scale: Tensor
    measured_version: Tensor

    def __init__(
        self,
        policy: Policy,
        alpha: float = 0.125,
        beta: float = 0.125,
        scale: AdvantageScale = ReferenceStd(),
        max_ratio: float = 10.0,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, anchor)
        self.register_buffer("measured_scale", torch.zeros(()))
        self.register_buffer("measured_version", torch.zeros((), dtype=torch.long))
        if alpha < 0 or beta < 0:
            raise UserError(f"alpha and beta are prices and can't be negative, got alpha = {alpha} and beta = {beta}.")
        self.alpha, self.beta, self.scale, self.max_ratio = alpha, beta, scale, max_ratio

    @property
    def needs(self) -> Needs:
        """The reference, and siblings for the baseline."""
        return Needs(reference=True, responses=2, sampled=True)

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """What a response is worth beyond its siblings, the reference's price taken off, ``[B, K]``."""
        divergence = batch.sampling_response_logps - batch.reference_response_logps  # [B, K]
        valid = comparable(batch.valid)
        scale = measured(self.scale, self.measured_scale, self.measured_version, batch, leave_one_out(batch.scores, valid), valid)  # [B]
        advantages = leave_one_out(batch.scores / scale.unsqueeze(-1) - self.alpha * divergence, valid)
        return replace(batch, valid=valid, advantages=advantages), {"kl/price": self.alpha * scale.mean()}

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """A loss whose gradient is that of ``-J``, ``[B, K]``."""
        assert batch.advantages is not None
        logps = response_logps(output.token_logps, batch.loss_mask)
        moved = (logps - batch.sampling_response_logps).detach()
        worth = batch.advantages - (self.alpha + self.beta) * moved  # log pi/pi_ref has moved by as much as log pi/pi_t
        ratio = moved.exp().clamp(max=self.max_ratio)
        return -ratio * worth * logps, {"ratio/clipped_fraction": (moved.exp() > self.max_ratio).float()}
