"""Algorithms at equal divergence: gold score and win rate where each has moved as far from the reference.

The worlds are `benchmarks.worlds`. The harder an algorithm pulls, the more the proxy gains from as many labels, and the further away the
policy is by then: scores at equal labels compare settings. What can be compared is what the gold rule says at equal divergence.

    export LIT_ALIGN_DATA=FOLDER; python -m benchmarks.stories prepare
    python -m benchmarks.equal_kl [--world quickstart] [--algorithms dar dpo] [--seeds 3]

runs each algorithm with the settings below, writes one line per run into ``runs/equal-kl/WORLD/results.jsonl``, and prints the table. A run
whose line is there already is not run again.
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
from benchmarks.worlds import WORLDS, paired

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs/equal-kl")


class Comparison(NamedTuple):
    """What is compared in a world: where runs are read, how long they are and how often they are judged, in rollouts; what of a model is
    not as published."""

    nats: float
    rollouts: int
    every: int
    settings: dict[str, dict[str, float | str]]


PAIRED: dict[str, dict[str, float | str]] = {  # with fixed rows, as many as published; the same in both worlds
    "dpo_offline": {},
    "sail_dp": {},
    "sail_pp": {},
    "sail_pr": {},
    "sail_pr_revkl": {},
    "sail_dp_revkl": {"reference_kl": 0.01},
}
# All else is as published, but for the optimizer: that of the world's file, one learning rate for all. Anchors are so weak that the
# distance is passed.
COMPARISONS = {
    "stories": Comparison(
        nats=10.0,
        rollouts=30,
        every=2,
        settings={
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
            "ppo": {"missing_eos": "null", "beta": 0.01},  # nearly all answers are cut off: all scores would be set to the same
            **PAIRED,
        },
    ),
    "quickstart": Comparison(
        nats=1.0,
        rollouts=20,
        every=2,
        settings={
            "dar": {},
            "dpo": {},
            "rloo": {},
            "ppo": {},
            **PAIRED,
        },
    ),
}
FILES = {"dpo_offline": "dpo", "sail_dp_revkl": "sail_dp"}  # of configs/algorithm, where it has another name than the line
PAIRS = 2000  # prompts that two answers of the reference are drawn for
ROWS = {
    f"data.init_args.{name}": rows for name, rows in (("prompts_per_rollout", 64), ("micro_batch_prompts", 64), ("responses_per_prompt", 2))
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


def run(world: str, algorithm: str, seed: int) -> dict[str, Any]:
    """One run: its judgements, labels, and seconds of processor time, judgements included."""
    compared, place = COMPARISONS[world], WORLDS[world]
    folder, pairs = FOLDER / world / f"{algorithm}-{seed}", FOLDER / world / "pairs.jsonl"
    options: dict[str, object] = {f"model.init_args.{name}": value for name, value in compared.settings[algorithm].items()}
    options |= {"trainer.max_epochs": compared.rollouts, "seed_everything": seed}
    options |= {"trainer.callbacks.every_n_rollouts": compared.every}  # of the last one, the judge
    options |= {"trainer.logger": "lightning.pytorch.loggers.CSVLogger", "trainer.logger.name": "", "trainer.logger.version": ""}
    if algorithm in PAIRED:
        if not pairs.is_file():
            place.write_pairs(pairs, PAIRS)
        options |= paired(pairs) | ROWS
    files = [str(ROOT / file) for file in (f"configs/algorithm/{FILES.get(algorithm, algorithm)}.yaml", place.config)]
    start = time.process_time()
    trainer = fit(folder, files, options)
    seconds = time.process_time() - start
    labels = float(trainer.callback_metrics.get("labels/used", 0.0))
    return {"labels": labels, "seconds": seconds, "curve": curve_of(folder / "metrics.csv")}


def row(results: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]], nats: float) -> list[str]:
    """The seeds of one algorithm, a line of the table."""
    curves = [[Point(*point) for point in result["curve"]] for result in results]
    there = [point for curve in curves if (point := at_nats(curve, nats))]
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


def header(nats: float, first: str) -> list[str]:
    """What the columns are."""
    there, end = f"at {nats:g} nat{'s' if nats != 1 else ''}", "at the end"
    return [
        *("algorithm", "settings", "reached", f"gold {there}", f"win rate {there}"),
        *(f"KL {end}, nats", f"gold {end}", "labels", f"CPU time, `{first}` = 1"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser("equal_kl", description="Algorithms at equal divergence from the reference.")
    parser.add_argument("--world", default="stories", choices=[*COMPARISONS])
    parser.add_argument("--algorithms", nargs="*", help="all of that world if not said")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    options = parser.parse_args()
    compared = COMPARISONS[options.world]
    names = options.algorithms or [*compared.settings]
    if unknown := [name for name in names if name not in compared.settings]:
        parser.error(f"there is no {', '.join(unknown)} in this world, but {', '.join(compared.settings)}")
    WORLDS[options.world].check()
    torch.set_num_threads(1)  # at this size a second thread waits more than it works
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(options.seeds):
        for name in names:
            key = {"algorithm": name, "seed": seed, "settings": compared.settings[name]}
            results[name].append(result_of(FOLDER / options.world / "results.jsonl", key, partial(run, options.world, name, seed)))
    print(markdown(header(compared.nats, names[0]), [row(results[name], results[names[0]], compared.nats) for name in names]))


if __name__ == "__main__":
    main()
