"""Log-probabilities of tokens and of whole responses, in nats and in at least float32 whatever the model computes in."""

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK, FEWEST = 1 << 20, 64  # logits at a time, which a cache holds, but at least so many rows


def full_precision(x: Tensor) -> Tensor:
    """float64 stays, everything else (bfloat16, integers, bool) becomes float32: the precision in which this package computes."""
    return x if x.dtype == torch.float64 else x.float()


def vocabulary_logps(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs of every token that could come next, from logits ``[..., V]`` of any float dtype to nats ``[..., V]``.

    Raises:
        ValueError: if ``temperature`` is not positive (greedy decoding has no log-probabilities).

    >>> vocabulary_logps(torch.tensor([3.0, 1.0]).log()).exp()
    tensor([0.7500, 0.2500])
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    return _scaled(logits, temperature).log_softmax(-1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = full_precision(logits)
    return logits if temperature == 1 else logits / temperature  # a division by 1 would copy them all


def token_logps(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    r"""How likely the policy found each token that was drawn.

    .. math:: \log \pi(v_t) = h_{t, v_t} / c - \log \sum_u e^{h_{t, u} / c}

    with logits ``h`` and temperature ``c``. The same ``c`` must serve sampling, training and reference, or else the ratios of
    policies that are built from these are not the ratios of what was sampled. A logit of ``-inf`` is a token that cannot occur.

    Args:
        logits: already shifted, row ``t`` predicts ``tokens[..., t]``; any float dtype, ``[..., V]``.
        tokens: ids in ``[0, V)``, padding included, ``[...]``.
        temperature: divides the logits.

    Returns:
        Nats, never positive up to rounding, float32 (float64 for float64 logits), ``[...]``.

    Raises:
        ValueError: if the shapes do not match, or ``temperature`` is not positive.

    >>> token_logps(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2])).exp()
    tensor([0.2500])
    >>> token_logps(torch.tensor([[2.0, 0.0]]).log(), torch.tensor([0]), temperature=0.5).exp()  # never drawn otherwise
    tensor([1.])
    """
    if logits.shape[:-1] != tokens.shape:  # gather alone would accept fewer tokens than rows, and misalign them
        raise ValueError(
            f"There must be one row of logits for every token: logits [..., V] are {tuple(logits.shape)}, tokens [...] are "
            f"{tuple(tokens.shape)}. Drop the last row of logits and the first token of the sequence before the call."
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    said: Any = _TokenLogps.apply(logits.flatten(0, -2), tokens.flatten(), temperature)
    return said.view(tokens.shape)


@final
class _TokenLogps(torch.autograd.Function):
    """Some rows at a time, and again for the gradient: beside it, and the logits, there is never anything of their size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        """Logits ``[M, V]`` and tokens ``[M]`` to nats ``[M]``."""
        ctx.save_for_backward(logits, tokens)
        ctx.temperature = temperature
        # Not gather - logsumexp: the difference of two large numbers would lose what all logits have in common.
        said = [_gathered(vocabulary_logps(logits[some], temperature), tokens[some]) for some in _parts(logits)]
        return torch.cat(said) if said else full_precision(logits.new_empty(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of row t: (1 at the token, less the probabilities) / temperature."""
        logits, tokens = ctx.saved_tensors
        scales, found = (gradients[0] / ctx.temperature).unsqueeze(-1), torch.empty_like(logits)
        exact = full_precision(found[:0]).dtype == found.dtype  # written where it stays: fresh memory would cost more than the arithmetic
        for some in _parts(logits):
            part = torch.softmax(_scaled(logits[some], ctx.temperature), -1, out=found[some] if exact else None)
            part.mul_(-scales[some]).scatter_add_(-1, tokens[some].unsqueeze(-1), scales[some])
            if not exact:
                found[some] = part
        return found, None, None


def _gathered(table: Tensor, tokens: Tensor) -> Tensor:
    return table.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _parts(logits: Tensor) -> Iterator[slice]:
    step = max(CHUNK // logits.shape[-1], FEWEST)
    return (slice(start, start + step) for start in range(0, len(logits), step))


def response_logps(token_logps: Tensor, mask: Tensor) -> Tensor:
    r"""``log pi(y|x)``: the sum over the response's own tokens, EOS included, never their mean.

    A mean would make ratios of policies and fixed points depend on length. What lies outside the mask may be anything, NaN
    included: it is selected away, not multiplied by 0.

    Args:
        token_logps: nats, ``[..., T]``.
        mask: bool, True for the tokens that count, ``[..., T]``.

    Returns:
        Nats, float32 (float64 for float64 input), ``[...]``.

    >>> response_logps(torch.tensor([-1.0, -2.0, float("nan")]), torch.tensor([True, True, False]))
    tensor(-3.)
    """
    return full_precision(token_logps).where(mask, 0.0).sum(-1)
