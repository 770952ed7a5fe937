"""``lit-align export``: what a run trained as a Hugging Face folder."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from transformers.utils import logging as transformers_logging

from lit_align.algorithms import SteppingModule
from lit_align.cli.card import model_card
from lit_align.cli.trainer import accept_final_classes
from lit_align.models import CausalPolicy  # short names in YAML are those of imported classes
from lit_align.models.lora import save_adapter
from lit_align.types import Policy, TextModel, UserError


def export(arguments: Sequence[str]) -> None:
    """Write the policy or reward model of a checkpoint, its tokenizer and a model card; or its adapter and a model card.

    Args:
        arguments: the run's folder, ``--ckpt_path``, ``--output`` and ``--adapter``; see ``--help``.

    Raises:
        UserError: if the run has no config, no checkpoint that fits it or no adapter to write alone, or there is something at the
            output already.
    """
    options = export_parser().parse_args(list(arguments))
    config_file: Path = options.run / "config.yaml"
    checkpoint_file: Path = options.ckpt_path or options.run / "checkpoints" / "last.ckpt"
    output: Path = options.output or options.run / "export"
    if not config_file.is_file():
        raise UserError(f"{options.run} is no run: there is no {config_file}. Give the folder that fit wrote (its --run).")
    if checkpoint_file.is_dir():
        raise UserError(
            f"{checkpoint_file} is a sharded checkpoint. Gather it into one file with its strategy's own tool, then export that."
        )
    if not checkpoint_file.is_file():
        raise UserError(f"There is no checkpoint {checkpoint_file}. Choose another one of the run with --ckpt_path.")
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise UserError(f"{output} exists already. Choose another folder with --output, or remove it.")

    transformers_logging.disable_progress_bar()
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    checkpoint = torch.load(checkpoint_file, map_location="cpu", weights_only=True)
    model = load_module(config["model"])
    adapter = _adapted(model.text_model, options.run) if options.adapter else None
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except RuntimeError as error:
        raise UserError(f"{checkpoint_file} doesn't fit {config_file}: {str(error).splitlines()[-1].strip()}") from error
    model.text_model.eval()
    if adapter is None:
        model.text_model.save(str(output))
    else:
        save_adapter(adapter.model, adapter.path, output)
    card = model_card(config, rollouts_of(checkpoint), checkpoint["global_step"], adapter is not None)
    (output / "README.md").write_text(card, encoding="utf-8")
    kind = "adapter" if adapter else "policy" if isinstance(model.text_model, Policy) else "reward model"
    print(f"The {kind} is in {output}. Read README.md there before you share it.")


def export_parser(add_help: bool = True) -> argparse.ArgumentParser:
    """What ``lit-align export`` takes."""
    description = "Write a run's policy, or its reward model, as a Hugging Face folder."
    parser = argparse.ArgumentParser("lit-align export", description=description, add_help=add_help)
    parser.add_argument("run", type=Path, help="folder of a run of fit, such as runs/first")
    parser.add_argument("--ckpt_path", type=Path, help="which checkpoint; RUN/checkpoints/last.ckpt if not given")
    parser.add_argument("--output", type=Path, help="folder to write; RUN/export if not given")
    parser.add_argument("--adapter", action="store_true", help="write the LoRA adapter alone, as peft reads it; merged if not given")
    return parser


def _adapted(policy: TextModel, run: Path) -> CausalPolicy:
    if not isinstance(policy, CausalPolicy) or policy.lora is None:
        raise UserError(
            f"{run} trained the whole model: it has no adapter that could be written alone. Leave --adapter out, and the model is written."
        )
    return policy


def load_module(config: Mapping[str, Any]) -> SteppingModule:
    """The algorithm with what it trains, as the ``model`` part of a run's config says."""
    accept_final_classes()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SteppingModule, "model")
    return parser.instantiate(parser.parse_object({"model": config})).model


def rollouts_of(checkpoint: Mapping[str, Any]) -> int:
    """How many rollouts a checkpoint has been trained on, the one under way not counted."""
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
