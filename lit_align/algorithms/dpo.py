"""Direct Preference Optimization, offline and online. https://arxiv.org/abs/2305.18290"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import OptimizerCallable, ScheduleCallable
from lit_align.algorithms.pairing import BestVersusWorst, Pairing
from lit_align.algorithms.parts import Link, require_price
from lit_align.algorithms.preference import PreferenceModule
from lit_align.functional.preference import alpha_divergence, dpo_loss, forward_kl, jensen_shannon, reverse_kl
from lit_align.types import AlignmentBatch, Policy, UserError

__all__ = ["DPO", "AlphaDivergence", "forward_kl", "jensen_shannon", "reverse_kl"]


@final
@dataclass(frozen=True)
class AlphaDivergence:
    """The link between reverse KL (0) and forward KL (1).

    Args:
        alpha: strictly between 0 and 1, as in the paper; other libraries write 1 - alpha.

    Raises:
        UserError: if it is not.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError(f"AlphaDivergence needs 0 < alpha < 1, got {self.alpha}; the ends are the links reverse_kl and forward_kl.")

    def __call__(self, log_ratios: Tensor) -> Tensor:
        """``(1 - u^-alpha) / alpha``, ``[...]``."""
        return alpha_divergence(log_ratios, alpha=self.alpha)


@final
class DPO(PreferenceModule):
    r"""The preferred response should be further above the reference than the other.

    .. math:: L = -\log \sigma\big( \beta [ f'(\rho_w) - f'(\rho_l) ] \big), \qquad \rho = \pi_\theta / \pi_{ref}

    Online, with labels of an LLM judge, it is OAIF's first loss, https://arxiv.org/abs/2402.04792. Other links than the logarithm are
    f-DPO, https://arxiv.org/abs/2309.16240.

    Args:
        policy: the language model to train.
        beta: price of divergence from the reference, in units of log-odds per nat.
        link: what a log-ratio is worth: ``reverse_kl`` is DPO; ``forward_kl``, ``jensen_shannon``, ``AlphaDivergence`` are f-DPO.
        nll: weight of the winner's mean negative log-likelihood per token, added to the loss.
        pairing: which responses are compared.
        label_smoothing: the chance that a label is wrong: conservative DPO.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``beta`` is not positive, or ``nll`` negative.
    """

    def __init__(
        self,
        policy: Policy,
        beta: float = 0.1,
        link: Link = reverse_kl,
        nll: float = 0.0,
        pairing: Pairing = BestVersusWorst(),
        label_smoothing: float = 0.0,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=5e-7, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, pairing, label_smoothing, optimizer, lr_schedule, anchor)
        require_price("beta", beta)
        require_price("nll", nll, zero=True)
        self.beta, self.link, self.nll = beta, link, nll

    def value(self, batch: AlignmentBatch, logps: Tensor) -> Tensor:
        """``f'(pi / pi_ref)``, ``[B, K]``."""
        return self.link(super().value(batch, logps))

    def extra_loss(self, batch: AlignmentBatch, logps: Tensor) -> Tensor | None:
        """``-nll log pi(y|x) / |y|``, ``[B, K]``."""
        return -self.nll * logps / batch.loss_mask.sum(-1).clamp(min=1) if self.nll else None

    def pair_loss(self, margins: Tensor, labels: Tensor) -> Tensor:
        """See `dpo_loss`."""
        return dpo_loss(margins, beta=self.beta, labels=labels)
