"""Models and tokenizers from a folder or the hub, for policies and annotators alike, with errors that say what was looked for."""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_align.models.chat import read_template
from lit_align.models.positions import context_of
from lit_align.types import UserError

DType = Literal["float32", "bfloat16"]


def load_tokenizer(owner: str, path: str, chat_template: str | None = None) -> Any:
    """The tokenizer of a folder or a hub name, with the template of a Jinja file where one is given.

    Raises:
        UserError: if there is no such tokenizer or file.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _not_found(owner, path, error) from error
    if chat_template is not None:
        tokenizer.chat_template = read_template(owner, chat_template)
    return tokenizer


def load_causal(owner: str, path: str, dtype: DType, attn_implementation: str | None = None) -> Any:
    """The causal language model of a folder or a hub name, on the CPU, in eval mode.

    Raises:
        UserError: if there is none, its head was never trained, or it can't compute attention as asked for.
    """
    advice = "what it says would be random. Give a model that can generate; a sequence classifier is a RewardModelAnnotator's."
    return _load(AutoModelForCausalLM, "a causal language model", advice, owner, path, dtype, attn_implementation)


def load_classifier(owner: str, path: str, dtype: DType) -> Any:
    """The sequence classifier of a folder or a hub name, on the CPU, in eval mode.

    Raises:
        UserError: if there is none, or its head was never trained.
    """
    advice = (
        "the scores would be random. Give a reward model (a folder whose config.json names ...ForSequenceClassification), not the "
        "language model that one could be trained from."
    )
    return _load(AutoModelForSequenceClassification, "a trained sequence classifier", advice, owner, path, dtype)


def load_scorer(owner: str, path: str, dtype: DType, seed: int) -> Any:
    """The sequence classifier with one logit of a folder or a hub name or, of any other model, its backbone under a new head drawn
    with ``seed``; on the CPU, in eval mode.

    Raises:
        UserError: if there is none, it has another number of logits, or more than its head is missing.
    """
    try:
        config: Any = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _not_found(owner, path, error) from error
    trained = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    if trained and config.num_labels != 1:
        raise UserError(
            f"{owner} expected a classifier with one logit, but {path!r} has {config.num_labels}: {config.id2label}. Give one with "
            "num_labels = 1, or the language model that it was made from: a new head is put on that."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, missing = _from_pretrained(AutoModelForSequenceClassification, owner, path, dtype, {"num_labels": 1})
    if wanting := [name for name in missing if trained or name.startswith(f"{model.base_model_prefix}.")]:
        raise UserError(
            f"{owner} expected a sequence classifier, or a model to put a new head on, at {path!r}, but its weights lack "
            f"{', '.join(wanting[:3])}: they would be random. Give a folder with all weights of the model."
        )
    return model


def context_length(model: Any, tokenizer: Any) -> int | None:
    """How many tokens a model can read, where its config or its tokenizer says so."""
    of_model = context_of(model.config.get_text_config())
    of_tokenizer = tokenizer.model_max_length  # 1e30 where it doesn't know; less than the model's in RoBERTa
    known = [int(length) for length in (of_model, of_tokenizer) if length and length < 1e9]
    return min(known, default=None)


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
        raise UserError(f"{type(model).__name__} can't do gradient checkpointing: set gradient_checkpointing to false.") from error


def _load(auto: Any, kind: str, advice: str, owner: str, path: str, dtype: DType, attn_implementation: str | None = None) -> Any:
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model, missing = _from_pretrained(auto, owner, path, dtype, options)
    if missing:
        raise UserError(f"{owner} expected {kind} at {path!r}, but its weights lack {', '.join(missing[:3])}: {advice}")
    return model


def _from_pretrained(auto: Any, owner: str, path: str, dtype: DType, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """The model, and the names of its weights that the folder lacks; tied ones are none of them."""
    try:
        model, report = auto.from_pretrained(path, dtype=getattr(torch, dtype), output_loading_info=True, **options)
    except (OSError, ValueError, ImportError) as error:
        attn_implementation = options.get("attn_implementation")
        if attn_implementation is None or isinstance(error, OSError):
            raise _not_found(owner, path, error) from error
        raise UserError(
            f"attn_implementation {attn_implementation!r} can't be used for {path!r} here. `sdpa` and `eager` need nothing installed; null "
            f"takes the model's own choice.\nThe loader said: {str(error).splitlines()[0]}"
        ) from error
    return model, sorted(report["missing_keys"])


def _not_found(owner: str, path: str, error: Exception) -> UserError:
    kind = "a folder without a readable model" if Path(path).is_dir() else "neither a folder here nor a model that the hub gives"
    return UserError(
        f"{owner}: no model at {path!r}: it is {kind}. Expected a folder with config.json, weights and a tokenizer, or a hub name.\n"
        f"The current folder is {Path.cwd()}. The loader said: {str(error).splitlines()[0]}"
    )
