r"""Direct Advantage Regression: how often each sample deserves to be imitated.

The policy that maximises :math:`E_\pi[A] - \alpha\,KL(\pi \| \pi_{ref}) - \beta\,KL(\pi \| \pi_t)` is

.. math:: \pi^*(y|x) = \pi_{ref}(y|x)^{a}\; \pi_t(y|x)^{1-a}\; e^{A(x,y)/\tau} / Z(x), \qquad \tau = \alpha+\beta,\; a = \alpha/\tau.

Samples come from ``pi_t``, so a sample stands for ``pi^*/pi_t`` of itself. Axes: ``B`` prompts, ``K`` responses to each; log-probs of
responses in nats, summed over tokens. Source: https://arxiv.org/abs/2504.14177, Theorem 4.1.
"""

import math

import torch
from torch import Tensor

from lit_align.functional.advantages import group_centred, leave_one_out, require_siblings
from lit_align.functional.logprobs import full_precision


def dar_log_weights(advantages: Tensor, reference_logps: Tensor, sampling_logps: Tensor, *, alpha: float, beta: float) -> Tensor:
    r"""``log(pi^*/pi_t)`` of each sample, up to the prompt's ``log Z(x)``.

    .. math:: \log w = \frac{\alpha\,(\log\pi_{ref} - \log\pi_t) + A}{\alpha + \beta}

    Args:
        advantages: ``A(x, y)`` in units of reward, or of its standard deviation where it was divided by one, ``[B, K]``.
        reference_logps: ``log pi_ref(y|x)``, ``[B, K]``; not looked at if ``alpha`` is 0.
        sampling_logps: ``log pi_t(y|x)``, ``[B, K]``.
        alpha, beta: price of a nat of divergence from the reference, from the sampling policy, in the unit of ``advantages``.

    Returns:
        Log weights without gradient, float32 (float64 if an input is), ``[B, K]``.

    Raises:
        ValueError: if ``alpha + beta`` is not positive (nothing would bound the update), or the shapes differ.

    >>> dar_log_weights(torch.tensor([1.0]), torch.tensor([-5.0]), torch.tensor([-3.0]), alpha=1.0, beta=3.0)
    tensor([-0.2500])
    """
    temperature = alpha + beta
    if not temperature > 0:
        raise ValueError(f"alpha + beta must be positive, got alpha = {alpha} and beta = {beta}.")
    if not advantages.shape == reference_logps.shape == sampling_logps.shape:  # broadcasting would hide a missing sum over tokens
        raise ValueError(
            "advantages, reference_logps and sampling_logps must have one shape, one number for every response, "
            f"got {tuple(advantages.shape)}, {tuple(reference_logps.shape)} and {tuple(sampling_logps.shape)}."
        )
    advantages, reference_logps, sampling_logps = (full_precision(x.detach()) for x in (advantages, reference_logps, sampling_logps))
    anchor = alpha * (reference_logps - sampling_logps) if alpha else torch.zeros_like(sampling_logps)  # 0 * -inf would be nan
    return (anchor + advantages) / temperature


def dar_weights(
    advantages: Tensor, reference_logps: Tensor, sampling_logps: Tensor, *, alpha: float, beta: float, max_weight: float = math.inf
) -> Tensor:
    r"""How many times each sample should count as a target: the published weights.

    .. math:: w = \min\!\Big( (\pi_{ref}/\pi_t)^{\alpha/(\alpha+\beta)}\; e^{A/(\alpha+\beta)},\; w_{max} \Big)

    Samples of ``pi_t`` weighted by ``w`` are, up to ``Z(x)`` and the ceiling, samples of the optimum ``pi^*`` (see the top of the file).
    What falls out of it: ``alpha = 0`` is advantage-weighted regression, without an anchor; ``beta = 0`` the optimum of RLHF and DPO,
    by full importance weights; ``alpha + beta -> inf`` at a fixed ratio forgets the reward; equal rewards on policy are plain
    imitation, ``w = 1``. Where the rounds end is a matter of ``alpha`` alone, ``pi_ref exp(r/alpha)``; ``beta`` sets the step. All of it
    needs no ceiling, a fixed unit of ``advantages`` and ``leave_one_out``; ``group_centred`` weakens rewards by ``(K-1)/K``.

    Args:
        advantages: ``A(x, y)`` in units of reward, or of its standard deviation where it was divided by one, ``[B, K]``.
        reference_logps: ``log pi_ref(y|x)``, ``[B, K]``.
        sampling_logps: ``log pi_t(y|x)``, ``[B, K]``.
        alpha, beta: price of a nat of divergence from the reference, from the sampling policy, in the unit of ``advantages``.
        max_weight: ceiling of the product of both factors, applied to ``log w``: any finite advantage is then safe. The default is
            none: weights beyond ``e^88`` overflow float32.

    Returns:
        Non-negative weights without gradient, float32 (float64 if an input is), ``[B, K]``.

    Raises:
        ValueError: if ``alpha + beta`` is not positive, or ``max_weight`` is not.

    >>> advantages, same = torch.tensor([[-1.0, 0.0, 1.0]]), torch.tensor([[-9.0, -9.0, -9.0]])
    >>> dar_weights(advantages, same, same, alpha=0.1, beta=0.9, max_weight=2.0)
    tensor([[0.3679, 1.0000, 2.0000]])
    """
    ceiling = _log_ceiling(max_weight)
    log_weights = dar_log_weights(advantages, reference_logps, sampling_logps, alpha=alpha, beta=beta)
    return log_weights.clamp(max=ceiling).exp()


def dar_group_weights(
    advantages: Tensor,
    reference_logps: Tensor,
    sampling_logps: Tensor,
    *,
    alpha: float,
    beta: float,
    valid: Tensor | None = None,
) -> Tensor:
    r"""How many times each sample should count, out of the valid samples of its prompt.

    .. math:: w_k = K\, e^{\ell_k} \Big/ \sum_j e^{\ell_j}, \qquad \ell_k = \frac{\alpha\,(\log\pi_{ref} - \log\pi_t)_k + A_k}{\alpha+\beta}

    The group's own mean estimates ``Z(x)``, which ``dar_weights`` leaves out: prompts with a large spread do not dominate, a constant
    added to a prompt's advantages (any baseline) changes nothing, and a weight is at most ``K``, so there is nothing to clip. The
    optimum is the same; the estimate is biased by O(1/K). ``alpha + beta -> 0`` is imitation of the best of K; equal scores
    on policy give ``w = 1``.

    Args:
        advantages: scores, centred or not, in units of reward, or of its standard deviation where divided by one, ``[B, K]``.
        reference_logps: ``log pi_ref(y|x)``, ``[B, K]``.
        sampling_logps: ``log pi_t(y|x)``, ``[B, K]``.
        alpha, beta: price of a nat of divergence from the reference, from the sampling policy, in the unit of ``advantages``.
        valid: bool, ``[B, K]``; ``K`` in the formula counts the valid ones. A lone valid response has weight 1: nothing was
            compared, so leave it out by ``comparable``.

    Returns:
        Non-negative weights without gradient, 0 where not valid, which sum to the number of valid responses, ``[B, K]``.

    Raises:
        ValueError: if ``alpha + beta`` is not positive, or at K = 1, where every weight would be 1 whatever the score.

    >>> advantages, same = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[-9.0, -9.0, -9.0]])
    >>> dar_group_weights(advantages, same, same, alpha=0.0, beta=1 / math.log(2))
    tensor([[0.2727, 0.5455, 2.1818]])
    """
    require_siblings(advantages, "dar_group_weights", "weights that need no group, such as ClippedWeights()")
    log_weights = dar_log_weights(advantages, reference_logps, sampling_logps, alpha=alpha, beta=beta)
    if valid is None:
        valid = torch.ones_like(log_weights, dtype=torch.bool)
    shares = log_weights.where(valid, -math.inf).softmax(-1)  # a row without a valid response is nan, which the next line leaves out
    return (shares * valid.sum(-1, keepdim=True)).where(valid, 0.0)


def dar_regression_targets(advantages: Tensor, reference_logps: Tensor, sampling_logps: Tensor, *, alpha: float, beta: float) -> Tensor:
    r"""Where Theorem 4.1 has the log-prob of every response, up to the same constant for all of a prompt.

    .. math:: \log \pi^* + \log Z(x) = \frac{\alpha \log\pi_{ref} + \beta \log\pi_t + A}{\alpha+\beta}

    Args:
        advantages, reference_logps, sampling_logps, alpha, beta: as of ``dar_weights``.

    Returns:
        Nats without gradient, ``[B, K]``.

    Raises:
        ValueError: if ``alpha + beta`` is not positive.

    >>> advantages, same = torch.tensor([[-1.0, 1.0]]), torch.tensor([[-9.0, -9.0]])
    >>> dar_regression_targets(advantages, same, same, alpha=0.1, beta=0.4)
    tensor([[-11.,  -7.]])
    """
    log_weights = dar_log_weights(advantages, reference_logps, sampling_logps, alpha=alpha, beta=beta)
    return full_precision(sampling_logps.detach()) + log_weights


def dar_regression_loss(logps: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    r"""How far log-probs are from their targets, apart from what a prompt's responses have in common.

    .. math:: \ell_k = \frac{K}{2(K-1)} (z_k - \bar z)^2, \qquad z = \log\pi_\theta - target

    The mean over k is the unbiased sample variance of z, halved. Its gradient at ``pi_theta = pi_t`` is that of leave-one-out
    REINFORCE on the regularised reward, divided by ``alpha + beta``. Source of the form: REBEL, https://arxiv.org/abs/2404.16767.

    Args:
        logps: ``log pi_theta(y|x)``, with gradient, ``[B, K]``.
        targets: of ``dar_regression_targets``, ``[B, K]``.
        valid: bool, ``[B, K]``; K in the formula counts the valid ones.

    Returns:
        One loss per response, 0 where not valid or alone, ``[B, K]``.

    Raises:
        ValueError: at K = 1, where there is nothing to compare.

    >>> dar_regression_loss(torch.tensor([[-8.0, -8.0]]), torch.tensor([[-11.0, -7.0]]), torch.tensor([[True, True]]))
    tensor([[4., 4.]])
    """
    count = valid.sum(-1, keepdim=True)
    return group_centred(logps - targets, valid).square() * count / (2 * (count - 1)).clamp(min=1)


def centred_weights(weights: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""How much more each sample should count than its siblings: an expected step of the same direction, with less noise.

    .. math:: c_k = w_k - \frac{1}{K-1} \sum_{j \ne k} w_j

    Weights near 1 imitate the policy's own samples, which moves nothing on average and a lot by chance. The siblings' mean is a
    control variate against that. At ``pi_theta = pi_t`` a score has mean zero, ``E[grad log pi_theta(y_k)] = 0``, and the siblings are
    drawn independently of ``y_k``: where their weights are functions of their own responses alone, what is subtracted is
    ``E[mean_j w_j] E[grad log pi_theta(y_k)] = 0`` exactly. A baseline or normaliser taken from the group lets ``y_k`` into its
    siblings' weights by 1/K, and that is the bias: O(1/K). After the first optimizer step ``pi_theta`` is no longer ``pi_t`` and
    the argument fails: one step per rollout.

    Args:
        weights: finite where valid, ``[B, K]``.
        valid: bool, ``[B, K]``.

    Returns:
        Weights of either sign without gradient, which sum to 0 over the valid responses of a prompt; 0 where not valid and
        where no sibling is, ``[B, K]``.

    Raises:
        ValueError: at K = 1, where there are no siblings.

    >>> centred_weights(torch.tensor([[0.5, 0.5, 2.0]]))
    tensor([[-0.7500, -0.7500,  1.5000]])
    """
    require_siblings(weights, "centred_weights", "weights that need no group, such as ClippedWeights()")
    return leave_one_out(weights.detach(), valid)


def is_clipped(log_weights: Tensor, max_weight: float) -> Tensor:
    """Which weights the ceiling changes. Decided on log weights: those of different weights that overflow still differ.

    Args:
        log_weights: of ``dar_log_weights``, ``[B, K]``.
        max_weight: the ceiling; infinity clips nothing.

    Returns:
        bool, False for a weight exactly at the ceiling, ``[B, K]``.

    Raises:
        ValueError: if ``max_weight`` is not positive.

    >>> is_clipped(torch.tensor([0.0, 1.0, 1000.0]), math.e)
    tensor([False, False,  True])
    """
    return log_weights > _log_ceiling(max_weight)


def effective_sample_size(weights: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""Which share of the samples does the work.

    .. math:: \Big( \sum_i w_i \Big)^2 \Big/ \Big( n \sum_i w_i^2 \Big)

    1 if all weights are equal, ``1/n`` if one sample has it all, 0 if no weight is positive.

    Args:
        weights: non-negative, of any scale, ``[B, K]``.
        valid: bool, ``[B, K]``; ``n`` counts the valid ones.

    Returns:
        A share without gradient, ``[]``.

    >>> effective_sample_size(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([True, True, True, True]))
    tensor(0.5000)
    """
    wide = full_precision(weights.detach())
    valid = torch.ones_like(wide, dtype=torch.bool) if valid is None else valid
    clean = wide.where(valid, 0.0)
    largest = clean.amax() if clean.numel() else clean.sum()
    relative = clean / largest.where(largest > 0, 1.0)  # squares of weights as they come could overflow
    squares = relative.square().sum() * valid.sum()
    return relative.sum().square() / squares.where(squares > 0, 1.0)


def _log_ceiling(max_weight: float) -> float:
    if not max_weight > 0:
        raise ValueError(f"max_weight must be positive (infinity for no ceiling), got {max_weight}.")
    return math.log(max_weight)
