"""How a critic's values become advantages of tokens, as a YAML chooses it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lit_align.functional.gae import gae, macro_gae
from lit_align.types import UserError


class Credit(ABC):
    """From rewards of tokens and values to what each token is answerable for."""

    @abstractmethod
    def assign(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages, and the returns that the critic learns, 0 outside the mask, without gradient, ``[B, K, T]`` both.

        Args:
            rewards: of tokens, ``[B, K, T]``.
            values: what the critic expected before each, in units of reward, ``[B, K, T]``.
            mask: which tokens count, bool, ``[B, K, T]``.
        """


@final
@dataclass(frozen=True)
class GAE(Credit):
    """Every token answers for itself and, ``lam`` at a time, for what follows.

    Args:
        gamma: worth of a reward one token later.
        lam: 0 believes the critic at once; 1 counts all rewards to the end.

    Raises:
        UserError: if either is not between 0 and 1.
    """

    gamma: float = 1.0
    lam: float = 0.95

    def __post_init__(self) -> None:
        _check(self.gamma, self.lam)

    def assign(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `gae`."""
        return gae(rewards, values, mask, gamma=self.gamma, lam=self.lam)


@final
@dataclass(frozen=True)
class MacroGAE(Credit):
    """Runs of tokens share one advantage, so that credit for the end takes fewer steps to the beginning.

    Args:
        gamma, lam: as of `GAE`, per run.
        length: tokens of a run.

    Raises:
        UserError: if ``gamma`` or ``lam`` is not between 0 and 1, or ``length`` is less than 1.
    """

    gamma: float = 1.0
    lam: float = 0.95
    length: int = 5

    def __post_init__(self) -> None:
        _check(self.gamma, self.lam)
        if self.length < 1:
            raise UserError(f"MacroGAE counts the tokens of a run from 1, got length = {self.length}. At 1 it is GAE.")

    def assign(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `macro_gae`."""
        return macro_gae(rewards, values, mask, gamma=self.gamma, lam=self.lam, length=self.length)


def _check(gamma: float, lam: float) -> None:
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise UserError(f"gamma and lam should be from 0 to 1, got gamma = {gamma} and lam = {lam}.")
