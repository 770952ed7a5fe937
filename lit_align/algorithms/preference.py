"""What losses on pairs of responses share, offline and online."""

from abc import abstractmethod
from dataclasses import replace
from typing import final

from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.pairing import Pairing
from lit_align.functional.logprobs import response_logps
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput, UserError


class PreferenceModule(AlignmentModule):
    """Pairs the responses to a prompt, values every response, and trains on differences of value.

    A subclass says what a difference costs (`pair_loss`) and, where that is not its log-ratio to the reference, what a response is
    worth (`value`). The loss is the mean over the pairs of an optimizer step.

    Args:
        policy: the language model to train.
        pairing: which responses are compared.
        label_smoothing: the chance that a label is wrong, from 0 to below 1/2.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.
        anchor: which policy is the reference.

    Raises:
        UserError: if ``label_smoothing`` is out of its range.
    """

    def __init__(
        self,
        policy: Policy,
        pairing: Pairing,
        label_smoothing: float,
        optimizer: OptimizerCallable,
        lr_schedule: ScheduleCallable | None,
        anchor: Anchor = Initial(),
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, anchor)
        if not 0 <= label_smoothing < 0.5:
            raise UserError(f"label_smoothing is the chance that a label is wrong, at least 0 and below 0.5, got {label_smoothing}.")
        self.pairing, self.label_smoothing = pairing, label_smoothing

    @abstractmethod
    def pair_loss(self, margins: Tensor, labels: Tensor) -> Tensor:
        """What the difference of two values ``[B, K, K]`` costs, with P(the first wins) ``[B, K, K]``."""

    def value(self, batch: AlignmentBatch, logps: Tensor) -> Tensor:
        """What each response is worth, ``[B, K]``, from its log-prob ``[B, K]`` in nats: the log-ratio to the reference."""
        return logps - batch.reference_response_logps

    def extra_loss(self, batch: AlignmentBatch, logps: Tensor) -> Tensor | None:
        """Added to every pair that this response wins, ``[B, K]``; None adds nothing."""
        return None

    @property
    def needs(self) -> Needs:
        """The reference, and somebody to be compared with."""
        return Needs(reference=True, responses=2)

    @final
    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Pairs of a rollout, ``[B, K, K]``."""
        pairs = self.pairing.pairs(batch)
        labels = pairs * (1 - self.label_smoothing) + (1 - pairs) * self.label_smoothing
        return replace(batch, pairs=labels), {"pairs/per_prompt": (~pairs.isnan()).sum((-1, -2)).float()}

    @final
    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """The loss of every pair, ``[B, K, K]``; not meaningful where there is none."""
        assert batch.pairs is not None
        logps = response_logps(output.token_logps, batch.loss_mask)  # [B, K]
        values = self.value(batch, logps)
        margins = values.unsqueeze(-1) - values.unsqueeze(-2)  # [B, K, K]
        losses = self.pair_loss(margins, batch.pairs.nan_to_num(1.0))  # a NaN would reach the gradient of its neighbours
        extra = self.extra_loss(batch, logps)
        if extra is not None:
            losses = losses + extra.unsqueeze(-1)
        shown = margins.detach()
        return losses, {"pairs/margin": shown, "pairs/accuracy": (shown > 0).float()}
