"""Kahneman-Tversky optimization on samples of the policy. https://arxiv.org/abs/2402.01306"""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.parts import require_price
from lit_align.functional.distributed import global_mean
from lit_align.functional.logprobs import response_logps
from lit_align.functional.preference import kto_loss
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput


@final
class KTO(AlignmentModule):
    r"""Good responses should gain on the reference point, bad ones lose; each is judged alone, so K = 1 will do.

    .. math:: L = \lambda_y \big( 1 - \sigma(\pm \beta (\rho - z)) \big), \qquad \rho = \log \frac{\pi_\theta(y|x)}{\pi_{ref}(y|x)}, \qquad
        z = \max(0, \overline{\log \pi_t - \log \pi_{ref}})

    The paper estimates z from mismatched pairs; here the responses are the policy's own, and their mean log-ratio, over all ranks
    and once per rollout, is an unbiased estimate of what z stands for.

    Args:
        policy: the language model to train.
        beta: how fast value saturates, per nat.
        threshold: a score above it is good, in units of reward.
        good_weight, bad_weight: the paper's lambda of good and bad responses.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``beta`` is not positive.
    """

    def __init__(
        self,
        policy: Policy,
        beta: float = 0.1,
        threshold: float = 0.5,
        good_weight: float = 1.0,
        bad_weight: float = 1.0,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, anchor)
        require_price("beta", beta)
        self.beta, self.threshold, self.good_weight, self.bad_weight = beta, threshold, good_weight, bad_weight

    @property
    def needs(self) -> Needs:
        """The reference."""
        return Needs(reference=True, sampled=True)

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """What log-probs are compared with: the reference's, and the reference point above it, ``[B, K]``."""
        point = global_mean(batch.sampling_response_logps - batch.reference_response_logps, batch.valid).clamp(min=0)
        good = (batch.scores > self.threshold).float()
        return replace(batch, targets=batch.reference_response_logps + point), {"kl/reference_point": point, "reward/good": good}

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """The loss of every response, ``[B, K]``."""
        assert batch.targets is not None
        good = batch.scores > self.threshold
        gained = response_logps(output.token_logps, batch.loss_mask) - batch.targets
        losses = kto_loss(gained, beta=self.beta, reference_point=0.0, good=good)
        return torch.where(good, self.good_weight * losses, self.bad_weight * losses), {}
