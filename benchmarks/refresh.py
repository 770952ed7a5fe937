"""A reward model that is fitted again on the policy's samples, and one that is not, in the quickstart's world.

After ``lit-align quickstart``, whose warmed-up policy and letters it uses:

    python -m benchmarks.refresh

samples answers of that policy, has them labelled by the gold rule, trains a reward model on the pairs of best and worst, and aligns the
policy with it three times: with one that never learns again, with one that was given as many labels before as the next one gets on the
way, and by configs/experiment/refresh.yaml as it is. It prints what the gold rule says of held-out answers as the runs go on.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.equal_kl import curve_of
from benchmarks.runs import fit, markdown
from lit_align.cli.trainer import run_trainer
from lit_align.data.pool import PromptPool
from lit_align.data.sources import JsonlPrompts
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.quickstart.rules import gold_score
from lit_align.types import Stream

WORLD, FOLDER = Path("runs/quickstart"), Path("runs/refresh")
NEVER = 10**6


def write_pairs(path: Path, prompts: int, seed: int) -> int:
    """The best and the worst of four answers to each of so many letters, by the gold rule; how many pairs that is."""
    policy, sampler = CausalPolicy(str(WORLD / "policy")), CacheSampler(max_new_tokens=64)
    source = JsonlPrompts(str(WORLD / "world" / "prompts.jsonl"))
    letters = PromptPool(source, policy, None, "drop", seed).take(0, prompts)
    lines = []
    with policy.inference():
        for start in range(0, prompts, 64):
            said = sampler.sample(policy, letters[start : start + 64], 4, Stream(seed, "pairs", 0))
            for prompt, texts in zip(said.prompts, said.texts, strict=True):
                ranked = [text for _, text in sorted(zip(gold_score(prompt, texts), texts, strict=True))]
                if ranked[0] != ranked[-1]:
                    lines.append(json.dumps({"prompt": prompt.content, "chosen": ranked[-1], "rejected": ranked[0]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def train_reward_model(folder: Path, prompts: int, passes: int, seed: int) -> None:
    """A new head on the warmed-up policy, fitted to the answers to so many letters, 32 pairs a step."""
    pairs = folder / "pairs.jsonl"
    steps = passes * write_pairs(pairs, prompts, seed) // 32
    options = {
        "model.init_args.network.init_args.path": WORLD / "policy",
        "model.init_args.optimizer.init_args.lr": 5e-4,
        "data.init_args.prompts.class_path": "lit_align.data.JsonlPrompts",
        "data.init_args.prompts.init_args.path": pairs,
        "data.init_args.prompts_per_rollout": 32,
        "data.init_args.micro_batch_prompts": 32,
        "data.init_args.max_response_tokens": 200,
        "trainer.accumulate_grad_batches": 1,
        "trainer.max_epochs": steps,
        "trainer.enable_checkpointing": "false",
        "seed_everything": seed,
        "run": folder / "training",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    cli = run_trainer(
        ["fit", "--config=configs/algorithm/reward_model.yaml", "--model.init_args.network=lit_align.models.RewardNetwork", *arguments]
    )
    cli.model.text_model.save(str(folder / "reward_model"))


def aligned(name: str, reward_model: Path, every_n_rollouts: int, rollouts: int, price: float, seed: int) -> list[tuple[float, ...]]:
    """Divergence, gold score and win rate of held-out answers as a run goes on."""
    files = ["algorithm/dar_anchored", "quickstart", "logger/csv", "experiment/refresh"]
    options: dict[str, object] = {
        "data.init_args.annotator.init_args.every_n_rollouts": every_n_rollouts,
        "data.init_args.annotator.init_args.annotator.init_args.path": reward_model,
        "model.init_args.alpha": price,
        "model.init_args.beta": price,
        "trainer.max_epochs": rollouts,
        "trainer.logger.name": "",
        "trainer.logger.version": "",
        "seed_everything": seed,
    }
    fit(FOLDER / name, [f"configs/{file}.yaml" for file in files], options)
    return [tuple(point) for point in curve_of(FOLDER / name / "metrics.csv")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Everything, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256, help="letters whose answers the reward model is trained on")
    parser.add_argument("--passes", type=int, default=12, help="over their pairs")
    parser.add_argument("--rollouts", type=int, default=40)
    parser.add_argument("--price", type=float, default=0.05, help="alpha and beta of DAR")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    later = 8 * options.rollouts  # letters that the teacher labels while the policy learns, as the config has it
    runs = {"never": (0, NEVER), "never, as many labels": (later, NEVER), "every 5 rollouts": (0, 5)}
    rows = []
    for name, (more, every) in runs.items():
        folder = FOLDER / f"trained-{more}"
        if not (folder / "reward_model").is_dir():
            train_reward_model(folder, options.prompts + more, options.passes, options.seed)
        run = name.replace(",", "").replace(" ", "-")
        curve = aligned(run, folder / "reward_model", every, options.rollouts, options.price, options.seed)
        rows += [[f"{name}: {what}", *(f"{point[n]:.2f}" for point in curve)] for n, what in enumerate(("nats", "gold", "win rate"))]
    print(markdown(["fitted again", *(str(10 * n) for n in range(len(rows[0]) - 1))], rows))


if __name__ == "__main__":
    main()
