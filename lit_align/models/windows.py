"""Sliding windows that a probe's texts have to cross, and the small copy of a model for one that is too long for that."""

import copy
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from lit_align.models.loading import checkpoint_activations
from lit_align.models.trees import layer_kinds, sliding_window

CROSSED = 32  # the longest window that texts cross; a longer one is cut to CUT in a copy
CUT = 8


def window_to_cross(model: Any, context_length: int | None) -> tuple[int, bool]:
    """The window that a probe's texts have to be longer than, 0 if there is none; and whether a `small_copy` has to confirm what is found,
    as the window is too long for them.

    Args:
        model: a Hugging Face causal language model.
        context_length: how many tokens it can read, where that is known. A window of as many hides nothing from anybody.
    """
    window = sliding_window(model.config.get_text_config())
    if window is None or (context_length is not None and window >= context_length):
        return 0, False
    return (0, True) if window > CROSSED else (window, False)


def small_copy(model: Any) -> Any:
    """As many layers as it has kinds of them, of random weights in float32 that have much to say, with the window cut to `CUT`; on the
    CPU, in train mode."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    kinds = layer_kinds(text)
    text.num_hidden_layers = max(2, len(kinds))
    if getattr(text, "layer_types", None):
        text.layer_types = (kinds * 2)[: text.num_hidden_layers]
    if sliding_window(text) is not None:
        text.sliding_window = CUT
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
