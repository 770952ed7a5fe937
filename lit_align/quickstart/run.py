"""``lit-align quickstart``: the whole story in minutes, on text that ships with the project."""

import argparse
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lit_align.algorithms.heldout import unlabelled_batch
from lit_align.data.pool import PromptPool
from lit_align.data.sources import JsonlPrompts
from lit_align.evaluation.win_rate import WinRate, win_rate
from lit_align.functional.logprobs import response_logps
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.quickstart.model import make_initial_policy
from lit_align.quickstart.rules import gold_score, proxy_score
from lit_align.quickstart.world import write_world
from lit_align.types import Policy, Rollouts, Stream, UserError

RunTrainer = Callable[[Sequence[str]], Any]
FOLDER = Path("runs/quickstart")  # as in the configs
SHOWN = 3
NEXT_STEPS = """
[bold]See it[/bold]    .venv/bin/tensorboard --logdir runs

[bold]Try next[/bold]
  another seed:
    .venv/bin/lit-align quickstart --seed 1
  the published setting for as long, and longer: the proxy goes on rising while the gold score falls
    .venv/bin/lit-align fit --config configs/algorithm/dar.yaml --config configs/quickstart.yaml --run runs/published
  a reward model in place of the reader, trained on noisy ratings on the way
    make quickstart-rlaif
  your own model, prompts and annotator: README.md
"""


@dataclass(frozen=True, slots=True)
class Answers:
    """Held-out letters answered by one policy, and what both rules say: ``[B]`` each."""

    rollouts: Rollouts
    gold: torch.Tensor
    proxy: torch.Tensor


def quickstart(arguments: Sequence[str], run_trainer: RunTrainer) -> None:
    """Warm a small policy up, align it online with DAR, have it judged by a rule that never trained it, and say what happened.

    Args:
        arguments: ``--seed`` and ``--rollouts``; see ``--help``.
        run_trainer: runs a Trainer's subcommand from its command line and returns the finished ``LightningCLI``.

    Raises:
        UserError: if the current folder has no ``configs``.
    """
    options = quickstart_parser().parse_args(list(arguments))
    if not Path("configs/quickstart.yaml").is_file():
        raise UserError(f"The quickstart reads configs/quickstart.yaml of a clone of the project, but this is {Path.cwd()}.")
    _settle_down()
    console, folder = Console(), FOLDER

    if (folder / "policy" / "config.json").is_file() and _seed_of(folder) == options.seed:
        console.print(f"[bold]1/3[/bold]  The warmed-up policy is in {folder / 'policy'} already.")
    else:
        console.print("[bold]1/3[/bold]  Supervised warm-up on letters and the answers of volunteers of very different care.")
        shutil.rmtree(folder, ignore_errors=True)
        _warm_up(folder, options.seed, run_trainer)

    console.print(
        "[bold]2/3[/bold]  Online alignment: answer letters, have them scored by a reader in a hurry, imitate the good ones, again."
    )
    shutil.rmtree(folder / "aligned", ignore_errors=True)
    length = [] if options.rollouts is None else [f"--trainer.max_epochs={options.rollouts}"]
    cli = run_trainer(
        [
            "fit",
            "--config=configs/algorithm/dar_anchored.yaml",
            "--config=configs/quickstart.yaml",
            f"--run={folder / 'aligned'}",
            f"--seed_everything={options.seed}",
            *length,
        ]
    )
    cli.model.policy.save(str(folder / "aligned" / "policy"))

    console.print("[bold]3/3[/bold]  Evaluation on held-out letters, by a careful reader who knows the rule that the world was made by.\n")
    before = _answers(CausalPolicy(str(folder / "policy")), folder, options.seed)
    after = _answers(cli.model.policy, folder, options.seed)
    _report(console, folder, before, after, cli, options.seed)


def quickstart_parser(add_help: bool = True) -> argparse.ArgumentParser:
    """What ``lit-align quickstart`` takes."""
    description = "Align a small policy online, on embedded data."
    parser = argparse.ArgumentParser("lit-align quickstart", description=description, add_help=add_help)
    parser.add_argument("--seed", type=int, default=0, help="of everything: world, warm-up, rollouts")
    parser.add_argument("--rollouts", type=int, default=None, help="how long to align; as configs/quickstart.yaml says if not given")
    return parser


def _warm_up(folder: Path, seed: int, run_trainer: RunTrainer) -> None:
    write_world(folder / "world", seed)
    rows = [json.loads(line) for line in (folder / "world" / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines()]
    make_initial_policy(folder / "initial", (row["prompt"] + row["response"] for row in rows), seed)
    cli = run_trainer(
        [
            "fit",
            "--config=configs/algorithm/sft.yaml",
            "--config=configs/quickstart_warmup.yaml",
            f"--run={folder / 'warm-up'}",
            f"--seed_everything={seed}",
        ]
    )
    cli.model.policy.save(str(folder / "policy"))
    (folder / "seed").write_text(str(seed), encoding="utf-8")


def _answers(policy: Policy, folder: Path, seed: int) -> Answers:
    """One answer to every held-out letter, with the same noise for every policy."""
    source = JsonlPrompts(str(folder / "world" / "eval_prompts.jsonl"))
    prompts = PromptPool(source, policy, None, "drop", seed).in_order()
    with policy.inference():
        rollouts = CacheSampler(max_new_tokens=64).sample(policy, prompts, 1, Stream(seed, "quickstart", 0))
    scores = [
        torch.tensor([rule(prompt, texts)[0] for prompt, texts in zip(rollouts.prompts, rollouts.texts, strict=True)])
        for rule in (gold_score, proxy_score)
    ]
    return Answers(rollouts, *scores)


def _divergence(answers: Answers, reference: Policy) -> float:
    """Mean of ``log pi - log pi_ref`` of the answers, in nats."""
    batch = unlabelled_batch(answers.rollouts)
    with reference.inference():
        logps = response_logps(reference(batch).token_logps, batch.loss_mask)
    return float((batch.sampling_response_logps - logps).mean())


def _report(console: Console, folder: Path, before: Answers, after: Answers, cli: Any, seed: int) -> None:
    judged: WinRate = win_rate(after.gold, before.gold)
    metrics = cli.trainer.callback_metrics
    table = Table(title=f"DAR after {cli.trainer.current_epoch} rollouts, {len(before.gold)} held-out letters, seed {seed}")
    for name in ("", "before", "after"):
        table.add_column(name, justify="left" if not name else "right")

    def row(name: str, measure: Callable[[Answers], float], form: str = ".2f") -> None:
        table.add_row(name, format(measure(before), form), format(measure(after), form))

    row("gold score (judges)", lambda a: float(a.gold.mean()))
    row("proxy score (trains)", lambda a: float(a.proxy.mean()))
    row("response length, tokens", lambda a: float(a.rollouts.response_mask.sum(-1).float().mean()), ".1f")
    row("responses that end by themselves", lambda a: float(a.rollouts.finished.float().mean()), ".0%")
    divergence = _divergence(after, CausalPolicy(str(folder / "policy")))
    table.add_row("KL to the reference, nats", "0.00", f"{divergence:.2f}")
    interval = f"{judged.value:.0%} ({judged.low:.0%} to {judged.high:.0%})"
    table.add_row("win rate against before, by gold", "50%", interval, end_section=True)
    table.add_row("effective sample size of weights", "", f"{float(metrics['weights/effective_sample_size']):.0%}")
    table.add_row("labels used", "", f"{int(metrics['labels/used']):,}")
    console.print(table)
    for i in range(SHOWN):
        console.print(f"\n[bold]Letter[/bold]  {before.rollouts.prompts[i].content}".rstrip(), highlight=False)
        for name, answers in (("before", before), ("after ", after)):
            console.print(
                f"  [dim]{name}  gold {float(answers.gold[i]):+.1f}[/dim]  {answers.rollouts.texts[i][0].strip()}", highlight=False
            )
    console.print(NEXT_STEPS, highlight=False, soft_wrap=True)
    summary = {
        "seed": seed,
        "rollouts": cli.trainer.current_epoch,
        "gold": [float(before.gold.mean()), float(after.gold.mean())],
        "proxy": [float(before.proxy.mean()), float(after.proxy.mean())],
        "win_rate": [judged.low, judged.value, judged.high],
        "kl_reference": divergence,
        "finished": [float(answers.rollouts.finished.float().mean()) for answers in (before, after)],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _seed_of(folder: Path) -> int | None:
    file = folder / "seed"
    return int(file.read_text(encoding="utf-8")) if file.is_file() else None


def _settle_down() -> None:
    """One thread, and what the story needs, not what the libraries say on the way."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)  # at this size a second thread waits more than it works
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
