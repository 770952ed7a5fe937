r"""Credit for tokens: what each of them was worth more than a critic had expected.

Axes: ``B`` prompts, ``K`` responses, ``T`` tokens. ``rewards`` are of tokens, ``values`` what the critic expects before each of them, in
units of reward; ``mask`` (bool) says which tokens are the response's own. Others, wherever they stand, are passed over: the token that
follows is the next one in the mask, and after the last one nothing is expected. What they hold never enters the arithmetic.
"""

import torch
from torch import Tensor

from lit_align.functional.distributed import global_mean, global_std
from lit_align.functional.logprobs import full_precision


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation: a mean over how far ahead rewards are counted before the critic is believed.

    .. math:: A_t = \delta_t + \gamma \lambda A_{t+1}, \qquad \delta_t = r_t + \gamma V_{t+1} - V_t

    ``lam = 0`` is the one-step error :math:`\delta_t`; ``lam = 1``, the return minus :math:`V_t`, with an unbiased policy gradient whatever
    the critic. Source: https://arxiv.org/abs/1506.02438, equation 16.

    Args:
        rewards, values: ``[..., T]``.
        mask: bool, ``[..., T]``.
        gamma: worth of a reward one token later, from 0 to 1.
        lam: weight of looking one token further, from 0 to 1.

    Returns:
        Advantages, and returns :math:`A_t + V_t` for the critic to learn, both in units of reward, without gradient, float32 (float64 for
        float64 rewards), 0 outside the mask, ``[..., T]``.

    >>> gae(torch.tensor([0.0, 2.0]), torch.tensor([0.5, 1.0]), torch.tensor([True, True]), gamma=1.0, lam=1.0)
    (tensor([1.5000, 1.0000]), tensor([2., 2.]))
    """
    rewards, values = full_precision(rewards.detach()), full_precision(values.detach())
    advantage = expected = torch.zeros_like(rewards[..., 0])  # of the token that follows
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[-1])):
        own = mask[..., t]
        surprise = rewards[..., t] + gamma * expected - values[..., t]
        advantage = (surprise + gamma * lam * advantage).where(own, advantage)
        expected = values[..., t].where(own, expected)
        advantages[..., t] = advantage.where(own, 0.0)
    return advantages, (advantages + values).where(mask, 0.0)


def macro_gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float, length: int) -> tuple[Tensor, Tensor]:
    r"""The same over macro actions: runs of ``length`` tokens that share one advantage, so that credit takes fewer steps back.

    The reward of a run is the sum of its tokens', so that none is lost, its value the mean of theirs; the last run may be shorter.
    ``length = 1`` is `gae`. From ``length >= T`` on a response is one action: its rewards' sum minus its tokens' mean value. Runs are
    counted in tokens of the mask. Source: MA-RLHF with n-gram termination, https://arxiv.org/abs/2410.02743.

    Args:
        rewards, values, mask, gamma, lam: as of `gae`; ``gamma`` is per run.
        length: tokens of a run, at least 1.

    Returns:
        As `gae`: each token has the advantage and the return of its run, ``[..., T]``.

    >>> macro_gae(torch.tensor([0.0, 1.0, 4.0]), torch.tensor([1.0, 3.0, 2.0]), torch.ones(3).bool(), gamma=1.0, lam=1.0, length=2)
    (tensor([3., 3., 2.]), tensor([5., 5., 4.]))
    """
    runs = (mask.long().cumsum(-1) - 1).clamp(min=0) // length  # [..., T]
    shape = (*mask.shape[:-1], -(-mask.shape[-1] // length))

    def total(x: Tensor) -> Tensor:
        clean = full_precision(x.detach()).where(mask, 0.0)
        return clean.new_zeros(shape).scatter_add(-1, runs, clean)  # [..., runs]

    tokens = total(mask)
    advantages, returns = gae(total(rewards), total(values) / tokens.clamp(min=1), tokens > 0, gamma=gamma, lam=lam)
    return advantages.gather(-1, runs).where(mask, 0.0), returns.gather(-1, runs).where(mask, 0.0)


def token_rewards(scores: Tensor, token_kl: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    r"""The score at a response's last token, and at every token the price of its divergence.

    .. math:: r_t = s \, [t = \text{last}] - \beta \log \frac{\pi_t(y_t)}{\pi_{ref}(y_t)}

    They sum to :math:`s - \beta \log(\pi_t(y) / \pi_{ref}(y))`. A response without a token has none. Source: N implementation details of
    RLHF with PPO, https://arxiv.org/abs/2403.17031.

    Args:
        scores: in units of reward, ``[..., K]``.
        token_kl: ``log pi_t - log pi_ref`` in nats, ``[..., K, T]``.
        mask: bool, ``[..., K, T]``.
        beta: price of a nat, in units of reward.

    Returns:
        float32 (float64 for float64 scores), 0 outside the mask, ``[..., K, T]``.

    >>> token_rewards(torch.tensor([3.0]), torch.tensor([[1.0, -2.0, 9.0]]), torch.tensor([[True, True, False]]), beta=0.5)
    tensor([[-0.5000,  4.0000,  0.0000]])
    """
    last = mask & (mask.long().cumsum(-1) == mask.sum(-1, keepdim=True))
    return full_precision(scores).unsqueeze(-1).where(last, 0.0) - beta * full_precision(token_kl).where(mask, 0.0)


def whitened(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    r"""Divided by their standard deviation over the mask on all ranks, around a mean that becomes 0 or stays where it is.

    .. math:: \frac{x - \bar x}{\max(s, 10^{-4})} + \bar x \, [\text{not shift\_mean}]

    A collective, see `lit_align.functional.distributed`. With its mean moved, a reward of every token would change how long a response
    should be. ``s`` is the population's. Source: https://arxiv.org/abs/2403.17031.

    Args:
        values: anything outside the mask, any shape.
        mask: bool, of the same shape.
        shift_mean: whether the mean becomes 0.

    Returns:
        float32 (float64 for float64 values) without gradient, 0 outside the mask, of the same shape.

    >>> whitened(torch.tensor([1.0, 5.0, float("nan")]), torch.tensor([True, True, False]), shift_mean=False)
    tensor([2., 4., 0.])
    """
    mean, deviation = global_mean(values, mask), global_std(values, mask).clamp(min=1e-4)
    centred = (full_precision(values.detach()) - mean) / deviation
    return (centred if shift_mean else centred + mean).where(mask, 0.0)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    r"""How wrong the critic is, or would be had it moved by no more than ``clip`` since the rollout: whichever is worse.

    .. math:: \tfrac12 \max\big( (V - R)^2, (V_{old} + clip(V - V_{old}, -c, c) - R)^2 \big)

    So a value that has moved further towards its return than ``clip`` gets no more gradient. ``clip = inf`` is half the squared error.
    Source: https://arxiv.org/abs/2403.17031, as in OpenAI's baselines.

    Args:
        values: of the critic as it is, with gradient, ``[...]``.
        old_values: of the critic at the rollout, ``[...]``.
        returns: what it should have said, ``[...]``.
        clip: in units of reward.

    Returns:
        The loss of every token, and whether clipping made it larger, bool, ``[...]`` both.

    >>> clipped_value_loss(torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]), clip=0.5)
    (tensor([0.1250, 0.4050]), tensor([ True, False]))
    """
    values = full_precision(values)
    held = old_values + (values - old_values).clamp(-clip, clip)
    free, bounded = (values - returns).square(), (held - returns).square()
    return torch.maximum(free, bounded) / 2, bounded > free
