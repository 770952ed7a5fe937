"""Logistic regression in a few Newton steps, many small ones at once: what win rates and ratings are fitted by."""

import math

import torch
from torch import Tensor

STEPS, PRECISION = 1000, 1e-9


def fit_logistic(features: Tensor, outcomes: Tensor, weights: Tensor, ridge: Tensor) -> Tensor:
    r"""The coefficients that explain ``outcomes`` best, of ``R`` weightings of the same ``N`` rows.

    .. math:: \min_\beta \sum_n w_n \big(\log(1 + e^{\eta_n}) - y_n \eta_n\big) + \tfrac{\rho}{2} \|\beta\|^2, \qquad \eta = F \beta

    The loss is convex, and its third derivative is at most the largest ``M = max |F_n|`` times its second, so that a Newton step
    shortened to ``log(1 + r) / r``, ``r = M |step|``, always descends; close to the optimum it is the whole step.
    Source: Generalized self-concordant functions: a recipe for Newton-type methods, https://arxiv.org/abs/1703.04599.

    Args:
        features: ``[N, D]``.
        outcomes: probabilities, not only 0 and 1, ``[R, N]`` or ``[1, N]``.
        weights: how often each row counts, at least 0, ``[R, N]``.
        ridge: at least 0, ``[R]``. Where it is 0 the rows must determine the coefficients and be inseparable: else there is no optimum.

    Returns:
        ``[R, D]`` in float64.

    Raises:
        ValueError: if there is no optimum.

    >>> rows = torch.tensor([[1.0], [1.0], [1.0], [1.0]])
    >>> fit_logistic(rows, torch.tensor([[1.0, 1.0, 1.0, 0.0]]), torch.ones(1, 4), torch.zeros(1)).sigmoid()
    tensor([[0.7500]], dtype=torch.float64)
    """
    f, y, w, rho = features.double(), outcomes.double(), weights.double(), ridge.double().unsqueeze(-1)
    beta = f.new_zeros(len(w), f.shape[1])
    reach = float(f.norm(dim=-1).max())
    enough = PRECISION * w.sum(-1, keepdim=True)
    for _ in range(STEPS):
        p = (beta @ f.T).sigmoid()  # [R, N]
        gradient = (w * (p - y)) @ f + rho * beta
        if bool((gradient.abs() <= enough).all()):
            return beta
        curvature = torch.einsum("rn,nd,ne->rde", w * p * (1 - p), f, f) + torch.diag_embed(rho.expand_as(beta))
        step, _ = torch.linalg.solve_ex(curvature, gradient)
        r = reach * step.norm(dim=-1, keepdim=True)
        beta = beta - step * (r.log1p() / r.clamp(min=1e-300)).where(r > 0, 1.0)
        if not beta.isfinite().all():
            break
    raise ValueError("The logistic regression has no optimum: its rows are separable, or don't determine the coefficients. Give a ridge.")


def normal_quantile(level: float) -> float:
    """How many standard deviations either side of a normal mean hold the share ``level``."""
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
