"""From the name of a model, a run or a checkpoint to what it says, for commands that train nothing."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
from transformers.utils import logging as transformers_logging

from lit_align.cli.runs import CONFIG, LAST, built, check_run, restore, run_config
from lit_align.data.pool import PromptEncoder
from lit_align.data.readers import reader_of
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import Annotator, Policy, PromptSource, Rollouts, Sampler, Stream, UserError

CHUNK = 32  # prompts that are sampled together


@final
@dataclass(frozen=True, slots=True)
class Sampling:
    """The one sampler that every model is asked by, with the same noise; None leaves a model its ``temperature`` and template."""

    sampler: Sampler
    seed: int
    temperature: float | None
    chat_template: str | None

    def policy(self, source: str) -> Policy:
        """The policy that a Hugging Face folder or name, a run's folder or one of its checkpoints holds, ready to answer.

        Raises:
            UserError: if it holds none.
        """
        transformers_logging.disable_progress_bar()
        found = checkpoint_of(source)
        if found is None:
            policy: Any = CausalPolicy(source, chat_template=self.chat_template)
        elif self.chat_template is not None:
            raise UserError(
                f"--chat_template would be ignored: {source} is of a run, whose config says how it reads messages. Leave it out."
            )
        else:
            check_run(*found)
            policy = restore(*found).module.text_model
            if not isinstance(policy, Policy):
                raise UserError(f"{source} is a reward model, which says nothing. Give a policy, or let it judge by RewardModelAnnotator.")
        if self.temperature is not None:
            policy.temperature = self.temperature
        return policy.to("cuda" if torch.cuda.is_available() else "cpu")

    def answers(self, policy: Policy, prompts: PromptSource, responses: int, stream: str) -> Iterator[Rollouts]:
        """``responses`` answers to each prompt that leaves room for one, a few prompts at a time; ``stream`` names the noise."""
        context = policy.context_length
        encoder = PromptEncoder(policy, None if context is None else context - self.sampler.max_new_tokens, "drop")
        everyone = reader_of(prompts, encoder, self.seed).in_order()
        with policy.inference():
            for start in range(0, len(everyone), CHUNK):
                chunk = everyone[start : start + CHUNK]
                yield self.sampler.sample(policy, chunk, responses, Stream(self.seed, stream, 0)).to("cpu")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """What `sampling_of` reads."""
    parser.add_argument("--max_new_tokens", type=int, help="longest answer, in tokens; the sampler's own if not given")
    parser.add_argument("--temperature", type=float, help="of every model; a run's own, and 1 for a folder, if not given")
    parser.add_argument("--chat_template", help="a Jinja file for models without a chat template")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of bootstraps")


def sampling_of(options: argparse.Namespace, sampler: Sampler | None, sources: Sequence[str]) -> Sampling:
    """The sampler of the configs, or of the first run among ``sources``, or the default one, with what the options say.

    Raises:
        UserError: if an option is no positive number.
    """
    for name in ("max_new_tokens", "temperature"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} should be positive, got {value}.")
    if sampler is None:
        of_runs = [part for run in runs_of(sources) if (part := data_part(run, "sampler"))]
        sampler = built(Sampler, of_runs[0]) if of_runs else CacheSampler()
    if options.max_new_tokens is not None:
        sampler.max_new_tokens = options.max_new_tokens
    return Sampling(sampler, options.seed, options.temperature, options.chat_template)


def checkpoint_of(source: str) -> tuple[Path, Path] | None:
    """The run, and the file, that a source means where it is a run's folder, by its last checkpoint, or a checkpoint; None of a model."""
    path = Path(source)
    if path.suffix == ".ckpt":
        return run_of(source) or path.parent.parent, path
    return (path, path / LAST) if _is_run(path) else None


def run_of(source: str) -> Path | None:
    """The folder of the run that a source is, or lies in; None for what comes from anywhere else."""
    path = Path(source)
    return next((folder for folder in [path, *path.parents][:3] if _is_run(folder)), None)


def runs_of(sources: Sequence[str]) -> list[Path]:
    """The runs among them, each once."""
    return list(dict.fromkeys(run for source in sources if (run := run_of(source)) is not None))


def data_part(run: Path, name: str) -> dict[str, Any] | None:
    """A class with its arguments that the data of a run has under ``name``."""
    part = run_config(run).get("data", {}).get("init_args", {}).get(name)
    return part if isinstance(part, dict) else None


def _is_run(folder: Path) -> bool:
    config = run_config(folder) if (folder / CONFIG).is_file() else None
    return isinstance(config, dict) and {"model", "data", "run"} <= config.keys()


@cache
def trained_for(run: Path) -> str:
    """The identity of the annotator whose labels trained a run; empty where there is none, or it can't be built any more."""
    part = data_part(run, "annotator")
    try:
        return "" if part is None else built(Annotator, part).identity
    except Exception:  # a user's module may be gone, or fail in any way; the comparison can do without
        return ""
