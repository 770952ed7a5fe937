"""An engine for tests: another policy in this process, whose weights are off by a known share of each."""

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from lit_align.generation import Engine, Written
from lit_align.models import CausalPolicy


@final
class PolicyEngine(Engine):
    """``loads`` counts how often it was sent weights, ``seeds`` are all that it was asked for. What is 0 stays 0: norms of layers would
    make much of a little there."""

    def __init__(self, path: str, noise: float = 0.0) -> None:
        self.policy, self.noise = CausalPolicy(path).eval().requires_grad_(False), noise
        self.loads, self.closed, self.seeds = 0, 0, list[int]()

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        generator = torch.Generator().manual_seed(0)
        own = dict(self.policy.model.named_parameters())
        for name, weight in weights:
            own.pop(name).copy_(weight * (1 + self.noise * torch.randn(weight.shape, generator=generator)))
        assert not own, "all of them"
        self.loads += 1

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        stop_ids: Sequence[int],
    ) -> list[list[Written]]:
        self.policy.temperature = temperature
        self.seeds += [seed for row in seeds for seed in row]
        return [[self._write(prompt, seed, max_new_tokens, stop_ids) for seed in row] for prompt, row in zip(prompts, seeds, strict=True)]

    def close(self) -> None:
        self.closed += 1

    def _write(self, prompt: Sequence[int], seed: int, longest: int, stop_ids: Sequence[int]) -> Written:
        generator = torch.Generator().manual_seed(seed)
        tokens, logps = list[int](), list[float]()
        read, seen, cache = torch.tensor([list(prompt)]), torch.ones(1, len(prompt), dtype=torch.bool), None
        while len(tokens) < longest and not (tokens and tokens[-1] in stop_ids):
            logits, cache = self.policy.next_token_logits(read, seen, cache)
            said = logits[0].log_softmax(-1)
            drawn = int(torch.multinomial(said.exp(), 1, generator=generator))
            tokens.append(drawn)
            logps.append(float(said[drawn]))
            read, seen = torch.tensor([[drawn]]), torch.cat([seen, seen.new_ones(1, 1)], 1)
        return Written(tokens, logps, finished=tokens[-1] in stop_ids)
