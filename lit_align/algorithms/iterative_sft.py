"""Supervised fine-tuning on the policy's own best samples: RAFT, best-of-n, filtered SFT, ReST, expert iteration."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.baselines import smallest_group
from lit_align.algorithms.parts import Selection
from lit_align.functional.advantages import has_spread, require_siblings
from lit_align.functional.logprobs import response_logps
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput


def best_of_group(scores: Tensor, valid: Tensor) -> Tensor:
    """The best valid response to each prompt, of equal ones the first; ``[B, K]`` to bool ``[B, K]``.

    A prompt whose valid responses all score the same, or that has only one, teaches nothing and is left out.

    Raises:
        ValueError: at K = 1, where nothing is better than anything.

    >>> best_of_group(torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0]]), torch.ones(2, 3, dtype=torch.bool)).tolist()
    [[False, True, False], [False, False, False]]
    """
    require_siblings(scores, "best_of_group", "Above(threshold)")
    best = scores.where(valid, -torch.inf).argmax(-1, keepdim=True)
    return torch.zeros_like(valid).scatter(-1, best, has_spread(scores, valid).unsqueeze(-1))


@final
@dataclass(frozen=True)
class Above:
    """Every valid response whose score is at least a threshold: filtered SFT; a rising one over runs is ReST.

    Args:
        threshold: in units of reward.
    """

    threshold: float

    def __call__(self, scores: Tensor, valid: Tensor) -> Tensor:
        """Bool ``[B, K]``."""
        return valid & (scores >= self.threshold)


@final
class IterativeSFT(AlignmentModule):
    r"""Imitate the responses that were selected; the mean over them of :math:`-\log \pi_\theta(y|x)`.

    With ``best_of_group`` it is DAR with weights normalised inside the group, at ``alpha + beta -> 0``.

    Args:
        policy: the language model to train.
        select: which responses to imitate: ``best_of_group``, ``Above(threshold)``, or a function of your own.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.
    """

    def __init__(
        self,
        policy: Policy,
        select: Selection = best_of_group,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule)
        self.select = select

    @property
    def needs(self) -> Needs:
        """Siblings, where the selection compares them."""
        return Needs(responses=smallest_group(self.select))

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Only what was selected stays valid."""
        chosen = self.select(batch.scores, batch.valid)
        return replace(batch, valid=chosen), {"selection/per_prompt": chosen.sum(-1).float()}

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """``-log pi(y|x)``, ``[B, K]``."""
        return -response_logps(output.token_logps, batch.loss_mask), {}
