"""Algorithms at equal divergence: gold score and win rate where each has moved 10 nats from the reference.

The world is `benchmarks.stories`. The harder an algorithm pulls, the more the proxy gains from as many labels, and the further away the
policy is by then: scores at equal labels compare settings. What can be compared is what the gold rule says at equal divergence.

    export LIT_ALIGN_DATA=FOLDER; python -m benchmarks.stories prepare
    python -m benchmarks.equal_kl [--algorithms dar dpo] [--seeds 3]

runs each algorithm with the settings below, writes one line per run into ``runs/equal-kl/results.jsonl``, and prints the table. A run whose
line is there already is not run again.
"""

import argparse
import math
import time
from collections.abc import Sequence
from csv import DictReader
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch

from benchmarks.runs import fit, markdown, result_of, settings_text
from lit_align.types import UserError

NATS = 10.0
ROLLOUTS, EVERY = 30, 2
CONFIGS = Path(__file__).parents[1] / "configs"
FOLDER = Path("runs/equal-kl")
SETTINGS: dict[str, dict[str, float]] = {
    # One learning rate for all, 3e-4 (configs/experiment/stories.yaml), and anchors so weak that 10 nats are passed. All else as published.
    "dar": {},
    "dar_anchored": {"alpha": 0.03, "beta": 0.03},
    "dar_regression": {"alpha": 0.03, "beta": 0.03},
    "dar_policy_gradient": {"alpha": 0.03, "beta": 0.03},
    "dpo": {},
    "ipo": {"beta": 0.05},
    "slic": {"beta": 0.02},
    "iterative_sft": {},
    "rloo": {"beta": 0.01},
    "reinforce_pp": {},
    "grpo": {"beta": 0.01},
    "kto": {},
}


class Point(NamedTuple):
    """The held-out judgement of a policy."""

    nats: float
    gold: float
    wins: float


def at_nats(curve: Sequence[Point], nats: float) -> Point | None:
    """Where a run first is ``nats`` from the reference, between its judgements on a line over the root of the divergence; None if it
    never is that far.

    >>> at_nats([Point(0, 1.0, 0.5), Point(4, 3.0, 0.7), Point(16, 5.0, 0.9)], 9)
    Point(nats=9, gold=4.0, wins=0.8)
    """
    for before, after in pairwise(curve):
        if before.nats < nats <= after.nats:
            low, high = (math.sqrt(max(point.nats, 0.0)) for point in (before, after))
            share = (math.sqrt(nats) - low) / (high - low)
            return Point(nats, *(b + share * (a - b) for b, a in ((before.gold, after.gold), (before.wins, after.wins))))
    return None


def curve_of(metrics: Path) -> list[Point]:
    """The judgements in a CSV log, oldest first."""
    with metrics.open(encoding="utf-8") as file:
        judged = [row for row in DictReader(file) if row["judge/score"]]
    return [Point(*(float(row[f"judge/{name}"]) for name in ("kl_reference", "score", "win_rate"))) for row in judged]


def run(algorithm: str, seed: int, rollouts: int = ROLLOUTS) -> dict[str, Any]:
    """One run: its judgements, labels, and seconds of processor time, judgements included."""
    folder = FOLDER / f"{algorithm}-{seed}"
    options: dict[str, object] = {f"model.init_args.{name}": value for name, value in SETTINGS[algorithm].items()}
    options |= {"trainer.max_epochs": rollouts, "trainer.callbacks.every_n_rollouts": EVERY, "seed_everything": seed}
    options |= {"trainer.logger.name": "", "trainer.logger.version": ""}  # the log is in the run's folder
    files = [str(CONFIGS / file) for file in (f"algorithm/{algorithm}.yaml", "experiment/stories.yaml")]
    start = time.process_time()
    trainer = fit(folder, files, options)
    seconds = time.process_time() - start
    return {"labels": float(trainer.callback_metrics["labels/used"]), "seconds": seconds, "curve": curve_of(folder / "metrics.csv")}


def row(results: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]) -> list[str]:
    """The seeds of one algorithm, a line of the table."""
    curves = [[Point(*point) for point in result["curve"]] for result in results]
    there = [point for curve in curves if (point := at_nats(curve, NATS))]
    time_ratio = mean(r["seconds"] for r in results) / mean(r["seconds"] for r in baseline)
    return [
        f"`{results[0]['algorithm']}`",
        settings_text(results[0]["settings"]) or "as published",
        f"{len(there)} of {len(results)}",
        spread([point.gold for point in there], 3),
        spread([point.wins for point in there], 2),
        spread([curve[-1].nats for curve in curves], 1),
        spread([curve[-1].gold for curve in curves], 3),
        f"{mean(r['labels'] for r in results):,.0f}",
        f"{time_ratio:.2f}",
    ]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the smallest to the largest."""
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})" if values else "never there"


HEADER = ["algorithm", "settings", "reached", "gold at 10 nats", "win rate at 10 nats", "KL at the end, nats", "gold at the end", "labels"]


def main() -> None:
    parser = argparse.ArgumentParser("equal_kl", description="Algorithms at equal divergence from the reference.")
    parser.add_argument("--algorithms", nargs="*", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    options = parser.parse_args()
    if not Path("runs/stories-world/prompts.jsonl").is_file():
        raise UserError("There are no prompts in runs/stories-world: run `python -m benchmarks.stories prepare` here first.")
    torch.set_num_threads(1)  # at this size a second thread waits more than it works
    results: dict[str, list[dict[str, Any]]] = {algorithm: [] for algorithm in options.algorithms}
    for seed in range(options.seeds):
        for algorithm in options.algorithms:
            key = {"algorithm": algorithm, "seed": seed, "settings": SETTINGS[algorithm]}
            results[algorithm].append(result_of(FOLDER / "results.jsonl", key, partial(run, algorithm, seed)))
    first = options.algorithms[0]
    print(markdown([*HEADER, f"CPU time, `{first}` = 1"], [row(results[name], results[first]) for name in options.algorithms]))


if __name__ == "__main__":
    main()
