"""What annotators over annotators share."""

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from lit_align.types import Annotation, Annotator, Ask, Rollouts, UserError


class Composite(Annotator, ABC):
    """Asks its members and makes one annotation of theirs.

    Its identity is made of its class, its settings and the identities of all members, quoted, so that no two composites share one. Its
    version is the sum of the members': versions only ever grow, so that along a run any change of any member makes the sum larger,
    and no two states of it have the same.

    Args:
        members: who is asked; at least one.
        settings: whatever else its labels depend on.

    Raises:
        UserError: if there is no member.
    """

    def __init__(self, members: Sequence[Annotator], settings: str) -> None:
        if not members:
            raise UserError(f"{type(self).__name__} asks other annotators, at least one, got none.")
        self.members, self.settings = tuple(members), settings

    @property
    @final
    def identity(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of all members."""
        return f"{type(self).__name__}({[f'{type(m).__name__} {m.identity}' for m in self.members]}, {self.settings})"

    @property
    @final
    def version(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sum of the members'."""
        return sum(member.version for member in self.members)

    def share(self, number: int, rollouts: Rollouts) -> Rollouts:
        """What member ``number`` is asked about, and learns from."""
        return rollouts

    @final
    def learn(self, rollouts: Rollouts, ask: Ask) -> Mapping[str, float]:
        """Every member learns. What several have to say gets the member's number behind its name."""
        said = [member.learn(self.share(number, rollouts), ask) for number, member in enumerate(self.members)]
        if len(said) == 1:
            return said[0]
        return {f"{name}_{number}": value for number, metrics in enumerate(said) for name, value in metrics.items()}

    @final
    def state_dict(self) -> dict[str, Any]:
        """Of the members that have learnt, by their number."""
        states = {str(number): member.state_dict() for number, member in enumerate(self.members)}
        return {number: state for number, state in states.items() if state}

    @final
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give it back to them.

        Raises:
            UserError: if there is more than the members can have learnt.
        """
        if surplus := sorted(set(state) - {str(number) for number in range(len(self.members))}):
            raise UserError(
                f"The checkpoint holds what member {', '.join(surplus)} of an annotator has learnt, but {type(self).__name__} has "
                f"{len(self.members)} (counted from 0). Resume with the annotator that the run was started with."
            )
        for number, member in enumerate(self.members):
            member.load_state_dict(state.get(str(number), {}))

    @final
    @property
    def learns(self) -> bool:
        """Where any member does."""
        return any(member.learns for member in self.members)

    @final
    @property
    def waits(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where any member does."""
        return any(member.waits for member in self.members)

    def setup(self, device: torch.device) -> None:
        """Wake every member."""
        for member in self.members:
            member.setup(device)

    @final
    def close(self) -> None:
        """Close every member."""
        for member in self.members:
            member.close()


def stacked(answers: Sequence[Annotation]) -> tuple[Tensor, Tensor]:
    """Scores, 0 where invalid, and valid of all of them on the CPU, ``[M, B, K]``."""
    valid = torch.stack([answer.valid.cpu() for answer in answers])
    return torch.stack([answer.scores.detach().float().cpu() for answer in answers]).where(valid, 0.0), valid


def mean_mass(answers: Sequence[Annotation]) -> Tensor | None:
    """The mean of those that a model gave, ``[B, K]``; None if none did."""
    given = [answer.mass.detach().float().cpu() for answer in answers if answer.mass is not None]
    return torch.stack(given).nanmean(0) if given else None


def numbered_parts(answers: Sequence[Annotation]) -> dict[str, Tensor]:
    """What the scores of every member are made of, with its number behind the name; of a single one as it is."""
    if len(answers) == 1:
        return dict(answers[0].parts)
    return {f"{name}_{number}": part.detach().float().cpu() for number, answer in enumerate(answers) for name, part in answer.parts.items()}


def mean_preferences(answers: Sequence[Annotation], weights: Sequence[float], needed: int) -> Tensor | None:
    """Weighted mean of the members' preferences, ``[B, K, K]``: over those that compared the two, NaN where fewer than ``needed`` did.

    A negative weight is that of a judge whose verdict is turned round. None unless every member has preferences: one that only scores has
    no say in them, and could not be outvoted.
    """
    if any(answer.preferences is None for answer in answers):
        return None
    given = torch.stack([a.preferences.detach().float().cpu() for a in answers if a.preferences is not None])  # [M, B, K, K]
    signed = torch.tensor(weights, dtype=torch.float32).reshape(-1, 1, 1, 1)
    asked = ~given.isnan()
    turned = torch.where(signed < 0, 1 - given, given)
    share = signed.abs().expand_as(given).where(asked, 0.0)
    mean = (share * turned.where(asked, 0.0)).sum(0) / share.sum(0).clamp(min=torch.finfo(torch.float32).tiny)
    return mean.where((asked.sum(0) >= needed) & (share.sum(0) > 0), math.nan)
