"""How often one policy's answers beat another's, with an interval that knows that answers to one prompt go together."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.evaluation.bootstrap import bootstrap_interval, check_settings, summed_by_prompt
from lit_align.evaluation.logistic import normal_quantile


@final
@dataclass(frozen=True, slots=True)
class WinRate:
    """A win rate between 0 and 1, its interval ``[low, high]``, the share of ``ties``, and ``n``, the number of pairs that counted."""

    value: float
    low: float
    high: float
    ties: float
    n: int


def win_rate(
    scores: Tensor,
    rival_scores: Tensor,
    valid: Tensor | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> WinRate:
    r"""How often the scored response beats its rival, a tie counting as half a win.

    .. math:: P(\text{score} > \text{rival}) + P(\text{score} = \text{rival}) / 2

    so that the rate against oneself is 1/2, and both sides' rates add up to 1. Every valid pair counts the same.

    **Interval.** Percentiles of a bootstrap that draws whole prompts: several answers to one prompt are no independent evidence.
    Where all prompts agree (nothing but wins, nothing but ties, a single prompt), every resample is the same and the bootstrap would
    claim certainty; then it is Wilson's interval for one observation per prompt: 20 prompts won give ``[0.84, 1]``, and 20 ties
    ``[0.30, 0.70]``, wide because ties say nothing about the next one that is none. Just short of that the bootstrap is still
    somewhat narrow: do not read much into an interval from fewer than some 30 prompts. Without a valid pair nothing is known:
    ``WinRate(0.5, 0, 1, 0, 0)``.

    Args:
        scores: of the policy in question, larger is better, ``[B, K]`` or ``[B]``.
        rival_scores: of the k-th rival to the same prompt, ``[B, K]``, or of the only one, ``[B]``.
        valid: bool, which pairs count, ``[B, K]`` or ``[B]``; scores of other pairs may be anything, NaN included.
        level: of confidence, between 0 and 1.
        resamples: bootstrap draws.
        seed: of the bootstrap's own generator; torch's global one is left alone.

    Raises:
        ValueError: if shapes do not fit, ``level`` or ``resamples`` is out of range, or a score of a valid pair is NaN (it would
            silently count as a loss).

    >>> win_rate(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 2.0, 4.0, 0.0])).value
    0.625
    >>> win_rate(torch.ones(20), torch.zeros(20))
    WinRate(value=1.0, low=0.83887..., high=1.0, ties=0.0, n=20)
    """
    check_settings(level, resamples)
    scores, rivals, counted = _pairs(scores, rival_scores, valid)
    verdicts = (scores > rivals).double() + (scores == rivals).double() / 2  # [B, K]
    prompts = torch.arange(len(counted)).unsqueeze(-1).expand_as(counted)
    return verdict_rate(verdicts[counted], prompts[counted], level=level, resamples=resamples, seed=seed)


def verdict_rate(verdicts: Tensor, prompts: Tensor, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> WinRate:
    """`win_rate` of verdicts that are known: their mean, and its interval.

    Args:
        verdicts: 1 for a win, 0 for a loss, 1/2 for a tie, or a probability of winning, ``[N]``. Exactly 1/2 counts among ``ties``.
        prompts: a number for the prompt that each is about, ``[N]``; verdicts about the same prompt are drawn together.
        level, resamples, seed: see `win_rate`.

    Raises:
        ValueError: if a verdict is no probability, shapes do not fit, or ``level`` or ``resamples`` is out of range.

    >>> verdict_rate(torch.tensor([1.0, 0.5, 0.75, 0.0]), torch.tensor([7, 7, 8, 9])).value
    0.5625
    """
    check_settings(level, resamples)
    check_verdicts(verdicts, prompts)
    n = len(verdicts)
    if n == 0:
        return WinRate(value=0.5, low=0.0, high=1.0, ties=0.0, n=0)
    wide, numbers = verdicts.double(), prompts.unique(return_inverse=True)[1]
    credit, pairs = summed_by_prompt(wide, numbers), summed_by_prompt(torch.ones_like(wide), numbers)  # [prompts]
    value = float(credit.sum() / n)
    if bool((credit / pairs == credit[0] / pairs[0]).all()):
        low, high = wilson(value, len(pairs), level)
    else:
        ends = bootstrap_interval(lambda drawn: (drawn @ credit) / (drawn @ pairs), len(pairs), level=level, resamples=resamples, seed=seed)
        low, high = map(float, ends)
    return WinRate(value=value, low=low, high=high, ties=float((wide == 0.5).double().mean()), n=n)


def check_verdicts(verdicts: Tensor, *others: Tensor) -> None:
    """Refuse what are no verdicts, one per row.

    Raises:
        ValueError: if ``verdicts`` are not ``[N]`` probabilities, or ``others`` not as many.
    """
    if verdicts.dim() != 1 or any(other.shape != verdicts.shape for other in others):
        shapes = " and ".join(str(tuple(t.shape)) for t in (verdicts, *others))
        raise ValueError(f"Verdicts and what is known of each should be [N] all, got {shapes}.")
    if not bool(((verdicts >= 0) & (verdicts <= 1)).all()):
        raise ValueError("Verdicts should be probabilities, from 0 to 1; leave those out that are not valid.")


def _pairs(scores: Tensor, rival_scores: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, rivals and which pairs count, ``[B, K]`` each, on the CPU; 0 against 0 where they do not."""
    given = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    if {t.dim() for t in (scores, rival_scores, given)} - {1, 2} or not len(scores) == len(rival_scores) == len(given):
        raise ValueError(
            "scores, rival_scores and valid must be [B, K] or [B] for the same B prompts, got "
            f"{tuple(scores.shape)}, {tuple(rival_scores.shape)} and {tuple(given.shape)}."
        )
    columns = [(t if t.dim() == 2 else t.unsqueeze(-1)).detach().cpu() for t in (scores, rival_scores, given)]
    if len({t.shape[1] for t in columns} - {1}) > 1:
        raise ValueError(
            f"The k-th response meets the k-th rival, so both need as many, or one of them only one: got K = {columns[0].shape[1]} "
            f"scores, {columns[1].shape[1]} rival_scores and {columns[2].shape[1]} valid."
        )
    scores, rivals, counted = torch.broadcast_tensors(*columns)
    scores, rivals = scores.where(counted, 0), rivals.where(counted, 0)
    if bool((scores.isnan() | rivals.isnan()).any()):
        raise ValueError("A score of a valid pair is NaN: give `valid`, False where a response could not be scored.")
    return scores, rivals, counted


def wilson(value: float, n: int, level: float) -> tuple[float, float]:
    """The rates that would not make a mean of ``value`` over ``n`` independent prompts surprising (Wilson, 1927)."""
    z2 = normal_quantile(level) ** 2
    centre = (value + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (value * (1 - value) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(centre - half, 0.0), min(centre + half, 1.0)
