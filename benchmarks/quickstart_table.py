"""Every algorithm in the world of the quickstart: does it please the reader that never trained it?

``lit-align quickstart`` first: it makes the world and the warmed-up policy. Then, in the same folder,

    python -m benchmarks.quickstart_table [--algorithms dpo kto] [--seeds 3]

runs each file of ``configs/algorithm`` with ``configs/quickstart.yaml`` and the settings below, writes one line per run into
``runs/quickstart-table/results.jsonl``, and prints the table. A run whose line is there already is not run again.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.runs import fit, markdown, result_of, settings_text
from benchmarks.worlds import WORLDS, paired

WORLD = WORLDS["quickstart"]
ROLLOUTS = 20
FOLDER = Path("runs/quickstart-table")
METRICS = ("win_rate", "win_rate_low", "win_rate_high", "score", "reference_score", "kl_reference")
SETTINGS: dict[str, dict[str, float]] = {
    # The learning rate, and what else is in units of another world. All else is as published, with K = 4 and 32 prompts.
    "dar_anchored": {"optimizer.init_args.lr": 1e-3},
    "dar": {"optimizer.init_args.lr": 3e-4},
    "dar_regression": {"optimizer.init_args.lr": 1e-3},
    "dar_policy_gradient": {"optimizer.init_args.lr": 1e-3},
    "dpo": {"optimizer.init_args.lr": 3e-4},
    "ipo": {"optimizer.init_args.lr": 3e-4, "beta": 0.1},
    "slic": {"optimizer.init_args.lr": 3e-4, "beta": 0.1},
    "simpo": {"optimizer.init_args.lr": 3e-4},
    "orpo": {"optimizer.init_args.lr": 3e-4},
    "kto": {"optimizer.init_args.lr": 1e-3},
    "inpo": {"optimizer.init_args.lr": 3e-4},
    "iterative_dpo": {"optimizer.init_args.lr": 1e-4},
    "iterative_sft": {"optimizer.init_args.lr": 3e-4},
    "rloo": {"optimizer.init_args.lr": 3e-4},
    "reinforce_pp": {"optimizer.init_args.lr": 3e-4},
    "ppo": {"optimizer.init_args.lr": 3e-4},
    "grpo": {"optimizer.init_args.lr": 3e-4},
    "dr_grpo": {"optimizer.init_args.lr": 3e-4, "normaliser.init_args.tokens": 64},
    "dapo": {"optimizer.init_args.lr": 3e-4, "overlong.longest": 64, "overlong.cache": 16},
    "gspo": {"optimizer.init_args.lr": 3e-4},
    "cispo": {"optimizer.init_args.lr": 3e-4},
    "sail_dp": {"optimizer.init_args.lr": 3e-4},
    "sail_pp": {"optimizer.init_args.lr": 3e-4},
    "sail_pr": {"optimizer.init_args.lr": 3e-4},
    "sail_pr_revkl": {"optimizer.init_args.lr": 3e-4},
}
PAIRS = FOLDER / "pairs.jsonl"  # for those that have fixed rows


def run(algorithm: str, seed: int) -> dict[str, float]:
    """What the judge says at the end of one run."""
    options: dict[str, object] = {f"model.init_args.{name}": value for name, value in SETTINGS[algorithm].items()}
    options |= {"trainer.max_epochs": ROLLOUTS, "seed_everything": seed}
    file = f"configs/algorithm/{algorithm}.yaml"
    options |= paired(PAIRS) if "MixedDataModule" in Path(file).read_text(encoding="utf-8") else {}
    said = fit(FOLDER / f"{algorithm}-{seed}", (file, WORLD.config), options).callback_metrics
    return {name: float(said[f"judge/{name}"]) for name in METRICS}


def row(result: dict[str, Any]) -> list[str]:
    """One run, a line of the table."""
    won = f"{result['win_rate']:.2f} ({result['win_rate_low']:.2f} to {result['win_rate_high']:.2f})"
    numbers = [won, f"{result['reference_score']:.2f}", f"{result['score']:.2f}", f"{result['kl_reference']:.1f}"]
    return [f"`{result['algorithm']}`", str(result["seed"]), settings_text(result["settings"]), *numbers]


def main() -> None:
    parser = argparse.ArgumentParser("quickstart_table", description="Every algorithm in the world of the quickstart.")
    parser.add_argument("--algorithms", nargs="*", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    options = parser.parse_args()
    WORLD.check()
    torch.set_num_threads(1)  # at this size a second thread waits more than it works
    if not PAIRS.is_file():
        WORLD.write_pairs(PAIRS, 1000)  # as many letters as a run reads, and more
    rows = []
    for seed in range(options.seeds):
        for algorithm in options.algorithms:
            key = {"algorithm": algorithm, "seed": seed, "settings": SETTINGS[algorithm]}
            rows.append(row(result_of(FOLDER / "results.jsonl", key, partial(run, algorithm, seed))))
    print(markdown(["algorithm", "seed", "settings", "win rate", "gold score, from", "to", "KL, nats"], rows))


if __name__ == "__main__":
    main()
