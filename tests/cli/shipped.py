"""The shipped configs, and how to damage them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
BEFORE = {
    "quickstart_warmup.yaml": "sft.yaml",
    "experiment/local_sft.yaml": "sft.yaml",
    "experiment/local_reward.yaml": "reward_model.yaml",
    "experiment/chain/reward_model.yaml": "reward_model.yaml",
    "experiment/chain/ppo.yaml": "ppo.yaml",
    "experiment/chain_stories/sft.yaml": "sft.yaml",
    "experiment/chain_stories/reward_model.yaml": "reward_model.yaml",
    "experiment/chain_stories/ppo.yaml": "ppo.yaml",
    "experiment/rlaif/reward_model.yaml": "reward_model.yaml",
}
NAMED_BY_THE_USER = ("aspects", "weights", "verifiers", "options")  # whose keys may be anything
DATA = ("items",)  # which a class reads by itself


@dataclass(frozen=True)
class Damage:
    """One letter of ``right`` made another, at ``line``."""

    text: str
    right: str
    wrong: str
    line: int
    is_class: bool


def context(file: str) -> list[str]:
    """The files that go before it."""
    if file.startswith("algorithm/"):
        return []
    return [str(CONFIGS / "algorithm" / BEFORE.get(file, "dar_anchored.yaml"))]


def damages(file: str) -> Iterator[Damage]:
    """Every key, and the last part of every class path, with one letter wrong."""
    text = (CONFIGS / file).read_text(encoding="utf-8")
    for node, is_class in _names(yaml.compose(text, yaml.SafeLoader)):
        start, end = node.start_mark.index, node.end_mark.index
        right = text[start:end]
        place = start + right.rfind(".") + 1 + len(right.rpartition(".")[2]) // 2
        letter = "q" if text[place] != "q" else "x"
        damaged = text[:place] + letter + text[place + 1 :]
        yield Damage(damaged, right, damaged[start:end], node.start_mark.line + 1, is_class)


def _names(node: yaml.Node | None, of_the_user: bool = False) -> Iterator[tuple[yaml.Node, bool]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not of_the_user:
                yield key, False
            if key.value == "class_path":
                yield value, True
            if key.value not in DATA:
                yield from _names(value, key.value in NAMED_BY_THE_USER)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _names(item)


SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.accumulate_grad_batches=1",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
    "--data.init_args.prompts_per_rollout=8",
    "--data.init_args.micro_batch_prompts=4",
    "--data.init_args.sampler.init_args.max_new_tokens=6",
    "--model.init_args.optimizer.init_args.lr=0.01",
]
PARTS = ("algorithm/dar_anchored.yaml", "experiment/local.yaml", "annotator/function.yaml")
OWN = [*(f"--config={CONFIGS / part}" for part in PARTS), *SMALL]
