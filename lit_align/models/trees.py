"""Rows that hold trees: a prompt and then several of its responses, each of which sees the prompt and itself.

A row holds as many trees as fit, and a prompt with more responses than fit has several trees: little of a row is padding then.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from lit_align.models.layouts import Plan, Texts, places, present
from lit_align.models.positions import positions_of

ROOMS = (1, 1.125, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6)  # slots of a row that are tried, in multiples of the longest text

Lengths = Sequence[tuple[int, Sequence[int]]]
"""Of each prompt, and of its responses, in tokens."""


@final
class Packing(NamedTuple):
    """Where the slots of trees are. A response takes one slot less than it has tokens: its last one predicts nothing."""

    trees: list[tuple[int, int, int]]  # number of its prompt, its row, the slot at which it begins
    responses: list[tuple[int, int]]  # number of its tree, the slot at which it begins; of all prompts, one after the other
    rows: int
    width: int  # slots of the longest row


def packed(lengths: Lengths, room: int) -> Packing:
    """Responses into trees, and trees into rows, of at most ``room`` slots unless one alone is longer: first fit, the longest first."""
    trees: list[tuple[int, list[int], int]] = []  # number of its prompt, numbers of its responses, slots
    inner = [[tokens - 1 for tokens in responses] for _, responses in lengths]
    for number, (prompt, _) in enumerate(lengths):
        trees += [(number, members, slots) for slots, members in _fitted(inner[number], room, prompt)]
    rows = _fitted([slots for *_, slots in trees], room)
    placed, starts = [(0, 0, 0)] * len(trees), [[(0, 0)] * len(group) for group in inner]
    for row, (_, members) in enumerate(rows):
        start = 0
        for tree in members:
            number, group, slots = trees[tree]
            placed[tree] = number, row, start
            slot = start + lengths[number][0]
            for response in group:
                starts[number][response] = tree, slot
                slot += inner[number][response]
            start += slots
    return Packing(placed, [place for group in starts for place in group], len(rows), max(slots for slots, _ in rows))


def _fitted(sizes: Sequence[int], room: int, taken: int = 0) -> list[tuple[int, list[int]]]:
    """Slots and members of every bin; ``taken`` slots of each are something else."""
    slots: list[int] = []
    members: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = next((n for n, used in enumerate(slots) if used + sizes[i] <= room), None)
        if place is None:
            slots.append(taken)
            members.append([])
            place = len(slots) - 1
        slots[place] += sizes[i]
        members[place].append(i)
    return list(zip(slots, members, strict=True))


def rooms(lengths: Lengths, context_length: int | None = None) -> list[int]:
    """Those that are worth trying, from that of the longest text to that of the largest tree, and no larger than the context: some models
    have a place for no more slots, whatever their positions."""
    text = max(prompt + max(responses) - 1 for prompt, responses in lengths)
    found = {max(prompt + sum(group) - len(group) for prompt, group in lengths)} | {int(text * factor) for factor in ROOMS}
    return sorted(found if context_length is None else {min(room, max(text, context_length)) for room in found})


def tree_plan(texts: Texts, packing: Packing) -> Plan:
    """Trees where `packed` put those of these texts."""
    asked, row, column = present(texts)
    device, width = row.device, packing.width
    number, tree_row, tree_start = torch.tensor(packing.trees, device=device).unbind(-1)  # [trees]
    tree, start = torch.tensor(packing.responses, device=device).unbind(-1)  # [responses]
    prompt_mask, spoken = texts.prompt_mask[asked][number], texts.response_mask[row, column]
    prompt = prompt_mask.sum(-1)
    tokens, positions, trees, branches = (row.new_full((packing.rows, width), value) for value in (0, 0, -1, 0))

    first = tree_row * width + tree_start  # slots counted over all rows
    place = places(first + prompt - prompt_mask.shape[1], prompt_mask)[prompt_mask]
    tokens.view(-1)[place] = texts.prompt_tokens[asked][number][prompt_mask]
    positions.view(-1)[place] = positions_of(prompt_mask)[prompt_mask]
    trees.view(-1)[place] = torch.arange(len(number), device=device).repeat_interleave(prompt)

    own = tree_row[tree] * width + start
    inner = torch.arange(spoken.shape[1], device=device) < spoken.sum(-1, keepdim=True) - 1
    n, t = inner.nonzero(as_tuple=True)
    place = own[n] + t
    tokens.view(-1)[place] = texts.response_tokens[row, column][inner]
    positions.view(-1)[place] = prompt[tree][n] + t
    trees.view(-1)[place] = tree[n]
    branches.view(-1)[place] = n + 1

    n, t = spoken.nonzero(as_tuple=True)
    last = (first + prompt - 1)[tree]  # of the prompt: it predicts the first token of each of its responses
    return Plan(tokens, torch.where(t == 0, last[n], own[n] + t - 1), positions, trees=trees, branches=branches)


def layer_kinds(config: Any) -> list[str]:
    """The kinds of attention that the layers of a model have, sorted: one for all, or those that its config lists."""
    listed = getattr(config, "layer_types", None)
    if listed:
        return sorted(set(listed))
    return ["full_attention" if sliding_window(config) is None else "sliding_attention"]


def sliding_window(config: Any) -> int | None:
    """How many tokens back a layer of a windowed kind sees, itself included; None where there is no window."""
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def tree_mask(model: Any, plan: Plan) -> Tensor | dict[str, Tensor]:
    """What ``model.forward`` takes as ``attention_mask`` for trees: ``[N, 1, S, S]``, of every kind of layer where there are several.

    Windows are counted in positions, as slots of a row are not in the order of any one text.

    Raises:
        ValueError: if its attention takes no such mask, or has a kind of layer of which this does not know what it sees. The probe then
            leaves trees out.
    """
    assert plan.positions is not None
    assert plan.trees is not None
    assert plan.branches is not None
    config = model.config.get_text_config()
    tree, branch, place = plan.trees, plan.branches, torch.arange(plan.tokens.shape[1], device=plan.tokens.device)
    same = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
    # [N, query, key]; padding sees padding, so that no row of the softmax is empty
    seen = same & (tree[:, None, :] == tree[:, :, None]) & (place[None, :] <= place[:, None])
    distance = plan.positions[:, :, None] - plan.positions[:, None, :]
    window, masks = sliding_window(config), {}
    for kind in layer_kinds(config):
        if kind == "full_attention":
            masks[kind] = _as_taken(model, seen)
        elif kind == "sliding_attention" and window is not None:
            masks[kind] = _as_taken(model, seen & (distance < window))
        else:
            raise ValueError(f"A tree's mask is for layers of full or sliding attention, got {kind!r}. Read this model in rows.")
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _as_taken(model: Any, seen: Tensor) -> Tensor:
    implementation = model.config._attn_implementation
    if implementation == "sdpa":
        return seen.unsqueeze(1)
    if implementation == "eager":  # which adds what it gets: True would be a 1
        hidden = torch.finfo(model.dtype).min
        return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, hidden).unsqueeze(1)
    raise ValueError(f"A tree's mask is for attn_implementation sdpa or eager, got {implementation!r}. Read this model in rows.")
