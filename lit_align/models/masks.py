"""Which tokens of a tree row see which, as the attention of a Hugging Face model takes it."""

from typing import Any

import torch
from torch import Tensor

from lit_align.models.layouts import Plan


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
    """What ``model.forward`` takes as ``attention_mask`` for a tree: ``[N, 1, S, S]``, of every kind of layer where there are several.

    Windows are counted in positions, as slots of a row are not in the order of any one text.

    Raises:
        ValueError: if its attention takes no such mask, or has a kind of layer of which this does not know what it sees. The probe then
            leaves trees out.
    """
    assert plan.positions is not None
    assert plan.branches is not None
    config = model.config.get_text_config()
    branch, place = plan.branches, torch.arange(plan.tokens.shape[1], device=plan.tokens.device)
    same = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
    seen = same & (place[None, :] <= place[:, None])  # [N, query, key]; padding sees padding, so that no row of the softmax is empty
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
