"""Direct Advantage Regression. https://arxiv.org/abs/2504.14177"""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.baselines import smallest_group
from lit_align.algorithms.parts import Baseline
from lit_align.algorithms.scales import AdvantageScale, BatchStd, measured
from lit_align.algorithms.weighting import ClippedWeights, KLTarget, Weighting
from lit_align.functional.advantages import comparable, group_centred
from lit_align.functional.distributed import global_mean
from lit_align.functional.logprobs import response_logps
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput, UserError


@final
class DAR(AlignmentModule):
    r"""Imitate your own samples, each as often as its advantage deserves.

    .. math:: L = - E_{y \sim \pi_t}\, w(x, y) \log \pi_\theta(y|x), \qquad
        w = (\pi_{ref}/\pi_t)^{\alpha/(\alpha+\beta)}\, e^{A/(s(\alpha+\beta))}

    The defaults are the published setting. ``configs/algorithm/dar_anchored.yaml`` is the one that holds what it gains: why, in
    docs/algorithms/dar.md. Source: https://arxiv.org/abs/2504.14177.

    Args:
        policy: the language model to train.
        alpha: price of a nat of divergence from the reference, in units of ``scale``.
        beta: price of a nat of divergence from the policy that sampled.
        weighting: how advantages become weights.
        baseline: what a score is compared with: a function from scores and valid ``[B, K]`` to advantages.
        scale: what advantages are divided by.
        kl_target: moves alpha and beta together until the policy stays at a divergence.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``alpha`` or ``beta`` is negative, or both are 0.
    """

    measured_scale: Tensor
    measured_version: Tensor
    price_factor: Tensor

    def __init__(
        self,
        policy: Policy,
        alpha: float = 0.005,
        beta: float = 0.045,
        weighting: Weighting = ClippedWeights(20.0),
        baseline: Baseline = group_centred,
        scale: AdvantageScale = BatchStd(),
        kl_target: KLTarget | None = None,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, anchor)
        if alpha < 0 or beta < 0 or alpha + beta <= 0:
            raise UserError(f"alpha + beta must be positive and neither negative, got alpha = {alpha} and beta = {beta}.")
        self.alpha, self.beta, self.kl_target = alpha, beta, kl_target
        self.weighting, self.baseline, self.scale = weighting, baseline, scale
        self.register_buffer("measured_scale", torch.zeros(()))
        self.register_buffer("measured_version", torch.zeros((), dtype=torch.long))
        self.register_buffer("price_factor", torch.ones(()))

    @property
    def needs(self) -> Needs:
        """The reference, and siblings where baseline, scale or weighting compares them."""
        group = max(self.weighting.smallest_group, self.scale.smallest_group, smallest_group(self.baseline))
        return Needs(reference=True, on_policy=self.weighting.on_policy, responses=group, sampled=True)

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Advantages and weights of a rollout, ``[B, K]``."""
        valid = comparable(batch.valid) if self.needs.responses > 1 else batch.valid  # [B, K]
        divergence = batch.sampling_response_logps - batch.reference_response_logps  # [B, K]
        if self.kl_target is not None:
            self.price_factor.copy_(self.kl_target.moved(self.price_factor, global_mean(divergence, valid)))
        alpha, beta = self.alpha * float(self.price_factor), self.beta * float(self.price_factor)

        advantages = self.baseline(batch.scores, valid)  # [B, K]
        scale = measured(self.scale, self.measured_scale, self.measured_version, batch, advantages, valid)  # [B]
        advantages = advantages / scale.unsqueeze(-1)
        batch = replace(batch, valid=valid, advantages=advantages)
        weights, diagnostics = self.weighting.weigh(batch, advantages, alpha=alpha, beta=beta)
        diagnostics |= {
            "kl/price": alpha * scale.mean(),
            "weights/reference_part": -alpha * divergence / (alpha + beta),
            "weights/advantage_part": advantages / (alpha + beta),
        }
        return replace(batch, weights=weights), diagnostics

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """``-w log pi(y|x)``, ``[B, K]``."""
        assert batch.weights is not None
        return -batch.weights * response_logps(output.token_logps, batch.loss_mask), {}
