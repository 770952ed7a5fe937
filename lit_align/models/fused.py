"""A faster way to read decoders of the usual modules on a CPU, where much of the time goes into the many small operations of a step.

A model is recognised by the modules that it is made of and by its config, not by its name; that nothing else happens in it is the
probe's to say (`chosen_way`).
"""

from itertools import pairwise
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_align.models.decoding import RowCache
from lit_align.models.fused_weights import Block, Norm, Product
from lit_align.models.positions import positions_of
from lit_align.models.windows import windows

SHORT = 64  # there is room for twice as many tokens as were read, and for twice as many as these at least
LARGEST = 100_000_000  # parameters; above, matrix products take most of the time, and a copy of the weights much memory
BACKBONE = {"embed_tokens", "layers", "norm", "rotary_emb"}
BLOCK = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION, NORMS = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
ROTATIONS = {"default", "linear", "llama3"}  # the same for texts of any length; the names are transformers', of ways to rotate
ROTATION_OPTIONS = {"rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}


def fits(model: Any) -> bool:
    """Whether `FusedRows` can read this model as it is now: weights of one dtype, float32 or bfloat16, whole and on the CPU, of the
    modules that are named above and nothing else, that attend to all of a text."""
    weights = list(model.parameters())
    alike = {w.dtype for w in weights} in ({torch.float32}, {torch.bfloat16})
    plain = alike and all(w.device.type == "cpu" and not isinstance(w, DTensor) for w in weights)
    small = sum(w.numel() for w in weights) <= LARGEST
    changed = any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())
    if not plain or not small or changed or torch.is_autocast_enabled("cpu"):
        return False
    return _has_the_modules(model) and not windows(model.config) and _attends_to_all(model.config.to_dict())


def _has_the_modules(model: Any) -> bool:
    backbone, head = model.base_model, model.get_output_embeddings()
    inner = dict(backbone.named_children())
    if set(model.children()) != {backbone, head} or inner.keys() != BACKBONE:
        return False
    blocks = list(inner["layers"].children())
    if any(_names(block) != BLOCK for block in blocks):
        return False
    attentions, mlps = [block.self_attn for block in blocks], [block.mlp for block in blocks]
    of_blocks = all(_names(x) in (ATTENTION, ATTENTION | NORMS) for x in attentions) and all(_names(x) == MLP for x in mlps)
    bare = not any(module._parameters for module in [model, backbone, *blocks, *attentions, *mlps])
    return of_blocks and bare and type(inner["embed_tokens"]) is nn.Embedding and type(head) is nn.Linear


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _attends_to_all(config: dict[str, Any]) -> bool:
    rotation = config.get("rope_parameters") or {}
    return (
        set(config.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and rotation.get("rope_type") in ROTATIONS
        and rotation.keys() <= ROTATION_OPTIONS
    )


@final
class FusedRows(RowCache):
    """Left-padded and shared rows read with fewer and larger operations, from a copy of the weights that is made when it begins.

    Prompts are read without padding. A row that ends leaves a place that the last row takes, so what is remembered is in another order
    than the caller's rows are.
    """

    @torch.no_grad()
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config, backbone = model.config, model.base_model
        self._blocks, self._norm = [Block(block) for block in backbone.layers], Norm.of(backbone.norm)
        self._embedding, self._head = backbone.embed_tokens.weight.detach(), Product.of(model.get_output_embeddings())
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._width = self._blocks[0].qkv.columns // (self._heads + 2 * self._groups)
        self._length, like = 0, self._embedding.new_empty  # tokens read
        self._places = torch.empty(0, dtype=torch.long)  # of the rows, in the memory
        self._memory = like(len(self._blocks), 2, 0, self._groups, 0, self._width)  # keys and values [layers, 2, N, G, room, D]
        self._rotation = like(2, 0, self._width)  # cosines and signed sines of positions [2, room, D]

    @torch.no_grad()
    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """See `RowCache.read`."""
        if self._length == 0:
            return self._begin(tokens, mask)
        return [self._next(token, mask[:, : self._length + 1]) for token in tokens.unbind(1)][-1]

    def _begin(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits ``[N, V]`` after prompts ``[N, L]``: each by itself in attention, all of them together, without padding, in products;
        after the last attention the last tokens only."""
        ends = mask.sum(-1).cumsum(-1)
        spans = list(pairwise([0, *ends.tolist()]))
        self._length, self._places = mask.shape[1], torch.arange(len(mask))
        self._memory = self._embedding.new_zeros(len(self._blocks), 2, len(mask), self._groups, self._length, self._width)
        self._turn_to(self._length)
        rotation, hidden = self._rotation[:, positions_of(mask)[mask]], self._embedding[tokens[mask]]  # [2, M, D], [M, H]
        for block, memory in zip(self._blocks, self._memory, strict=True):
            queries, keys, values = (part.transpose(0, 1) for part in self._asked(block, hidden, rotation))  # [heads, M, D]
            last = block is self._blocks[-1]
            read: list[Tensor] = []  # [heads, S, D] each
            for (start, end), row in zip(spans, memory.unbind(1), strict=True):
                known = torch.stack([keys[:, start:end], values[:, start:end]])  # [2, G, S, D]
                row[:, :, self._length - (end - start) :] = known
                asking, grouped = queries[:, end - 1 if last else start : end], self._heads != self._groups
                seen, said = known[:, None]
                read.append(F.scaled_dot_product_attention(asking[None], seen, said, is_causal=not last, enable_gqa=grouped)[0])
            hidden = hidden[ends - 1] if last else hidden
            hidden = block.after_attention(hidden, torch.cat(read, 1).transpose(0, 1).flatten(1))
        return self._head(self._norm(hidden))

    def _next(self, token: Tensor, mask: Tensor) -> Tensor:
        """Logits ``[N, V]`` after one more token ``[N]`` of every row; ``mask`` is ``[N, L]``."""
        start = self._length
        if start == self._memory.shape[-2]:
            self._move(self._places)
        self._length = start + 1
        rows = self._places.argsort()  # in the order of the memory
        mask = mask[rows]
        rotation, hidden = self._rotation[:, positions_of(mask)[:, -1]], self._embedding[token[rows]]
        hides = None if bool(mask.all()) else hidden.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)[:, None, None]  # [N, 1, 1, L]
        for block, (keys, values) in zip(self._blocks, self._memory, strict=True):
            queries, keys[:, :, start], values[:, :, start] = self._asked(block, hidden, rotation)
            queries = queries.reshape(len(rows), self._groups, -1, self._width)  # the heads of a group are like several queries of one head
            seen = keys[:, :, : self._length], values[:, :, : self._length]
            hidden = block.after_attention(hidden, F.scaled_dot_product_attention(queries, *seen, attn_mask=hides).flatten(1))
        return self._head(self._norm(hidden[self._places]))

    def _asked(self, block: Block, hidden: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[M, heads, D]``, keys and values ``[M, G, D]`` of hidden states ``[M, H]`` at these rotations ``[2, M, D]``."""
        parts = block.qkv(block.before_attention(hidden)).view(len(hidden), -1, self._width)
        turning, values = parts.split([self._heads + self._groups, self._groups], 1)
        if block.norms is not None:
            turning = torch.cat([norm(x) for norm, x in zip(block.norms, turning.split([self._heads, self._groups], 1), strict=True)], 1)
        cos, signed_sin = rotation.unsqueeze(2)
        turned = torch.addcmul(turning * cos, turning.roll(self._width // 2, -1), signed_sin)
        return turned[:, : self._heads], turned[:, self._heads :], values

    def reorder_cache(self, index: Tensor) -> None:
        """See `RowCache.reorder_cache`. Rows that are left out are overwritten by others: fresh memory at every step at which a row ends
        would cost more than the copying."""
        places = self._places[index].tolist()
        if len(set(places)) < len(places):  # two rows in one place
            self._move(self._places[index])
            return
        free = iter(sorted(set(range(len(places))) - set(places)))
        for row, place in enumerate(places):
            if place >= len(places):
                places[row] = next(free)
                self._memory[:, :, places[row], :, : self._length] = self._memory[:, :, place, :, : self._length]
        self._places, self._memory = torch.tensor(places, dtype=torch.long), self._memory[:, :, : len(places)]

    def _move(self, places: Tensor) -> None:
        """Take what is at these places ``[N]`` into a memory of their own, with room for as much again."""
        old, known, room = self._memory, self._length, 2 * max(self._length, SHORT)
        self._memory = old.new_empty(len(self._blocks), 2, len(places), self._groups, room, self._width)
        for row, place in enumerate(places.tolist()):
            self._memory[:, :, row, :, :known] = old[:, :, place, :, :known]
        self._places = torch.arange(len(places))
        self._turn_to(room)

    def _turn_to(self, room: int) -> None:
        """Know the rotations of so many positions."""
        if room > self._rotation.shape[1]:
            cos, sin = self._model.base_model.rotary_emb(self._embedding, torch.arange(room).unsqueeze(0))
            half = self._width // 2
            self._rotation = torch.stack([cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)])
