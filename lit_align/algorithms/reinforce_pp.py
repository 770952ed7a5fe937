"""REINFORCE++. https://arxiv.org/abs/2501.03262"""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.baselines import smallest_group
from lit_align.algorithms.parts import Baseline, Surrogate, require_price
from lit_align.algorithms.surrogates import mean_per_response, token_mean
from lit_align.functional.advantages import comparable
from lit_align.functional.distributed import global_mean, global_std
from lit_align.functional.policy_gradient import clipped_surrogate, kl_to_go
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput


@final
class ReinforcePP(AlignmentModule):
    r"""Policy gradient without a critic: the divergence still to come in every token's return, returns standardised over the rollout.

    .. math:: A_t = \frac{G_t - \bar G}{s_G}, \qquad G_t = r - \beta \sum_{i \ge t} \log \frac{\pi_t(y_i)}{\pi_{ref}(y_i)}

    Mean and deviation are over all tokens of the rollout on all ranks. The loss is PPO's clipped one, a mean over tokens.

    Args:
        policy: the language model to train.
        beta: price of a nat of divergence from the reference, in units of reward; at 0 no reference is loaded.
        baseline: taken off the scores first: ``group_centred`` is REINFORCE++-baseline; None is the original.
        whiten: standardise the returns; without it they are only scores minus divergence.
        surrogate: the loss of a token.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``beta`` is negative.
    """

    def __init__(
        self,
        policy: Policy,
        beta: float = 0.01,
        baseline: Baseline | None = None,
        whiten: bool = True,
        surrogate: Surrogate = clipped_surrogate,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, anchor)
        require_price("beta", beta, zero=True)
        self.beta, self.baseline, self.whiten, self.surrogate = beta, baseline, whiten, surrogate

    @property
    def needs(self) -> Needs:
        """The reference where it has a price, siblings where the baseline compares them."""
        return Needs(reference=self.beta > 0, responses=1 if self.baseline is None else smallest_group(self.baseline), sampled=True)

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Advantages of every token of a rollout, ``[B, K, T]``."""
        valid = comparable(batch.valid) if self.needs.responses > 1 else batch.valid  # [B, K]
        scores = batch.scores if self.baseline is None else self.baseline(batch.scores, valid)
        mask = batch.loss_mask & valid.unsqueeze(-1)
        returns = scores.unsqueeze(-1).expand(mask.shape)
        if self.beta:
            assert batch.sampling_logps is not None
            returns = returns - self.beta * kl_to_go(batch.above_reference(batch.sampling_logps), batch.loss_mask)
        if self.whiten:
            returns = (returns - global_mean(returns, mask)) / global_std(returns, mask).clamp(min=1e-4)
        return replace(batch, valid=valid, advantages=returns.where(mask, 0.0)), {}

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """Losses of tokens, ``[B, K, T]``."""
        assert batch.advantages is not None
        losses, clipped = self.surrogate(batch.above_sampling(output.token_logps), batch.advantages, batch.loss_mask)
        return token_mean(losses, batch.loss_mask), {"ratio/clipped_fraction": mean_per_response(clipped.float(), batch.loss_mask)}
