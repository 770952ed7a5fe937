"""How the responses of a batch become the rows of a forward: every layout is a pure plan.

``N`` rows of ``S`` slots; ``M`` response tokens, in the order of the response mask.
"""

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

    Without ``positions`` a row is read from 0 on, without ``mask`` it is padded at its end only. Of a tree a token sees the prompt, which
    is branch 0, and its own branch; padding is of tree -1. Before row n stands row ``owners[n]`` of the ``prefix``.
    """

    tokens: Tensor  # [N, S]
    predicting: Tensor  # [M] slots of all rows, counted row by row; of a prefix, of which no logits are wanted, any
    positions: Tensor | None = None  # [N, S]
    mask: Tensor | None = None  # bool, [N, S] or, with the prefix's, [N, S' + S]
    trees: Tensor | None = None  # [N, S]
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
        predicting=places(torch.arange(len(row), device=row.device) * width + prompt - 1, spoken)[spoken],
    )


def prefix_plan(texts: Texts) -> Plan:
    """Every prompt once but for its last token, with a cache; then one row per response, which begins with that token."""
    asked, row, column = present(texts)
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
        predicting=places(torch.arange(len(row), device=row.device) * width, spoken)[spoken],
        positions=seen + torch.arange(width, device=row.device),
        mask=torch.cat([mask[owners], spoken], 1),
        prefix=first,
        owners=owners,
    )


def present(texts: Texts) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts that have a response ``[N']``, and row and column of every response ``[N]``."""
    present = texts.response_mask.any(-1)
    row, column = present.nonzero(as_tuple=True)
    return present.any(-1).nonzero().squeeze(-1), row, column


def places(first: Tensor, like: Tensor) -> Tensor:
    """Slots ``first[n] + t``, counted row by row, ``[N]`` and ``[N, T]`` to ``[N, T]``."""
    return first[:, None] + torch.arange(like.shape[-1], device=like.device)
