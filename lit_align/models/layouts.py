"""How the responses of a batch become the rows of a forward: every layout is a pure plan, and a cost model picks one.

``N`` rows of ``S`` slots; ``M`` response tokens, in the order of the response mask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lit_align.models.positions import positions_of
from lit_align.types import AlignmentBatch, Rollouts


@final
@dataclass(frozen=True, slots=True)
class Texts:
    """Prompts, padded on the left, and their responses, padded on the right. A response without a token takes no slot."""

    prompt_tokens: Tensor  # [B, P]
    prompt_mask: Tensor  # [B, P] bool
    response_tokens: Tensor  # [B, K, T]
    response_mask: Tensor  # [B, K, T] bool

    @classmethod
    def of(cls, batch: AlignmentBatch | Rollouts) -> "Texts":
        """Those of a batch."""
        return cls(batch.prompt_tokens, batch.prompt_mask, batch.response_tokens, batch.response_mask)

    def placed(self, values: Tensor) -> Tensor:
        """What was computed for every response token ``[M, ...]`` at its place, 0 elsewhere, ``[B, K, T, ...]``."""
        mask = self.response_mask
        return values.new_zeros(*mask.shape, *values.shape[1:]).index_put((mask,), values)

    def with_one(self) -> "Texts":
        """With the first token of the first response, whether it has one or not: sharded weights need every rank in every forward."""
        mask = self.response_mask.clone()
        mask[0, 0, 0] = True
        return replace(self, response_mask=mask)

    @property
    def lengths(self) -> list[tuple[int, list[int]]]:
        """Of each prompt that has a response, and of its responses, in tokens."""
        responses = self.response_mask.sum(-1)  # [B, K]
        both = torch.cat([self.prompt_mask.sum(-1, keepdim=True), responses], 1).tolist()  # one wait for the device
        return [(prompt, [r for r in group if r]) for prompt, *group in both if any(group)]


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of one forward, and where in them each response token is predicted.

    Without ``positions`` a row is read from 0 on, without ``mask`` it is padded at its end only. ``branches`` are 0 in a prompt, k + 1 in
    a response and -1 in padding: a token sees its prompt and its own branch. Before row n stands row ``owners[n]`` of the ``prefix``.
    """

    tokens: Tensor  # [N, S]
    predicting: Tensor  # [M] slots of all rows, counted row by row; of a prefix, of which no logits are wanted, any
    positions: Tensor | None = None  # [N, S]
    mask: Tensor | None = None  # bool, [N, S] or, with the prefix's, [N, S' + S]
    branches: Tensor | None = None  # [N, S]
    prefix: "Plan | None" = None
    owners: Tensor | None = None  # [N]


def rows_plan(texts: Texts) -> Plan:
    """One row per response: its prompt, itself, padding. Every causal model reads it as it reads a text alone."""
    row, column = texts.response_mask.any(-1).nonzero(as_tuple=True)
    spoken = texts.response_mask[row, column]  # [N, T]
    joint = torch.cat([texts.prompt_tokens[row], texts.response_tokens[row, column]], 1)
    prompt = texts.prompt_mask.sum(-1)[row]
    length = prompt + spoken.sum(-1) - 1  # the last token predicts nothing
    width = int(length.max())
    # Padding repeats a token of the text: it is read by nobody, and of pad tokens without a mask some models warn.
    place = torch.minimum(torch.arange(width, device=row.device), length[:, None] - 1)
    return Plan(
        tokens=joint.gather(1, texts.prompt_tokens.shape[1] - prompt[:, None] + place),
        predicting=_grid(len(row), width, spoken, prompt - 1)[spoken],
    )


def prefix_plan(texts: Texts) -> Plan:
    """Every prompt once but for its last token, with a cache; then one row per response, which begins with that token."""
    asked, row, column = _present(texts)
    length = int(texts.prompt_mask[asked].sum(-1).max())
    before = slice(texts.prompt_tokens.shape[1] - length, -1)
    mask = texts.prompt_mask[asked, before]
    first = Plan(texts.prompt_tokens[asked, before], row.new_zeros(1), positions_of(mask), mask)
    owners = torch.searchsorted(asked, row)
    spoken = texts.response_mask[row, column]  # [N, T]
    spoken = spoken[:, : int(spoken.sum(-1).max())]
    width = spoken.shape[1]
    tokens = torch.cat([texts.prompt_tokens[row, -1:], texts.response_tokens[row, column, : width - 1]], 1)
    seen = texts.prompt_mask[row].sum(-1, keepdim=True) - 1
    return Plan(
        tokens=tokens,
        predicting=_grid(len(row), width, spoken, torch.zeros_like(row))[spoken],
        positions=seen + torch.arange(width, device=row.device),
        mask=torch.cat([mask[owners], spoken], 1),
        prefix=first,
        owners=owners,
    )


def tree_plan(texts: Texts) -> Plan:
    """One row per prompt: the prompt once, then each response but for its last token, then padding up to the longest row."""
    asked = texts.response_mask.any(-1).any(-1).nonzero().squeeze(-1)
    prompt_mask, spoken = texts.prompt_mask[asked], texts.response_mask[asked]
    prompt = prompt_mask.sum(-1)  # [N]
    slots = (spoken.sum(-1) - 1).clamp(min=0)  # [N, K]
    start = prompt[:, None] + slots.cumsum(1) - slots
    width = int((prompt + slots.sum(1)).max())
    tokens, positions, branches = (prompt.new_full((len(asked), width), value) for value in (0, 0, -1))
    place = _grid(len(asked), width, prompt_mask, prompt - prompt_mask.shape[1])[prompt_mask]
    tokens.view(-1)[place] = texts.prompt_tokens[asked][prompt_mask]
    positions.view(-1)[place] = positions_of(prompt_mask)[prompt_mask]
    branches.view(-1)[place] = 0
    inner = torch.arange(spoken.shape[-1], device=prompt.device) < slots[..., None]  # [N, K, T]
    n, k, t = inner.nonzero(as_tuple=True)
    place = n * width + start[n, k] + t
    tokens.view(-1)[place] = texts.response_tokens[asked][inner]
    positions.view(-1)[place] = prompt[n] + t
    branches.view(-1)[place] = k + 1
    n, k, t = spoken.nonzero(as_tuple=True)
    return Plan(
        tokens=tokens,
        predicting=n * width + torch.where(t == 0, prompt[n], start[n, k] + t) - 1,
        positions=positions,
        branches=branches,
    )


LAYOUTS: dict[str, Callable[[Texts], Plan]] = {"rows": rows_plan, "prefix": prefix_plan, "tree": tree_plan}
"""From the one that no model mistakes to the one that asks most of it."""


def cheapest(texts: Texts, allowed: Sequence[str], hidden_size: int) -> str:
    """The name of the layout that costs least, the first of equals; a function of lengths and width alone, never of time or memory.

    A slot costs the 12 H^2 multiplications of a transformer layer of width H, a pair of tokens that may attend 2 H, so one slot is worth
    6 H pairs. Padding is counted as what it costs.
    """
    lengths = texts.lengths
    if max(len(group) for _, group in lengths) == 1:
        return "rows"
    allowed = [name for name in allowed if name in LAYOUTS and (name != "prefix" or max(p for p, _ in lengths) > 1)]
    return min(allowed, key=lambda name: _cost(name, lengths, hidden_size))


def _cost(name: str, lengths: list[tuple[int, list[int]]], hidden_size: int) -> float:
    """In slots."""
    prompts = [prompt for prompt, _ in lengths]
    responses = [r for _, group in lengths for r in group]
    if name == "rows":
        width = max(prompt + max(group) for prompt, group in lengths) - 1
        blocks = [(len(responses), width, width)]
    elif name == "prefix":
        before, width = max(prompts) - 1, max(responses)
        blocks = [(len(prompts), before, before), (len(responses), width, before + width)]
    else:
        width = max(prompt + sum(group) - len(group) for prompt, group in lengths)
        blocks = [(len(prompts), width, width)]
    return sum(n * queries * (1 + keys / (6 * hidden_size)) for n, queries, keys in blocks)


def _present(texts: Texts) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts that have a response ``[N']``, and row and column of every response ``[N]``."""
    present = texts.response_mask.any(-1)
    row, column = present.nonzero(as_tuple=True)
    return present.any(-1).nonzero().squeeze(-1), row, column


def _grid(rows: int, width: int, like: Tensor, offset: Tensor) -> Tensor:
    """Slot ``offset[n] + t`` of row n, counted over rows of ``width``, ``[N, T]``."""
    start = torch.arange(rows, device=like.device) * width + offset
    return start[:, None] + torch.arange(like.shape[-1], device=like.device)
