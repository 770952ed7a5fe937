"""Low-rank adapters: the few weights that are trained beside a frozen model, which with them switched off is the reference."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_align.types import UserError

NAME = "default"  # peft names every adapter


@final
@dataclass(frozen=True)
class LoRA:
    r"""Train ``W + (alpha / rank) B A`` instead of ``W``: ``A`` ``[rank, in]`` begins random, ``B`` ``[out, rank]`` at zero.

    So the policy begins as the model to the bit, and is the model whenever the adapter is off: it is its own reference.
    Adapter weights are float32 whatever the model's dtype. bfloat16 keeps 8 significant bits, and most updates of an optimizer
    are smaller than 1/256 of a weight: they would be rounded away. Source: LoRA, equation 3, https://arxiv.org/abs/2106.09685.

    Args:
        rank: of the change of each matrix.
        alpha: the change is multiplied by ``alpha / rank``, so that another rank needs no other learning rate.
        dropout: of an adapter's input, in training forwards only.
        targets: names of the layers that get an adapter, such as ``[q_proj, v_proj]``; ``all-linear`` is every linear layer but
            the head.

    Raises:
        UserError: if a number is out of its range, or ``targets`` is another text than ``all-linear``.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Literal["all-linear"] | list[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise UserError(
                "lora needs rank >= 1, a positive finite alpha and 0 <= dropout < 1, "
                f"got rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}."
            )
        if (isinstance(self.targets, str) and self.targets != "all-linear") or not self.targets:
            raise UserError(f"lora.targets should be `all-linear` or a list of layer names such as [q_proj, v_proj], got {self.targets!r}.")


def add_adapter(model: Any, lora: LoRA) -> frozenset[str]:
    """Freeze a Hugging Face model, give it an adapter in place, and return the names of the adapter's parameters.

    Raises:
        UserError: if a target is no layer of this model, is one that peft can't adapt, or is an embedding that is tied to the head.
    """
    _check_targets(model, lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  (an int in peft's annotation; only divided)
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 keeps its matrices transposed
    )
    try:
        inject_adapter_in_model(config, model, NAME)
    except ValueError as error:
        raise UserError(f"lora.targets {lora.targets!r} can't be adapted in {type(model).__name__}: {error}") from error
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    return frozenset(trained)


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The model as it was loaded. For forwards without gradient: meanwhile nothing of the adapter requires one."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and not module.disable_adapters]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def change_of(layer: object) -> Tensor | None:
    """What the adapter adds to the weight of this layer; None where there is none, or it is off."""
    if not isinstance(layer, LoraLayer) or layer.disable_adapters:
        return None
    change: Any = layer.get_delta_weight(NAME)  # pyright: ignore[reportAttributeAccessIssue]  (of every kind of layer there is)
    return change


@torch.no_grad()
def merge_into(fresh: nn.Module, adapted: nn.Module) -> None:
    """Add the adapter's change, unless it is off, to the weights of ``fresh``, the same model loaded again; see `merged_weights`."""
    for name, weight in merged_weights(adapted):
        fresh.get_parameter(name).copy_(weight)


def merged_weights(adapted: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a model under the name that it has without an adapter. To those that an adapter changes, unless it is off, the
    change is added in a copy, made when its turn comes; a model without an adapter has only its own.

    The trained model is not touched: merging and unmerging in place would not give its weights back. The sum is made in float32
    and rounded once.
    """
    layers = {f"{name}.": module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    for name, weight in adapted.named_parameters():
        path = next((path for path in layers if name.startswith(path)), None)
        if path is None:
            yield name, weight.detach()
        elif (rest := name.removeprefix(path)).startswith("base_layer."):
            rest, weight = rest.removeprefix("base_layer."), weight.detach()
            if rest == "weight" and (change := change_of(layers[path])) is not None:
                weight = (weight.float() + change.detach().to(weight.device)).to(weight.dtype)
            yield path + rest, weight


def save_adapter(adapted: Any, base: str, folder: Path) -> None:
    """Write the adapter alone, as ``peft.PeftModel.from_pretrained(model, folder)`` reads it; made if missing.

    There is no tokenizer beside it: peft would resize the embeddings of the model to that tokenizer's length.

    Args:
        adapted: a Hugging Face model that `add_adapter` changed.
        base: name or folder of the model that the adapter belongs to; it is written down, not read.
        folder: where to.
    """
    config = replace(adapted.peft_config[NAME], base_model_name_or_path=base, task_type="CAUSAL_LM", inference_mode=True)
    state = get_peft_model_state_dict(adapted, adapter_name=NAME, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{name}": weight.detach().cpu().contiguous() for name, weight in state.items()}  # as inside a PeftModel
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def checkpoint_adapter_only(owner: nn.Module, names: frozenset[str]) -> None:
    """Leave everything but the parameters ``names`` out of the state of ``owner``, and complete it again when it is loaded.

    It is done by hooks, so that a state dict that is asked of whatever contains ``owner`` is filtered too, and strict loading
    stays strict about the adapter.
    """
    base = owner.state_dict().keys() - names

    def drop_base(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name in [n for n in state if n.startswith(prefix) and n.removeprefix(prefix) not in names]:
            del state[name]

    def add_base(
        module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: list[str]
    ) -> None:
        foreign = sorted(n for n in state if n.startswith(prefix) and n.removeprefix(prefix) not in names)
        if foreign:
            errors.append(
                f"The policy has a LoRA adapter, and its checkpoints hold nothing else; this one also has {len(foreign)} other weights, "
                f"{foreign[0]} for example. It is of a run without `lora`, or with other `targets`."
            )
        own = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        state.update({prefix + name: tensor.detach() for name, tensor in own if name in base})

    owner.register_state_dict_post_hook(drop_base)
    owner.register_load_state_dict_pre_hook(add_base)


def _check_targets(model: Any, targets: str | list[str]) -> None:
    if isinstance(targets, str):
        return
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding | Conv1D)}
    for target in targets:
        meant = [module for name, module in layers.items() if name == target or name.endswith(f".{target}")]
        if not meant:
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise UserError(f"lora.targets names {target!r}, but {type(model).__name__} has no such layer. It has {', '.join(known)}.")
        tied = model.config.get_text_config().tie_word_embeddings
        if tied and any(module in (model.get_input_embeddings(), model.get_output_embeddings()) for module in meant):
            raise UserError(
                f"lora.targets names {target!r}, but {type(model).__name__} ties its head to its embeddings: they are one matrix, and an "
                "adapter on one of them could not be merged. Leave it out of the targets."
            )
