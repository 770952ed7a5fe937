"""Sampling noise as a pure function of (seed, stream, rollout, prompt id, occurrence, k, step, token).

A hash in wrapping 64-bit integer arithmetic: the same bits on any device, no state to save, any step of any row directly. Read
by Gumbel-max, a token depends on the layout of the computation only where two perturbed logits tie to rounding error, about
one token in 10^6 in float32; an inverse CDF of one uniform per step would flip a hundred times as many.
"""

import hashlib

import torch
from torch import Tensor

from lit_align.types import Stream

_BITS = 1 << 64


def row_keys(stream: Stream, prompt_ids: Tensor, occurrences: Tensor, responses_per_prompt: int) -> Tensor:
    """One int64 key for every response, ``[B, K]``, from ``prompt_ids`` and ``occurrences`` ``[B]``."""
    start = int.from_bytes(hashlib.blake2b(f"{stream.seed}/{stream.name}/{stream.rollout}".encode(), digest_size=8).digest(), "big")
    key = _mix(prompt_ids + _signed(start))  # [B]
    key = _mix(key + occurrences)
    return _mix(key.unsqueeze(-1) + torch.arange(responses_per_prompt, device=key.device))


def gumbel(keys: Tensor, step: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise of one decoding step, ``[N]`` keys to ``[N, V]`` in float32.

    ``-log(E)`` with ``E = -log1p(-u)`` and ``u`` of 31 bits: precise where ``E`` is small, which is where winners are.
    """
    tokens = torch.arange(vocabulary, device=keys.device)
    bits = _mix(_mix(keys + step).unsqueeze(-1) + tokens)
    # float() rounds the largest 31-bit numbers up to 2^31; times this they stay below 1, and no token's noise is infinite.
    uniform = bits.bitwise_right_shift_(33).bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_((1 - 2.0**-24) * 2.0**-31)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _signed(value: int) -> int:
    """The int64 that has the bits of ``value`` modulo 2^64."""
    value %= _BITS
    return value - _BITS if value >= _BITS // 2 else value


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser. int64 multiplication wraps; the arithmetic right shift is masked to a logical one."""
    x = x + _signed(0x9E3779B97F4A7C15)  # a new tensor; from here on in place, as fresh memory would cost more than the arithmetic
    x.bitwise_xor_((x >> 30).bitwise_and_(0x3FFFFFFFF)).mul_(_signed(0xBF58476D1CE4E5B9))
    x.bitwise_xor_((x >> 27).bitwise_and_(0x1FFFFFFFFF)).mul_(_signed(0x94D049BB133111EB))
    return x.bitwise_xor_((x >> 31).bitwise_and_(0x1FFFFFFFF))
