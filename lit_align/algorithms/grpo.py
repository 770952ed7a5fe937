"""Group relative policy optimization, and what became of it. https://arxiv.org/abs/2402.03300"""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.parts import Baseline, Normaliser, Surrogate, require_price
from lit_align.algorithms.surrogates import OverlongPenalty, mean_per_response
from lit_align.functional.advantages import comparable, group_standardised
from lit_align.functional.divergences import kl_k3
from lit_align.functional.policy_gradient import clipped_surrogate
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput


@final
class GRPO(AlignmentModule):
    r"""Policy gradient with the group as baseline, ratios clipped, and the divergence from the reference in the loss.

    .. math:: L_t = \ell(\rho_t, A) + \beta \big( \pi_{ref}/\pi_\theta - 1 - \log \pi_{ref}/\pi_\theta \big)_t, \qquad
        \rho_t = \pi_\theta(y_t) / \pi_t(y_t)

    What its descendants changed are arguments: the files ``grpo``, ``dr_grpo``, ``dapo``, ``gspo`` and ``cispo`` of
    ``configs/algorithm`` are this class.

    Args:
        policy: the language model to train.
        advantage: from scores and valid ``[B, K]`` to advantages.
        surrogate: the loss of a token, from log-ratios, advantages and mask ``[B, K, T]``.
        normaliser: how the losses of tokens become those whose mean is minimised.
        beta: price of a nat of the k3 estimate of ``KL(pi || pi_ref)``; at 0 no reference is loaded.
        overlong: taken off the scores of long responses.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``beta`` is negative.
    """

    def __init__(
        self,
        policy: Policy,
        advantage: Baseline = group_standardised,
        surrogate: Surrogate = clipped_surrogate,
        normaliser: Normaliser = mean_per_response,
        beta: float = 0.04,
        overlong: OverlongPenalty | None = None,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, anchor)
        require_price("beta", beta, zero=True)
        self.advantage, self.surrogate, self.normaliser = advantage, surrogate, normaliser
        self.beta, self.overlong = beta, overlong

    @property
    def needs(self) -> Needs:
        """Siblings, and the reference where it has a price."""
        return Needs(reference=self.beta > 0, responses=2, sampled=True)

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Advantages of a rollout, ``[B, K]``."""
        valid = comparable(batch.valid)
        scores = batch.scores
        if self.overlong is not None:
            scores = scores + self.overlong(batch.response_mask.sum(-1))
        advantages = self.advantage(scores, valid)
        return replace(batch, valid=valid, advantages=advantages), {"advantages/zero": (advantages == 0).float()}

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """Losses of responses ``[B, K]`` or tokens ``[B, K, T]``, as the normaliser has it."""
        assert batch.advantages is not None
        mask = batch.loss_mask
        losses, clipped = self.surrogate(batch.above_sampling(output.token_logps), batch.advantages.unsqueeze(-1), mask)
        if self.beta:
            divergence = batch.above_reference(output.token_logps)
            losses = losses + self.beta * kl_k3(divergence, torch.zeros_like(divergence))
        return self.normaliser(losses, mask), {"ratio/clipped_fraction": mean_per_response(clipped.float(), mask)}
