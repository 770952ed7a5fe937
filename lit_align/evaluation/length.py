"""How much of a win rate is length: the rate that would be left if both sides wrote as much, and the rate by length."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from lit_align.evaluation.bootstrap import bootstrap_interval, check_settings
from lit_align.evaluation.logistic import fit_logistic
from lit_align.evaluation.win_rate import WinRate, check_verdicts, verdict_rate

EDGES = (0.5, 0.8, 1.25, 2.0)  # of the ratio of lengths
RIDGE = 1.0  # a standard normal prior


@final
@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The win rate at equal length between 0 and 1, its interval ``[low, high]``, and ``effect``: by how much one standard deviation more
    of length (its tanh, strictly) moves the log-odds of winning. ``ridge``: length alone told wins from losses, and without a pull to 0
    there would be no fit."""

    value: float
    low: float
    high: float
    effect: float
    ridge: bool


@final
@dataclass(frozen=True, slots=True)
class LengthBin:
    """The win rate ``rate`` of the pairs whose first answer is ``above`` to ``below`` times as long as the other."""

    above: float
    below: float
    rate: WinRate


def length_controlled(
    verdicts: Tensor, differences: Tensor, prompts: Tensor, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> LengthControlled:
    r"""The win rate that a judge's liking of long answers has no part in.

    .. math:: P(\text{win}) = \sigma\big(\theta + \phi \tanh(\Delta / \operatorname{std} \Delta)\big), \qquad
        \text{controlled} = \sigma(\theta)

    with the difference :math:`\Delta` of both answers' lengths, fitted to the verdicts by maximum likelihood: what the model
    predicts where there is no difference. Source: Length-Controlled AlpacaEval, https://arxiv.org/abs/2404.04475. Its third term, how
    hard a prompt is, is left out: it takes many other models' answers to the same prompts to know that.

    Where all answers differ by the same length, or all verdicts are the same, length explains nothing, and this is the raw
    win rate with its interval. Where a threshold of length separates wins from losses (also in a resample), the likelihood has no
    maximum: :math:`(\theta^2 + \phi^2) / 2` is added, and ``ridge`` says so.

    Args:
        verdicts: as `verdict_rate` takes them, soft ones included, ``[N]``.
        differences: length of the first answer minus that of its rival, in characters, or in tokens of one tokenizer, ``[N]``.
        prompts: a number for the prompt of each, ``[N]``.
        level, resamples, seed: see `win_rate`; resampling draws prompts, and fits anew.

    Raises:
        ValueError: as `verdict_rate`.
    """
    check_settings(level, resamples)
    check_verdicts(verdicts, differences, prompts)
    y, d = verdicts.double(), differences.double()
    if len(y) == 0 or bool((y == y[0]).all()) or bool((d == d[0]).all()):
        rate = verdict_rate(verdicts, prompts, level=level, resamples=resamples, seed=seed)
        return LengthControlled(rate.value, rate.low, rate.high, effect=0.0, ridge=False)
    x = (d / d.std(correction=0)).tanh()
    numbers = prompts.unique(return_inverse=True)[1]

    def fits(weights: Tensor) -> Tensor:
        return fit_logistic(torch.stack([torch.ones_like(x), x], -1), y.unsqueeze(0), weights, RIDGE * _separable(x, y, weights))

    def rates(drawn: Tensor) -> Tensor:
        return fits(drawn[:, numbers])[:, 0].sigmoid()

    everyone = torch.ones(1, len(y), dtype=torch.float64)
    theta, phi = fits(everyone)[0].tolist()
    low, high = bootstrap_interval(rates, int(numbers.max()) + 1, level=level, resamples=resamples, seed=seed)
    value = 1 / (1 + math.exp(-theta))
    return LengthControlled(value, float(low), float(high), effect=phi, ridge=bool(_separable(x, y, everyone)))


def by_length(
    verdicts: Tensor, lengths: Tensor, rival_lengths: Tensor, prompts: Tensor, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[LengthBin]:
    """Win rates of pairs of similar ratio of lengths: less than half, about as long, more than twice, and between. Empty bins are there
    too, and know nothing.

    Args:
        verdicts, prompts, level, resamples, seed: see `verdict_rate`.
        lengths, rival_lengths: of both answers, at least 0, ``[N]``. Of two empty ones the ratio is 1.

    Raises:
        ValueError: as `verdict_rate`.
    """
    check_verdicts(verdicts, lengths, rival_lengths, prompts)
    ratios = (lengths.double() / rival_lengths.double()).where(lengths != rival_lengths, 1.0)
    which = torch.bucketize(ratios, torch.tensor(EDGES, dtype=torch.float64))
    ends = [0.0, *EDGES, math.inf]
    found = []
    for i, (above, below) in enumerate(pairwise(ends)):
        rate = verdict_rate(verdicts[which == i], prompts[which == i], level=level, resamples=resamples, seed=seed)
        found.append(LengthBin(above, below, rate))
    return found


def _separable(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Whether no loss among the rows that count is to the one side of a win and another to its other, bool ``[R]``."""
    won, lost = (weights > 0) & (y > 0), (weights > 0) & (y < 1)  # a soft verdict is a bit of both
    lowest_win, highest_win = x.where(won, math.inf).amin(-1), x.where(won, -math.inf).amax(-1)
    lowest_loss, highest_loss = x.where(lost, math.inf).amin(-1), x.where(lost, -math.inf).amax(-1)
    return (highest_loss <= lowest_win) | (highest_win <= lowest_loss)
