"""REINFORCE leave-one-out. https://arxiv.org/abs/2402.14740"""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.parts import require_price
from lit_align.functional.advantages import comparable, leave_one_out
from lit_align.functional.logprobs import response_logps
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput


@final
class RLOO(AlignmentModule):
    r"""Policy gradient of a whole response, its siblings' mean the baseline, the divergence from the reference in the reward.

    .. math:: L = -A \log \pi_\theta(y|x), \qquad A_k = R_k - \frac{1}{K-1} \sum_{j \ne k} R_j, \qquad
        R = r - \beta \log \frac{\pi_t(y|x)}{\pi_{ref}(y|x)}

    One optimizer step per rollout. Its optimum is ``pi_ref exp(r / beta)``.

    Args:
        policy: the language model to train.
        beta: price of a nat of divergence from the reference, in units of reward; at 0 no reference is loaded.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``beta`` is negative.
    """

    def __init__(
        self,
        policy: Policy,
        beta: float = 0.03,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, anchor)
        require_price("beta", beta, zero=True)
        self.beta = beta

    @property
    def needs(self) -> Needs:
        """Siblings, samples of exactly this policy, and the reference where it has a price."""
        return Needs(reference=self.beta > 0, on_policy=True, responses=2, sampled=True)

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Advantages of a rollout, ``[B, K]``."""
        valid = comparable(batch.valid)
        rewards = batch.scores
        if self.beta:
            rewards = rewards - self.beta * (batch.sampling_response_logps - batch.reference_response_logps)
        return replace(batch, valid=valid, advantages=leave_one_out(rewards, valid)), {"reward/regularised": rewards}

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """``-A log pi(y|x)``, ``[B, K]``."""
        assert batch.advantages is not None
        return -batch.advantages * response_logps(output.token_logps, batch.loss_mask), {}
