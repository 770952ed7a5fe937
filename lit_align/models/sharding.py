"""FSDP2: every rank keeps a part of every weight."""

from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lit_align.types import UserError


def shard(policy: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the weights of ``policy`` over the ranks of ``mesh``, in place: a group for each layer, one for the rest.

    A training forward gathers one group at a time; `Policy.inference` gathers them all. Nothing is left to do the second time.

    Args:
        policy: its children are models that it calls, as gathering hooks into the call. Lists of modules inside them
            (``nn.ModuleList``) are the layers.
        mesh: of one dimension.

    Raises:
        UserError: if the policy has a LoRA adapter.
    """
    if any(isinstance(module, LoraLayer) for module in policy.modules()):
        raise UserError(
            "A LoRA adapter can't be trained with ModelParallelStrategy (FSDP2): its checkpoints hold nothing else, and Lightning refuses "
            "to load such a one into sharded weights. Use strategy ddp, where an adapter is little to send, or train without `lora`."
        )
    for model in policy.children():
        if isinstance(model, FSDPModule):
            continue
        for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
            for layer in layers:
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether weights are gathered for each call of the model, by FSDP2 or ZeRO-3. So its head can't be called by itself; and what a
    layer leaves in a cache is no output of it: the backward pass through a cache finds weights that nobody has gathered."""
    gathered = any(isinstance(module, FSDPModule) for module in model.modules())
    return gathered or any(getattr(parameter, "ds_id", None) is not None for parameter in model.parameters())
