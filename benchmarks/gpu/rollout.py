"""Sampling beside ``generate`` of transformers, and beside what memory allows."""

from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.case import RESPONSES, Case
from benchmarks.gpu.timing import Clock, Roof
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.models.faster import standing_way
from lit_align.types import EncodedPrompt, Prompt, Stream

TOKEN = 40  # of all prompts
K = RESPONSES["rloo"]


def time_rollout(case: Case, folder: Path, clock: Clock, device: torch.device) -> dict[str, Any]:
    """Both samplers in turns, the first round of few tokens and not counted."""
    policy = CausalPolicy(str(folder), dtype="bfloat16").to(device)
    policy.eos_ids = frozenset({policy.model.config.vocab_size})
    prompts = [EncodedPrompt(Prompt(i, ""), (TOKEN,) * case.prompt_tokens) for i in range(case.sequences // K)]
    asked = torch.full((case.sequences, case.prompt_tokens), TOKEN, device=device)

    def ours(tokens: int) -> None:
        said = CacheSampler(max_new_tokens=tokens).sample(policy, prompts, K, Stream(0, "gpu", 0))
        assert said.response_mask.all(), "lengths were forced"

    def theirs(tokens: int) -> None:
        forced = {"do_sample": True, "top_k": 0, "min_new_tokens": tokens, "max_new_tokens": tokens}
        policy.model.generate(input_ids=asked, attention_mask=torch.ones_like(asked), **forced)

    sides = {"ours": ours, "generate": theirs}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    peaks: dict[str, float | None] = {}
    with policy.inference():
        for work in sides.values():
            work(8)
        while len(seconds["generate"]) < case.repeats and not (clock.over and seconds["generate"]):
            for side, work in sides.items():
                clock.forget()
                seconds[side].append(clock.seconds(lambda work=work: work(case.tokens)))
                peaks[side] = clock.peak
    roof = roof_of(policy, case)
    rates = {side: case.sequences * case.tokens / median(taken) for side, taken in seconds.items()}
    ratios = [slow / fast for slow, fast in zip(seconds["generate"], seconds["ours"], strict=True)]
    return {
        "way": standing_way(policy.way, policy.model).__name__,
        "tokens_per_second": rates,
        "of_the_roof": {side: rate / roof for side, rate in rates.items()},
        "roof": roof,
        "ratio": median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "peak_gib": peaks,
        "n": len(ratios),
    }


def roof_of(policy: CausalPolicy, case: Case) -> float:
    """Tokens a second at which reading weights and caches takes all the time."""
    config = policy.model.config
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    read = sum(p.numel() for p in policy.parameters()) - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)
    return Roof(2 * read, cache, case.bandwidth).tokens_per_second(case.sequences, case.prompt_tokens, case.tokens)
