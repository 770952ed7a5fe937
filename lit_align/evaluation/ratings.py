"""Several policies on one scale: Bradley-Terry ratings of who beat whom."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.evaluation.bootstrap import bootstrap_interval, check_settings, summed_by_prompt
from lit_align.evaluation.logistic import fit_logistic, normal_quantile
from lit_align.evaluation.win_rate import check_verdicts
from lit_align.types import UserError


@final
@dataclass(frozen=True, slots=True)
class Rating:
    """Log-odds ``value`` in nats, mean 0 over all players, and its interval ``[low, high]``; 400 / ln(10) times it is Elo's scale."""

    value: float
    low: float
    high: float


def bradley_terry(
    verdicts: Tensor,
    first: Tensor,
    second: Tensor,
    prompts: Tensor,
    players: int,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Rating]:
    r"""The ratings that explain who beat whom best.

    .. math:: P(i \text{ beats } j) = \sigma(r_i - r_j), \qquad \sum_i r_i = 0

    by maximum likelihood, with half a win added each way to every two players that met: else one that always wins would be infinitely
    good. Of two players the difference is exactly the log-odds of wins with that half. A tie is half a win for both, a soft verdict a
    share.
    Source: Rank analysis of incomplete block designs, Bradley and Terry, 1952.

    **Interval.** Percentiles of a bootstrap over prompts. A player's rating that is the same in every resample (nothing but wins) is
    not certain: its interval is then normal, with the likelihood's curvature for one observation per prompt and pair of players.

    Args:
        verdicts: as `verdict_rate` takes them, of ``first`` against ``second``, ``[N]``.
        first, second: numbers of players, from 0, ``[N]``.
        prompts: a number for the prompt of each, ``[N]``.
        players: how many there are.
        level, resamples, seed: see `win_rate`.

    Raises:
        ValueError: as `verdict_rate`, or if someone plays against themselves.
        UserError: if two players never met, not even through others.

    >>> won = torch.tensor([1.0, 1.0, 0.0, 1.0])
    >>> [round(r.value, 4) for r in bradley_terry(won, torch.zeros(4).long(), torch.ones(4).long(), torch.arange(4), 2)]
    [0.4236, -0.4236]
    """
    check_settings(level, resamples)
    check_verdicts(verdicts, first, second, prompts)
    if bool((first == second).any()):
        raise ValueError("Nobody plays against themselves: first and second should differ in every row.")
    low_high = torch.stack([torch.minimum(first, second), torch.maximum(first, second)], -1)
    pairs, which = low_high.unique(dim=0, return_inverse=True)  # [pairs, 2], [N]
    _check_connected(pairs, players)
    wins = verdicts.double().where(first < second, 1 - verdicts.double())  # of the lower number
    rows, numbers = torch.zeros(len(wins), len(pairs), dtype=torch.float64), prompts.unique(return_inverse=True)[1]
    played = summed_by_prompt(rows.scatter(1, which.unsqueeze(-1), 1.0), numbers)  # [prompts, pairs]
    won = summed_by_prompt(rows.scatter(1, which.unsqueeze(-1), wins.unsqueeze(-1)), numbers)
    design = torch.zeros(len(pairs), players, dtype=torch.float64)
    design.scatter_(1, pairs[:, :1], 1.0).scatter_(1, pairs[:, 1:], -1.0)

    def ratings(drawn: Tensor) -> Tensor:
        games = drawn @ played + 1  # half a win each way
        beta = fit_logistic(design[:, 1:], (drawn @ won + 0.5) / games, games, torch.zeros(len(drawn)))
        free = torch.cat([torch.zeros(len(drawn), 1, dtype=torch.float64), beta], -1)
        return free - free.mean(-1, keepdim=True)

    value = ratings(torch.ones(1, len(played), dtype=torch.float64))[0]
    low, high = bootstrap_interval(ratings, len(played), level=level, resamples=resamples, seed=seed)
    margins = design @ value
    information = ((played > 0).double().sum(0) + 1) * margins.sigmoid() * (-margins).sigmoid()
    spread = normal_quantile(level) * torch.linalg.pinv(design.T @ (information.unsqueeze(-1) * design)).diagonal().clamp(min=0).sqrt()
    same = high - low < 1e-9
    low, high = low.where(~same, value - spread), high.where(~same, value + spread)
    return [Rating(*row) for row in torch.stack([value, low, high], -1).tolist()]


def _check_connected(pairs: Tensor, players: int) -> None:
    known, before = {0}, 0
    while len(known) > before:
        before = len(known)
        known |= {player for pair in pairs.tolist() if known & {*pair} for player in pair}
    if missing := sorted({*range(players)} - known):
        raise UserError(
            f"Ratings need players that met, directly or through others, but nothing that counts connects number 0 with "
            f"{', '.join(map(str, missing))} (counted from 0). Look at the verdicts that are invalid."
        )
