"""Models, tokenizers and chat templates from a folder or the hub, with errors that say what was looked for."""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.types import UserError


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or a hub name.

    Raises:
        UserError: if there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _not_found(path, error) from error


def load_model(path: str, dtype: str, attn_implementation: str | None = None) -> Any:
    """The causal language model of a folder or a hub name, on the CPU.

    Raises:
        UserError: if there is none, or it can't compute attention as asked for.
    """
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), **options)
    except (OSError, ValueError, ImportError) as error:
        if attn_implementation is None or isinstance(error, OSError):
            raise _not_found(path, error) from error
        raise UserError(
            f"attn_implementation {attn_implementation!r} can't be used for {path!r} here. `sdpa` and `eager` need nothing installed; null "
            f"takes the model's own choice.\nThe loader said: {str(error).splitlines()[0]}"
        ) from error


def checkpoint_activations(model: Any) -> None:
    """Keep only the inputs of each layer in training forwards and compute the rest again in the backward pass.

    Raises:
        UserError: if the architecture can't.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # renamed between transformers 5.17 and 5.23; the old name serves both
            model.gradient_checkpointing_enable({"use_reentrant": False})  # the reentrant kind needs inputs that require gradient
    except ValueError as error:
        raise UserError(f"{type(model).__name__} can't do gradient checkpointing: set policy.gradient_checkpointing to false.") from error


def read_template(path: str) -> str:
    """A Jinja file.

    Raises:
        UserError: if it can't be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"chat_template should be a readable Jinja file, got {path!r}: {error}.") from error


def _not_found(path: str, error: Exception) -> UserError:
    kind = "a folder without a readable model" if Path(path).is_dir() else "neither a folder here nor a model that the hub gives"
    return UserError(
        f"No policy at {path!r}: it is {kind}. Expected a folder with config.json, weights and a tokenizer, or a hub name.\n"
        f"The current folder is {Path.cwd()}. The loader said: {str(error).splitlines()[0]}"
    )
