"""Which policy divergence is measured against: the one before training, or one that follows.

An anchor is immutable. The weights of a reference that moves are kept by the algorithm, in its checkpoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from lit_align.types import UserError


class Anchor(ABC):
    r"""Says, before every rollout, how far the reference goes towards the policy.

    .. math:: \theta_{ref} \leftarrow (1 - s)\, \theta_{ref} + s\, \theta

    over the weights that are trained, so of an adapter over its factors. Inside a rollout the reference stays as it is.
    ``moves`` says whether it ever does: only then is there a second value of those weights to keep.
    """

    moves: ClassVar[bool] = True

    @abstractmethod
    def share(self, rollout: int) -> float:
        """``s`` from 0 to 1, before the reference scores rollout number ``rollout``, from 1 on; at 1 it becomes the policy."""


@final
@dataclass(frozen=True)
class Initial(Anchor):
    """The policy as its folder has it, for the whole run."""

    moves: ClassVar[bool] = False

    def share(self, rollout: int) -> float:
        """Nothing."""
        return 0.0


@final
@dataclass(frozen=True)
class PreviousRound(Anchor):
    """The policy as it was at the start of a round of so many rollouts: before rollouts n, 2n, ... the reference becomes the policy.

    Args:
        rollouts: n. At 1 the reference is the policy that samples.

    Raises:
        UserError: if it is less than 1.
    """

    rollouts: int

    def __post_init__(self) -> None:
        if self.rollouts < 1:
            raise UserError(f"PreviousRound counts the rollouts of a round from 1, got {self.rollouts}. For none ever, `anchor: Initial`.")

    def share(self, rollout: int) -> float:
        """All the way at the start of a round."""
        return float(rollout % self.rollouts == 0)


@final
@dataclass(frozen=True)
class MovingAverage(Anchor):
    """An exponential average of the policies that have sampled, so that the reference follows some ``1 / (1 - decay)`` rollouts behind.

    Args:
        decay: of the reference at every rollout, between 0 and 1.

    Raises:
        UserError: if it is not between them.
    """

    decay: float

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise UserError(
                f"MovingAverage needs 0 < decay < 1, got {self.decay}. At 1 nothing would move: `anchor: Initial`; at 0 the last policy "
                "would be all of it: `PreviousRound(rollouts=1)`."
            )

    def share(self, rollout: int) -> float:
        """``1 - decay``."""
        return 1.0 - self.decay


def check_checkpoint(anchor: Anchor, checkpoint: Mapping[str, Any], prefix: str) -> None:
    """Refuse a checkpoint whose reference moved where this one stays, and the other way round.

    Args:
        anchor: of this run.
        checkpoint: as Lightning writes it.
        prefix: what the names of a moving reference's weights begin with.

    Raises:
        UserError: if it is of another kind of run.
    """
    if "state_dict" in checkpoint and anchor.moves != any(name.startswith(prefix) for name in checkpoint["state_dict"]):
        other = "the initial policy" if anchor.moves else "one that moves, and its weights are in it"
        raise UserError(
            f"The checkpoint's reference is {other}, but this run has `anchor: {anchor!r}`. Resume with the anchor that it was trained "
            "with, or start a new run from the exported policy."
        )
