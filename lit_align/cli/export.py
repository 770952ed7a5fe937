"""``lit-align export``: what a run trained as a Hugging Face folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from lit_align.cli.card import model_card
from lit_align.cli.runs import LAST, check_run, refuse_existing, restore
from lit_align.models import CausalPolicy
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
    checkpoint_file: Path = options.ckpt_path or options.run / LAST
    output: Path = options.output or options.run / "export"
    check_run(options.run, checkpoint_file)
    refuse_existing(output)

    transformers_logging.disable_progress_bar()
    restored = restore(options.run, checkpoint_file)
    model = restored.module
    adapter = _adapted(model.text_model, options.run) if options.adapter else None
    if adapter is None:
        model.text_model.save(str(output))
    else:
        save_adapter(adapter.model, adapter.path, output)
    card = model_card(restored.config, restored.rollouts, restored.checkpoint["global_step"], adapter is not None)
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
