"""Before anything is timed: what is fast is also right on this device."""

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.case import Shape, write_model
from lit_align.generation import CacheSampler
from lit_align.generation.noise import gumbel, row_keys
from lit_align.models import CausalPolicy
from lit_align.models.decoding import PaddedRows, RowCache
from lit_align.models.static import StaticRows
from lit_align.types import EncodedPrompt, Prompt, Rollouts, Stream

SMALL = Shape(64, 128, 2, 4, 2, tied=True, lora=False, vocabulary=512)
SPREAD = 0.3  # of its weights: texts differ then, and end at different lengths
PROMPTS, K, TOKENS = 12, 4, 160  # more tokens than there is room for at first
TIES, TIE = 1, 1e-4  # rows that may be another draw, and how near their two best tokens have to be then, in perturbed logits
GAP = 1e-3  # nats of a token of the others
STREAM = Stream(0, "gpu", 0)


class WrongError(Exception):
    """Something is fast and wrong."""


def check(device: torch.device) -> dict[str, Any]:
    """Samples by replayed steps and by plain ones, and the layouts that the probe finds, of a small model in float32.

    Raises:
        WrongError: if samples differ, or a GPU does not replay steps.
    """
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), SMALL, 256, device, torch.float32, SPREAD)
        policy = CausalPolicy(name).to(device)
    policy.eos_ids = frozenset(range(8))  # so that rows end on the way
    replayed, plain = (drawn(policy, way, device) for way in (StaticRows, PaddedRows))
    same, gap = compared(replayed, plain)
    rows, lengths = same.numel(), len(plain.response_mask.sum(-1).unique())
    others = (~same).nonzero().tolist()
    apart = max((lead(policy, plain, parting(replayed, plain, b, k), b, k) for b, k in others[: TIES + 1]), default=0.0)
    if len(others) > TIES or apart > TIE or gap > GAP:
        raise WrongError(
            f"Replayed steps drew other texts than plain ones in {len(others)} of {rows} rows (the best token by {apart:.2g} there), and "
            f"were {gap:.2g} nats off in the others."
        )
    if lengths < 2:
        raise WrongError("All texts are of one length: that rows may end on the way was not tried.")
    if device.type == "cuda" and policy.way is not StaticRows:
        raise WrongError(f"Steps of a Qwen2 are not replayed on this GPU but read by {policy.way.__name__}; the log says why.")
    policy.train()
    policy.choose_layouts()
    return {"rows": rows, "other_rows": len(others), "nats": gap, "way": policy.way.__name__, "layouts": policy.layouts}


def drawn(policy: CausalPolicy, way: type[RowCache], device: torch.device) -> Rollouts:
    """The same noise, whichever way the model is read."""
    prompts = [EncodedPrompt(Prompt(i, ""), (20 + i,) * (1 + 3 * i)) for i in range(PROMPTS)]

    def read(tokens: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        cache = way(policy.model) if cache is None else cache
        return cache.read(tokens, mask).float(), cache

    with patch.object(policy, "next_token_logits", read), policy.inference():
        return CacheSampler(TOKENS).sample(policy, prompts, K, STREAM)


def parting(one: Rollouts, other: Rollouts, b: int, k: int) -> int:
    """At which token two texts that are not the same part."""
    pairs = zip(one.response_tokens[b, k].tolist(), other.response_tokens[b, k].tolist(), strict=False)
    return next(step for step, (a, c) in enumerate(pairs) if a != c)


@torch.no_grad()
def lead(policy: CausalPolicy, drawn: Rollouts, step: int, b: int, k: int) -> float:
    """By how much, in perturbed logits, the best token of a row was ahead of the second one at this step, read alone and at once."""
    read = torch.cat([drawn.prompt_tokens[b][drawn.prompt_mask[b]], drawn.response_tokens[b, k, :step]])
    logits = policy.model(input_ids=read.unsqueeze(0)).logits[0, -1].float()
    ids = torch.tensor([prompt.id for prompt in drawn.prompts], device=logits.device)
    keys = row_keys(STREAM, ids, drawn.occurrences, K)[b, k].reshape(1)
    best, second = (logits + gumbel(keys, step, len(logits))[0]).topk(2).values.tolist()
    return best - second


def compared(one: Rollouts, other: Rollouts) -> tuple[Tensor, float]:
    """Which rows are the same ``[B, K]``, and the largest difference of a log-prob of those, in nats."""
    length = min(one.response_tokens.shape[-1], other.response_tokens.shape[-1])
    same = (one.response_mask.sum(-1) == other.response_mask.sum(-1)) & (
        (one.response_tokens[..., :length] == other.response_tokens[..., :length]).all(-1)
    )
    gaps = (one.sampling_logps[..., :length] - other.sampling_logps[..., :length]).abs()
    return same, float(gaps[same].max()) if bool(same.any()) else 0.0
