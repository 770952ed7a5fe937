"""How advantages become weights, and how the price of divergence follows a target."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from lit_align.functional.dar import centred_weights, dar_group_weights, dar_log_weights, dar_weights, is_clipped
from lit_align.types import AlignmentBatch, Diagnostics, UserError


class Weighting(ABC):
    """From advantages and log-probs to the weight of every response, ``[B, K]``.

    ``smallest_group`` is the least K that it works with; ``on_policy`` says that it is right for one optimizer step per
    rollout only.
    """

    smallest_group: ClassVar[int] = 1
    on_policy: ClassVar[bool] = False

    @abstractmethod
    def weigh(self, batch: AlignmentBatch, advantages: Tensor, *, alpha: float, beta: float) -> tuple[Tensor, Diagnostics]:
        """Weights ``[B, K]`` without gradient, and what to report of them.

        Args:
            batch: with sampling and reference log-probs.
            advantages: already divided by their scale, ``[B, K]``.
            alpha, beta: price of a nat of divergence from the reference, from the sampling policy, in units of ``advantages``.
        """


@final
@dataclass(frozen=True)
class ClippedWeights(Weighting):
    """The product of both factors, clipped from above: published.

    Args:
        max_weight: ceiling.
    """

    max_weight: float = 20.0

    def __post_init__(self) -> None:
        _check_ceiling(self.max_weight)

    def weigh(self, batch: AlignmentBatch, advantages: Tensor, *, alpha: float, beta: float) -> tuple[Tensor, Diagnostics]:
        """See `Weighting.weigh`."""
        reference, sampling = batch.reference_response_logps, batch.sampling_response_logps
        weights = dar_weights(advantages, reference, sampling, alpha=alpha, beta=beta, max_weight=self.max_weight)
        log_weights = dar_log_weights(advantages, reference, sampling, alpha=alpha, beta=beta)
        return weights, {"weights/clipped_fraction": is_clipped(log_weights, self.max_weight).float()}


@final
@dataclass(frozen=True)
class GroupWeights(Weighting):
    """Normalised inside each prompt's group, which estimates 1/Z(x): bounded by K, so there is nothing to clip."""

    smallest_group: ClassVar[int] = 2

    def weigh(self, batch: AlignmentBatch, advantages: Tensor, *, alpha: float, beta: float) -> tuple[Tensor, Diagnostics]:
        """See `Weighting.weigh`."""
        reference, sampling = batch.reference_response_logps, batch.sampling_response_logps
        return dar_group_weights(advantages, reference, sampling, alpha=alpha, beta=beta, valid=batch.valid), {}


@final
@dataclass(frozen=True)
class CentredWeights(Weighting):
    """Clipped weights minus the mean of their siblings': less noise and a negative gradient for bad samples.

    Args:
        max_weight: ceiling before centring.
    """

    smallest_group: ClassVar[int] = 2
    on_policy: ClassVar[bool] = True

    max_weight: float = 20.0

    def __post_init__(self) -> None:
        _check_ceiling(self.max_weight)

    def weigh(self, batch: AlignmentBatch, advantages: Tensor, *, alpha: float, beta: float) -> tuple[Tensor, Diagnostics]:
        """See `Weighting.weigh`."""
        weights, diagnostics = ClippedWeights(self.max_weight).weigh(batch, advantages, alpha=alpha, beta=beta)
        return centred_weights(weights, batch.valid), diagnostics


@final
@dataclass(frozen=True)
class KLTarget:
    r"""Raises alpha and beta together while the policy is further than ``nats`` from the reference, lowers them while nearer.

    .. math:: \log f \leftarrow \log f + \eta\, clip(KL / \delta - 1, -1, 1)

    Args:
        nats: the divergence to settle at.
        rate: how fast, per rollout.

    Raises:
        UserError: if either is not positive.
    """

    nats: float
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.nats <= 0 or self.rate <= 0:
            raise UserError(f"KLTarget needs positive nats and rate, got nats = {self.nats} and rate = {self.rate}.")

    def moved(self, factor: Tensor, kl: Tensor) -> Tensor:
        """The next factor on alpha and beta, from the last one and the rollout's mean divergence in nats, ``[]`` each."""
        return factor * (self.rate * (kl / self.nats - 1).clamp(-1, 1)).exp()


def _check_ceiling(max_weight: float) -> None:
    if not max_weight > 0 or math.isnan(max_weight):
        raise UserError(f"max_weight should be positive, got {max_weight}.")
