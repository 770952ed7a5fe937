"""How sure a number is that was found on pairs of which several share a prompt."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.evaluation.bootstrap import draws


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """A value found on ``n`` pairs, and its interval from ``low`` to ``high``.

    None is what is not known: the value where it is not defined (kappa where everybody always said the same), the interval where all
    resamples gave one and the same value, which says that there is too little to tell, not that the value is certain.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def resampled_sums(features: Tensor, prompts: Tensor, *, resamples: int = 2000, seed: int = 0) -> Tensor:
    """Sums of ``features`` over the pairs, and over those of ``resamples`` draws of whole prompts with replacement.

    Args:
        features: ``[N, F]``.
        prompts: number of every pair's prompt, any integers, ``[N]``.
        resamples: how many.
        seed: of a generator of its own; torch's global one is left alone.

    Returns:
        ``[1 + resamples, F]`` in float64; the first row is of the pairs as they are.
    """
    names, of = prompts.unique(return_inverse=True)
    sums = torch.zeros(len(names), features.shape[1], dtype=torch.float64).index_add(0, of, features.double())  # [prompts, F]
    rows = [sums.sum(0, keepdim=True)]
    rows += [times @ sums for times in draws(len(names), resamples=resamples if len(names) else 0, seed=seed)]
    return torch.cat(rows)


def estimate(values: Tensor, n: int, *, level: float = 0.95) -> Estimate:
    """The first of ``values``, with the percentiles of the others as its interval; NaN is no value.

    >>> estimate(torch.tensor([0.5, 0.4, 0.6]), 10)
    Estimate(value=0.5, low=0.405..., high=0.595..., n=10)
    >>> estimate(torch.tensor([1.0, 1.0, 1.0]), 10)
    Estimate(value=1.0, low=None, high=None, n=10)
    """
    value, draws = values[0].double(), values[1:].double()
    if value.isnan():
        return Estimate(None, None, None, n)
    draws = draws[~draws.isnan()]
    if not len(draws) or float(draws.max() - draws.min()) < 1e-12:  # rounding of equal shares
        return Estimate(float(value), None, None, n)
    tail = (1 - level) / 2
    low, high = draws.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(float(value), low, high, n)
