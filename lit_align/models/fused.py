"""A faster way to read small Llama-like models on a CPU, where most of the time goes into the many small operations of a step.

A model is recognised by the modules that it is made of and by its config, not by its name; that nothing else happens in it is the
probe's to say (`chosen_way`).
"""

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_align.models.decoding import RowCache
from lit_align.models.lora import LoraLayer, change_of
from lit_align.models.positions import positions_of

LARGEST = 10_000_000  # parameters; above, matrix products take most of the time and a copy of the weights only memory
WIDE, ROWS = 1024, 32  # columns from which packing a matrix saves time, and for products of how many rows it is packed
BACKBONE = {"embed_tokens", "layers", "norm", "rotary_emb"}
BLOCK = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION, NORMS = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
ROTATIONS = {"default", "linear", "llama3"}  # the same for texts of any length
ROTATION_OPTIONS = {"rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}


def fits(model: Any) -> bool:
    """Whether `FusedRows` can read this model as it is now: weights of one dtype, float32 or bfloat16, whole and on the CPU, of a Llama's
    modules and nothing else, that attend to all of a text."""
    weights = list(model.parameters())
    alike = {w.dtype for w in weights} in ({torch.float32}, {torch.bfloat16})
    plain = alike and all(w.device.type == "cpu" and not isinstance(w, DTensor) for w in weights)
    small = sum(w.numel() for w in weights) <= LARGEST
    changed = any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())
    if not plain or not small or changed or torch.is_autocast_enabled("cpu"):
        return False
    return _has_the_modules(model) and _attends_to_all(model.config.to_dict())


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
        not (config.get("sliding_window") and config.get("use_sliding_window", True))
        and set(config.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and not config.get("attention_chunk_size")
        and rotation.get("rope_type") in ROTATIONS
        and rotation.keys() <= ROTATION_OPTIONS
    )


@dataclass(frozen=True)
class _Product:
    """One matrix for layers that read the same, with what a LoRA adapter adds; a copy, in the order in which products of few rows take
    least time."""

    columns: int
    weight: Tensor  # [in, out], or as oneDNN packs it
    packed: bool
    bias: Tensor | None

    @classmethod
    def of(cls, *layers: Any) -> "_Product":
        plain: list[Any] = [layer.get_base_layer() if isinstance(layer, LoraLayer) else layer for layer in layers]
        changes = [change_of(layer) for layer in layers]
        weights = [base.weight if change is None else base.weight + change for base, change in zip(plain, changes, strict=True)]
        bias = None if plain[0].bias is None else torch.cat([base.bias for base in plain])
        joined = torch.cat(weights)  # [out, in]
        packed = _packed(joined) if len(joined) >= WIDE and joined.dtype == torch.float32 else None
        return cls(len(joined), joined.t().contiguous() if packed is None else packed, packed is not None, bias)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        said = x @ self.weight
        return said if self.bias is None else said + self.bias


def _packed(weight: Tensor) -> Tensor | None:
    """A matrix ``[out, in]`` as oneDNN reads it fastest; None where PyTorch has no such operation, which is none that it documents."""
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> "_Norm":
        return cls(module.weight.clone(), vars(module).get("variance_epsilon", vars(module).get("eps")))

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@final
class _Block:
    def __init__(self, block: Any) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.before_attention, self.before_mlp = _Norm.of(block.input_layernorm), _Norm.of(block.post_attention_layernorm)
        self.qkv, self.out = _Product.of(attention.q_proj, attention.k_proj, attention.v_proj), _Product.of(attention.o_proj)
        self.gate_up, self.down = _Product.of(mlp.gate_proj, mlp.up_proj), _Product.of(mlp.down_proj)
        self.activation = mlp.act_fn
        inner = dict(attention.named_children())
        self.norms = (_Norm.of(inner["q_norm"]), _Norm.of(inner["k_norm"])) if "q_norm" in inner else None


@final
class FusedRows(RowCache):
    """Left-padded and shared rows read with fewer and larger operations, from a copy of the weights that is made when it begins."""

    @torch.no_grad()
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config, backbone = model.config, model.base_model
        self._blocks, self._norm = [_Block(block) for block in backbone.layers], _Norm.of(backbone.norm)
        self._embedding, self._head = backbone.embed_tokens.weight.clone(), _Product.of(model.get_output_embeddings())
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._width = self._blocks[0].qkv.columns // (self._heads + 2 * self._groups)
        self._length, like = 0, self._embedding.new_empty  # tokens read
        self._memory = like(len(self._blocks), 2, 0, self._groups, 0, self._width)  # keys and values [layers, 2, N, G, room, D]
        self._rotation = like(2, 0, self._width)  # cosines and signed sines of positions [2, room, D]

    @torch.no_grad()
    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """See `RowCache.read`."""
        (rows, count), start = tokens.shape, self._length
        self._length = start + count
        if self._length > self._memory.shape[-2]:
            self._move(torch.arange(rows) if start else torch.empty(0, dtype=torch.long), rows, 2 * self._length)
        rotation = self._rotation[:, positions_of(mask)[:, -count:]].unsqueeze(2)  # [2, N, 1, S, D]
        hidden, hides = self._embedding[tokens], _hides(mask, count, self._embedding)
        for block, (keys, values) in zip(self._blocks, self._memory, strict=True):
            parts = block.qkv(block.before_attention(hidden)).view(rows, count, -1, self._width).transpose(1, 2)
            queries, new_keys, new_values = parts.split([self._heads, self._groups, self._groups], 1)
            if block.norms is not None:
                queries, new_keys = block.norms[0](queries), block.norms[1](new_keys)
            keys[:, :, start : self._length] = _rotated(new_keys, rotation)
            values[:, :, start : self._length] = new_values
            seen = keys[:, :, : self._length], values[:, :, : self._length]
            queries = _rotated(queries, rotation)
            if count == 1:  # the heads of a group are like several queries of one head
                queries = queries.view(rows, self._groups, -1, self._width)
            read = F.scaled_dot_product_attention(queries, *seen, attn_mask=hides, enable_gqa=count > 1 and self._heads != self._groups)
            read = read if count == 1 else read.transpose(1, 2)
            hidden = hidden + block.out(read.reshape(rows, count, -1))
            gate, up = block.gate_up(block.before_mlp(hidden)).chunk(2, -1)
            hidden = hidden + block.down(block.activation(gate) * up)
        return self._head(self._norm(hidden[:, -1]))

    def reorder_cache(self, index: Tensor) -> None:
        """See `RowCache.reorder_cache`. Rows that are left out are overwritten by those behind them: fresh memory at every step at which a
        row ends would cost more than the copying."""
        kept = index.tolist()
        if kept != sorted(set(kept)):
            self._move(index, len(index), self._memory.shape[-2])
            return
        for place, row in enumerate(kept):
            if place != row:
                self._memory[:, :, place, :, : self._length] = self._memory[:, :, row, :, : self._length]
        self._memory = self._memory[:, :, : len(kept)]

    def _move(self, index: Tensor, rows: int, room: int) -> None:
        """Take what is known of the rows ``index`` into a memory for ``rows`` rows of ``room`` tokens."""
        old, layers = self._memory, len(self._blocks)
        self._memory = old.new_empty(layers, 2, rows, self._groups, room, self._width)
        known = min(self._length, old.shape[-2])
        self._memory[:, :, : len(index), :, :known] = old[:, :, index, :, :known]
        if room > self._rotation.shape[1]:
            cos, sin = self._model.base_model.rotary_emb(self._embedding, torch.arange(room).unsqueeze(0))
            half = self._width // 2
            self._rotation = torch.stack([cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)])


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    cos, signed_sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


def _hides(mask: Tensor, count: int, like: Tensor) -> Tensor | None:
    """Minus infinity where one of the last ``count`` tokens may not look, ``[N, 1, S, L]`` in the dtype of ``like``; None where each may
    look everywhere. Padding sees itself, since a row of nothing would be NaN."""
    if count == 1 and bool(mask.all()):
        return None
    length = mask.shape[1]
    back = torch.arange(length - count, length).unsqueeze(-1) - torch.arange(length)  # [S, L]
    seen = (mask.unsqueeze(1) & (back >= 0)) | (back == 0)
    return like.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf).unsqueeze(1)
