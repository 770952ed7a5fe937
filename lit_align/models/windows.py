"""Windows of attention that a probe's texts have to cross, and the small copy of a model for one that is too long for that."""

import copy
import re
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from lit_align.models.loading import checkpoint_activations

CROSSED = 32  # the longest window that texts cross; a longer one is cut to CUT in a copy
CUT = 8


def windows(config: Any) -> dict[str, int]:
    """Attributes of a text config that say how far a layer sees, with their values in tokens: every int that is called a window, or a chunk
    of attention, and is not switched off.

    What is taken for one by mistake costs a probe longer texts; what is not known to be one could go wrong unseen.
    """
    return {
        name: size
        for name, size in vars(config).items()
        if re.search("window|attention_chunk", name) and not re.search("layer|pattern", name)  # how many layers have one, or which
        if type(size) is int and size > 0 and getattr(config, f"use_{name}", True)
    }


def window_to_cross(model: Any, context_length: int | None) -> tuple[int, bool]:
    """The window that a probe's texts have to be longer than, 0 if there is none; and whether a `small_copy` has to confirm what is found,
    as there is one that is too long for them.

    Args:
        model: a Hugging Face causal language model.
        context_length: how many tokens it can read, where that is known. A window of as many hides nothing from anybody:
            no row of a training forward has more slots either.
    """
    sizes = windows(model.config.get_text_config()).values()
    hiding = [size for size in sizes if context_length is None or size < context_length]
    return max((size for size in hiding if size <= CROSSED), default=0), any(size > CROSSED for size in hiding)


def small_copy(model: Any) -> Any:
    """As many layers as it has kinds of them, of random weights in float32 that have much to say, with every window cut to `CUT`; on
    the CPU, in train mode."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    for name, kinds in _layers_to_copy(text).items():
        setattr(text, name, kinds)
    for name in windows(text):
        setattr(text, name, CUT)
    text.vocab_size, config.pad_token_id = 64, None
    plain = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = plain(config).float()
        for parameter in small.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    if model.is_gradient_checkpointing:
        checkpoint_activations(small)
    return small


def _layers_to_copy(text: Any) -> dict[str, Any]:
    """What a config has to say for a model of two layers, or of one of each kind if there are more kinds: layers are of one kind if they
    have the same name in every list that names them all."""
    listed = {name: getattr(text, name, None) for name in sorted({*vars(text), "layer_types"})}
    named = {
        name: kinds[: text.num_hidden_layers]
        for name, kinds in listed.items()
        if isinstance(kinds, list | tuple) and len(kinds) >= text.num_hidden_layers and all(isinstance(kind, str) for kind in kinds)
    }
    kept = list(dict.fromkeys(zip(*named.values(), strict=True)))
    count = max(2, len(kept))
    lists = zip(*(kept * 2)[:count], strict=True)
    return {"num_hidden_layers": count} | {name: list(kinds) for name, kinds in zip(named, lists, strict=True)}
