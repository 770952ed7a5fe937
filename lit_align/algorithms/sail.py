"""Bilevel online alignment. https://arxiv.org/abs/2406.15567"""

import math
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.parts import require_price
from lit_align.functional.logprobs import full_precision, response_logps
from lit_align.functional.pairs import all_pairs_from_preferences, all_pairs_from_scores, same_tokens
from lit_align.functional.preference import dpo_loss
from lit_align.functional.sail import answer_law_loss, label_law_loss, leave_row_out, own_labels
from lit_align.types import AlignmentBatch, Diagnostics, Needs, Policy, PolicyOutput, Source


@final
class SAIL(AlignmentModule):
    r"""DPO that knows that the policy wrote the answers, or drew the labels: it also makes pairs that it gets wrong less likely.

    With :math:`\ell = -\log\sigma(\beta h)` of a pair, ``h`` the log-ratio to the reference of its winner minus that of its loser, the
    loss is

    .. math:: L = \ell + c\,(\ell - b)^{sg} \big( \log\pi_\theta(y_1) + \log\pi_\theta(y_2) \big) - \tfrac{d}{2} \ell^2

    with the second term for fresh answers, the third for labels of the policy's own; at weight 1 its expected gradient is that of
    the expected :math:`\ell`, the dependence of answers and labels on the policy included. Which row is what, `Source` says; rows
    of a data module that does not say so are fixed, or sampled and annotated. Fresh rows take one optimizer step per rollout.

    Args:
        policy: the language model to train.
        beta: price of divergence from the reference, in units of log-odds per nat.
        relabel_weight: d of the data's answers that the policy labels.
        self_weight: c and d of fresh answers that the policy labels.
        annotated_weight: c of fresh answers that the annotator labels.
        reference_kl: price of a nat of ``KL(pi_ref || pi_theta)``, exact at every token and summed over a response; the mean of the two
            responses is added to the loss of their pair. At 0 it is not computed.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``beta`` is not positive, or another number negative.
    """

    def __init__(
        self,
        policy: Policy,
        beta: float = 0.1,
        relabel_weight: float = 0.2,
        self_weight: float = 0.2,
        annotated_weight: float = 0.3,
        reference_kl: float = 0.0,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.RMSprop(parameters, lr=1e-5),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, anchor)
        require_price("beta", beta)
        require_price("relabel_weight", relabel_weight, zero=True)
        require_price("self_weight", self_weight, zero=True)
        require_price("annotated_weight", annotated_weight, zero=True)
        require_price("reference_kl", reference_kl, zero=True)
        self.beta, self.reference_kl = beta, reference_kl
        self.answer_weights = {Source.FRESH_SELF: self_weight, Source.FRESH_ANNOTATED: annotated_weight}
        self.label_weights = {Source.RELABEL: relabel_weight, Source.FRESH_SELF: self_weight}

    @property
    def needs(self) -> Needs:
        """The reference, somebody to be compared with, and samples of this very policy where their law has a weight."""
        exact = any(self.answer_weights.values())
        return Needs(reference=True, responses=2, on_policy=exact, self_labels=True, kl="reference_policy" if self.reference_kl else "")

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Pairs of a rollout ``[B, K, K]``, and what the losses of fresh ones are measured from, ``[B]``.

        Two fresh answers of the same tokens are a pair where they have a label: the law of the answers has them too.
        """
        fresh = batch.sampled.view(-1, 1, 1)
        told = all_pairs_from_scores(batch.scores, batch.valid)
        if batch.preferences is not None:
            told = all_pairs_from_preferences(batch.preferences, batch.valid)
        told = told & (fresh | ~same_tokens(batch.response_tokens, batch.response_mask))
        every = (batch.valid.unsqueeze(-1) & batch.valid.unsqueeze(-2)).triu(1)
        chosen = every.where((batch.sources == Source.FRESH_SELF).view(-1, 1, 1), told)
        pairs = torch.ones_like(chosen, dtype=full_precision(batch.scores).dtype).where(chosen, math.nan)
        batch = replace(batch, pairs=pairs)
        if batch.sampling_logps is not None:
            losses, _ = self._losses(batch, batch.sampling_response_logps)
            batch = replace(batch, baselines=leave_row_out(losses, chosen & fresh))
        return batch, {"pairs/per_prompt": chosen.sum((-1, -2)).float()}

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """The loss of every pair, ``[B, K, K]``; not meaningful where there is none."""
        logps = response_logps(output.token_logps, batch.loss_mask)  # [B, K]
        plain, margins = self._losses(batch, logps)  # [B, K, K]
        losses = plain + _by_source(self.label_weights, batch) * label_law_loss(plain)
        if batch.baselines is not None:
            both = logps.unsqueeze(-1) + logps.unsqueeze(-2)
            law = answer_law_loss(plain, both, batch.baselines.view(-1, 1, 1))
            losses = losses + _by_source(self.answer_weights, batch) * law
        shown = margins.detach()
        diagnostics = {"pairs/margin": shown, "pairs/accuracy": (shown > 0).float()}
        if output.kl is not None:
            kl = response_logps(output.kl, batch.loss_mask)
            mean = (kl.unsqueeze(-1) + kl.unsqueeze(-2)) / 2
            losses, diagnostics["kl/from_reference"] = losses + self.reference_kl * mean, mean.detach()
        return losses, diagnostics

    def _losses(self, batch: AlignmentBatch, logps: Tensor) -> tuple[Tensor, Tensor]:
        """``-log sigma(beta h)`` of every two and ``h`` in nats, ``[B, K, K]``; where labels are the policy's, it draws them now."""
        values = logps - batch.reference_response_logps
        margins = values.unsqueeze(-1) - values.unsqueeze(-2)
        if batch.uniforms is not None:
            drawn = ((batch.sources == Source.RELABEL) | (batch.sources == Source.FRESH_SELF)).view(-1, 1, 1)
            lost = drawn & ~own_labels(margins, batch.uniforms.view(-1, 1, 1), beta=self.beta)
            margins = torch.where(lost, -margins, margins)
        return dpo_loss(margins, beta=self.beta), margins


def _by_source(weights: dict[Source, float], batch: AlignmentBatch) -> Tensor:
    """The weight of every row, ``[B, 1, 1]``."""
    table = full_precision(batch.scores).new_tensor([weights.get(source, 0.0) for source in Source])
    return table[batch.sources].view(-1, 1, 1)
