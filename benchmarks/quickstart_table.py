"""Every algorithm in the world of the quickstart: does it please the reader that never trained it?

``lit-align quickstart`` first: it makes the world and the warmed-up policy. Then, in the same folder,

    python -m benchmarks.quickstart_table [--algorithms dpo kto] [--seeds 3]

runs each file of ``configs/algorithm`` with ``configs/quickstart.yaml`` and the settings below, writes one line per run into
``runs/quickstart-table/results.jsonl``, and prints the table. A run whose line is there already is not run again.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from lit_align.cli.trainer import run_trainer
from lit_align.types import UserError

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
}


def run(algorithm: str, seed: int) -> dict[str, Any]:
    """One run, and what the judge says at its end."""
    folder = FOLDER / f"{algorithm}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    options = {f"model.init_args.{name}": str(value) for name, value in SETTINGS[algorithm].items()}
    options |= {"trainer.max_epochs": ROLLOUTS, "trainer.enable_checkpointing": "false", "seed_everything": seed, "run": folder}
    files = (f"configs/algorithm/{algorithm}.yaml", "configs/quickstart.yaml")
    cli = run_trainer(["fit", *(f"--config={file}" for file in files), *(f"--{name}={value}" for name, value in options.items())])
    said = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    return {"algorithm": algorithm, "seed": seed, "settings": SETTINGS[algorithm]} | {name: said[f"judge/{name}"] for name in METRICS}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown; one row per run."""
    lines = ["| algorithm | seed | settings | win rate | gold score, from | to | KL, nats |", "|---|---|---|---|---|---|---|"]
    for each in results:
        settings = ", ".join(f"{name.removeprefix('optimizer.init_args.')} {value:g}" for name, value in each["settings"].items())
        won = f"{each['win_rate']:.2f} ({each['win_rate_low']:.2f} to {each['win_rate_high']:.2f})"
        gold = f"{each['reference_score']:.2f} | {each['score']:.2f}"
        lines.append(f"| `{each['algorithm']}` | {each['seed']} | {settings} | {won} | {gold} | {each['kl_reference']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("quickstart_table", description="Every algorithm in the world of the quickstart.")
    parser.add_argument("--algorithms", nargs="*", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    options = parser.parse_args()
    if not Path("runs/quickstart/policy/config.json").is_file():
        raise UserError("There is no warmed-up policy in runs/quickstart/policy: run `lit-align quickstart` here first.")
    torch.set_num_threads(1)  # at this size a second thread waits more than it works
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / "results.jsonl"
    for seed in range(options.seeds):
        for algorithm in options.algorithms:
            if not any(
                (each["algorithm"], each["seed"], each["settings"]) == (algorithm, seed, SETTINGS[algorithm]) for each in read(file)
            ):
                with file.open("a", encoding="utf-8") as results:
                    results.write(json.dumps(run(algorithm, seed)) + "\n")
    wanted = {(algorithm, seed): SETTINGS[algorithm] for algorithm in options.algorithms for seed in range(options.seeds)}
    print(table([each for each in read(file) if wanted.get((each["algorithm"], each["seed"])) == each["settings"]]))


def read(file: Path) -> list[dict[str, Any]]:
    """All runs so far."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


if __name__ == "__main__":
    main()
