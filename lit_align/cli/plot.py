"""``lit-align plot``: score against the root of KL, from what runs logged."""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_align.evaluation.reward_kl import curve, drawn
from lit_align.types import UserError

Logged = dict[str, dict[int, float]]
"""Metric -> x -> value."""


def plot(arguments: Sequence[str]) -> None:
    """Draw the curves of runs into one picture, and write their points beside it.

    Args:
        arguments: runs and options; see ``--help``.

    Raises:
        UserError: if a run logged nothing, or not both metrics.
    """
    options = plot_parser().parse_args(list(arguments))
    divergence = options.kl or ("judge/kl_reference" if options.score.startswith("judge/") else "kl/reference")
    curves = {}
    for run in options.runs:
        logged = _logged(run)
        for metric in (options.score, divergence):
            if metric not in logged:
                known = ", ".join(sorted(logged)) or "nothing"
                raise UserError(f"{run} logged no {metric}. Choose others with --score and --kl; its logs have: {known}.")
        curves[str(run)] = curve(logged[divergence], logged[options.score])
        if not curves[str(run)].roots:
            raise UserError(f"{run} logged {options.score} and {divergence} at no common x. Choose two that belong together.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    drawn(curves, options.score).save(options.output, format="PNG")
    points = options.output.with_suffix(".json")
    said = {"score": options.score, "kl": divergence, "runs": {name: asdict(line) for name, line in curves.items()}}
    points.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    for name, line in curves.items():
        if line.slope is not None:
            print(f"{name}: {options.score} is about {line.intercept:.3g} + {line.slope:.3g} x root of KL, over {len(line.roots)} points.")
    print(f"The picture is {options.output}, its points are in {points}.")


def plot_parser(add_help: bool = True) -> argparse.ArgumentParser:
    """What ``lit-align plot`` takes."""
    description = "Draw score against the square root of KL to the reference, from the logs of runs (TensorBoard or CSV)."
    parser = argparse.ArgumentParser("lit-align plot", description=description, add_help=add_help)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs of fit")
    parser.add_argument("--score", default="reward/mean", help="the metric to draw; reward/mean if not given")
    parser.add_argument("--kl", help="the divergence; kl/reference, and judge/kl_reference for a judge's score, if not given")
    parser.add_argument("--output", type=Path, default=Path("reward_kl.png"), help="the picture; reward_kl.png if not given")
    return parser


def _logged(run: Path) -> Logged:
    """Every scalar in the run's event files, or else in its tables; of an x that comes twice, as after a crash, the last value."""
    if any(run.glob("events.out.tfevents*")):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0})
        events.Reload()
        return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    found: Logged = {}
    for file in sorted(run.rglob("metrics.csv"), key=lambda file: file.stat().st_mtime):
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                for metric, value in row.items():
                    if metric != "step" and value and row["step"]:
                        found.setdefault(metric, {})[int(row["step"])] = float(value)
    if not found:
        raise UserError(
            f"{run} has no logs: expected TensorBoard's event files or a metrics.csv in it. Give the folder of a run (its --run)."
        )
    return found
