"""The weights of a decoder's layers, copied into fewer and larger matrices."""

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.models.lora import LoraLayer, change_of
from lit_align.models.shortage import out_of_memory

WIDE, ROWS = 1024, 32  # columns from which packing a matrix saves time, and for products of how many rows it is packed


@dataclass(frozen=True)
class Product:
    """One matrix for layers that read the same, with what a LoRA adapter adds; a copy, in the order in which products of few rows take
    least time."""

    columns: int
    weight: Tensor  # [in, out], or as oneDNN packs it
    packed: bool
    bias: Tensor | None

    @classmethod
    def of(cls, *layers: Any) -> "Product":
        """Of linear layers, with adapters or without."""
        plain: list[Any] = [layer.get_base_layer() if isinstance(layer, LoraLayer) else layer for layer in layers]
        changes = [change_of(layer) for layer in layers]
        weights = [base.weight if change is None else base.weight + change for base, change in zip(plain, changes, strict=True)]
        bias = None if plain[0].bias is None else torch.cat([base.bias for base in plain])
        joined = torch.cat(weights)  # [out, in]
        packed = _packed(joined) if len(joined) >= WIDE and joined.dtype == torch.float32 else None
        return cls(len(joined), joined.t().contiguous() if packed is None else packed, packed is not None, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """What the layers say of ``[M, in]``, one after the other, ``[M, out]``."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        said = x @ self.weight
        return said if self.bias is None else said + self.bias


def _packed(weight: Tensor) -> Tensor | None:
    """A matrix ``[out, in]`` as oneDNN reads it fastest; None where PyTorch has no such operation, which is none that it documents."""
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        return None


@dataclass(frozen=True)
class Norm:
    """A norm by the root mean square."""

    weight: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> "Norm":
        """Of a module of any family, whatever it calls its epsilon."""
        return cls(module.weight.clone(), vars(module).get("variance_epsilon", vars(module).get("eps")))

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., D]`` to the same."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@final
class Block:
    """A layer: attention, and then the two products that follow it."""

    def __init__(self, block: Any) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.before_attention, self.before_mlp = Norm.of(block.input_layernorm), Norm.of(block.post_attention_layernorm)
        self.qkv, self.out = Product.of(attention.q_proj, attention.k_proj, attention.v_proj), Product.of(attention.o_proj)
        self.gate_up, self.down = Product.of(mlp.gate_proj, mlp.up_proj), Product.of(mlp.down_proj)
        self.activation = mlp.act_fn
        inner = dict(attention.named_children())
        self.norms = (Norm.of(inner["q_norm"]), Norm.of(inner["k_norm"])) if "q_norm" in inner else None

    def after_attention(self, hidden: Tensor, read: Tensor) -> Tensor:
        """Hidden states ``[M, H]`` of the next layer, from this one's and what its attention has read, ``[M, heads * D]``."""
        hidden = hidden + self.out(read)
        gate, up = self.gate_up(self.before_mlp(hidden)).chunk(2, -1)
        return hidden + self.down(self.activation(gate) * up)
