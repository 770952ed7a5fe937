"""Intervals from draws of whole prompts: several verdicts about answers to one prompt are no independent evidence."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

RESAMPLES_AT_ONCE = 100  # bounds memory; the draws are the same for any value


def check_settings(level: float, resamples: int) -> None:
    """Refuse what is no interval.

    Raises:
        ValueError: if ``level`` does not lie between 0 and 1, or there is no resample.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {level}.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")


def draws(prompts: int, *, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each prompt is drawn, if as many are drawn with replacement; ``[some, prompts]`` in float64, ``resamples`` rows in all."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        drawn = torch.randint(prompts, (min(RESAMPLES_AT_ONCE, resamples - start), prompts), generator=generator)
        counts = torch.zeros(drawn.shape, dtype=torch.float64)
        yield counts.scatter_add_(1, drawn, torch.ones_like(counts))


def bootstrap_interval(
    statistic: Callable[[Tensor], Tensor], prompts: int, *, level: float, resamples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Percentiles of a statistic over draws of ``prompts`` prompts with replacement.

    Args:
        statistic: from how often each prompt was drawn, ``[R, prompts]`` in float64, to one row per draw, ``[R, ...]``.
        prompts: how many there are.
        level: of confidence, between 0 and 1.
        resamples: how many draws.
        seed: of the bootstrap's own generator; torch's global one is left alone.

    Returns:
        Lower and upper ends, ``[...]`` each.
    """
    found = [statistic(counts) for counts in draws(prompts, resamples=resamples, seed=seed)]
    tail = (1 - level) / 2
    low, high = torch.cat(found).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return low, high


def summed_by_prompt(values: Tensor, prompts: Tensor) -> Tensor:
    """Sums of ``values`` ``[N, ...]`` over the rows of each prompt, ``[prompts, ...]``; ``prompts`` ``[N]`` counts from 0."""
    return values.new_zeros(int(prompts.max()) + 1, *values.shape[1:]).index_add_(0, prompts, values)
