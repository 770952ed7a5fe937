"""A batched sampler with a key-value cache for any Hugging Face causal LM."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from lit_align.functional.logprobs import token_logps
from lit_align.generation.noise import gumbel, row_keys
from lit_align.generation.stopping import StopStrings, checked_stop
from lit_align.types import EncodedPrompt, Policy, Rollouts, Sampler, Stream


@final
class CacheSampler(Sampler):
    """Reads each prompt once, decodes its K responses together, drops rows as they finish, and keeps the log-probs it drew from.

    Args:
        max_new_tokens: longest response, EOS included. A response that reaches it without an end is not ``finished``.
        greedy: the likeliest token instead of a drawn one: for evaluation, never for training.
        stop: strings that end a response too. The tokens up to and including the one that completes the string are the response's,
            for masks and log-probs; its text ends before the string. A special token may be named, such as ``<|im_end|>``.

    Raises:
        UserError: if ``stop`` is no list of texts, or one of them is empty; when sampling, if one mixes special tokens and text.
    """

    def __init__(self, max_new_tokens: int = 128, greedy: bool = False, stop: list[str] | None = None) -> None:
        self.max_new_tokens, self.greedy, self.stop = max_new_tokens, greedy, checked_stop(stop or [])

    def sample(self, policy: Policy, prompts: Sequence[EncodedPrompt], responses_per_prompt: int, stream: Stream) -> Rollouts:
        """Draw the responses; everything returned is on the policy's device."""
        device, k = next(policy.parameters()).device, responses_per_prompt
        prompt_tokens, prompt_mask = _left_padded(prompts, policy.pad_id, device)  # [B, P]
        ids = torch.tensor([p.prompt.id for p in prompts], device=device)
        occurrences = torch.tensor([p.occurrence for p in prompts], device=device)
        keys = row_keys(stream, ids, occurrences, k).flatten()  # [N], N = B * K
        stops = StopStrings(self.stop, policy, len(keys))
        ends = torch.tensor(sorted(policy.eos_ids | stops.tokens), device=device)

        tokens = torch.full((len(keys), self.max_new_tokens), policy.pad_id, device=device)  # [N, T]
        mask, logps = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros(tokens.shape, dtype=torch.float32, device=device)
        finished = torch.zeros(len(keys), dtype=torch.bool, device=device)

        logits, cache = policy.next_token_logits(prompt_tokens, prompt_mask)
        rows = torch.arange(len(keys), device=device)  # those still being written
        cache.reorder_cache(rows // k)
        logits, seen = logits[rows // k], prompt_mask[rows // k]
        for step in range(self.max_new_tokens):
            perturbed = logits if self.greedy else logits + gumbel(keys[rows], step, logits.shape[-1])
            drawn = perturbed.argmax(-1)
            tokens[rows, step], mask[rows, step] = drawn, True
            logps[rows, step] = token_logps(logits, drawn)
            ended = torch.isin(drawn, ends) | stops.ended(rows, drawn)
            finished[rows[ended]] = True
            if step + 1 == self.max_new_tokens or ended.all():
                break
            if ended.any():
                going = (~ended).nonzero().squeeze(-1)
                cache.reorder_cache(going)
                rows, drawn, seen = rows[going], drawn[going], seen[going]
            seen = torch.cat([seen, seen.new_ones(len(rows), 1)], 1)
            logits, cache = policy.next_token_logits(drawn.unsqueeze(-1), seen, cache)

        longest = int(mask.any(0).sum())
        tokens, mask, logps = (x[:, :longest].reshape(len(prompts), k, longest) for x in (tokens, mask, logps))
        written = zip(tokens.flatten(0, 1), mask.flatten(0, 1), strict=True)
        lines = [stops.cut(policy.decode(row[keep].tolist())) for row, keep in written]
        return Rollouts(
            prompts=tuple(p.prompt for p in prompts),
            occurrences=occurrences,
            prompt_tokens=prompt_tokens,
            prompt_mask=prompt_mask,
            response_tokens=tokens,
            response_mask=mask,
            loss_mask=mask,
            sampling_logps=logps,
            finished=finished.view(len(prompts), k),
            texts=tuple(tuple(lines[i : i + k]) for i in range(0, len(lines), k)),
            policy_version=stream.rollout,
        )


def _left_padded(prompts: Sequence[EncodedPrompt], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and mask ``[B, P]``."""
    width = max(len(p.tokens) for p in prompts)
    tokens = [[pad_id] * (width - len(p.tokens)) + list(p.tokens) for p in prompts]
    mask = [[False] * (width - len(p.tokens)) + [True] * len(p.tokens) for p in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
