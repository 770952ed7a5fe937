"""Supervised fine-tuning."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput


@final
class SFT(AlignmentModule):
    """Imitate every demonstration, token by token: every answer of score 1, of a pair the chosen one.

    The loss is the mean negative log-likelihood of the answer tokens of an optimizer step, over all ranks and micro-batches:
    a token counts the same whichever micro-batch it fell into.

    Args:
        policy: the language model to train.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule)

    @property
    def needs(self) -> Needs:
        """Nothing but the answers."""
        return Needs()

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Only answers of score 1 stay valid."""
        return replace(batch, valid=batch.valid & (batch.scores == 1)), {}

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """``-log pi(token)``, ``[B, K, T]``."""
        return -output.token_logps, {}
