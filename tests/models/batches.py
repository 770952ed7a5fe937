"""Batches made by hand, without the library's own padding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_align.types import AlignmentBatch, Prompt, Rollouts

Tokens = Sequence[int]


def make_rollouts(
    prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]], pad_id: int, extra: tuple[int, int] = (0, 0)
) -> Rollouts:
    """Prompts padded on the left, their K responses on the right, each by ``extra`` columns more than needed."""
    width = max(map(len, prompts)) + extra[0]
    length = max(len(response) for group in responses for response in group) + extra[1]
    response_mask = torch.tensor([[[i < len(response) for i in range(length)] for response in group] for group in responses])
    return Rollouts(
        prompts=tuple(Prompt(id=100 + i, content="") for i in range(len(prompts))),
        occurrences=torch.zeros(len(prompts), dtype=torch.long),
        prompt_tokens=torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]),
        prompt_mask=torch.tensor([[i >= width - len(prompt) for i in range(width)] for prompt in prompts]),
        response_tokens=torch.tensor([[[*response, *[pad_id] * (length - len(response))] for response in group] for group in responses]),
        response_mask=response_mask,
        loss_mask=response_mask,
        sampling_logps=torch.zeros(response_mask.shape),
        finished=torch.ones(response_mask.shape[:2], dtype=torch.bool),
        texts=tuple(("",) * len(group) for group in responses),
        policy_version=0,
    )


def as_batch(rollouts: Rollouts, **options: Any) -> AlignmentBatch:
    """What an algorithm would get: all scores 0 and valid, unless ``options`` say otherwise."""
    ids = torch.tensor([prompt.id for prompt in rollouts.prompts])
    defaults = {
        "prompt_ids": ids,
        "scores": torch.zeros(rollouts.finished.shape),
        "valid": torch.ones_like(rollouts.finished),
        "optimizer_steps": torch.zeros_like(ids),
    }
    names = ("prompt_tokens", "prompt_mask", "response_tokens", "response_mask", "loss_mask", "finished", "sampling_logps")
    return AlignmentBatch(**({name: getattr(rollouts, name) for name in names} | defaults | options))


@torch.no_grad()
def plain_logps(model: Any, prompt: Tokens, response: Tokens, temperature: float = 1.0) -> Tensor:
    """Log-probs of the response's tokens by one row without padding, mask, positions or cache: ``[len(response)]``."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)].float()
