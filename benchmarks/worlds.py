"""The two small worlds of the tables, in each of which a proxy trains and a gold rule judges, and fixed pairs from them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.stories import Proxy, data_folder
from lit_align.data import JsonlPrompts
from lit_align.data.pool import PromptPool
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.quickstart.rules import proxy_score
from lit_align.types import Prompt, Stream, UserError

TOKENS = 64  # of an answer, in both

Score = Callable[[Prompt, Sequence[str]], Sequence[float]]


class World(NamedTuple):
    """Where runs take place: ``config`` is the file of a run there, which follows that of its algorithm; ``prepare`` is the command
    that writes its prompts."""

    config: str
    prompts: str
    prepare: str
    policy: Callable[[], Path]
    proxy: Callable[[], Score]

    def check(self) -> None:
        """Refuse to begin where nothing has been prepared.

        Raises:
            UserError: that says what to do.
        """
        if not Path(self.prompts).is_file() or not (self.policy() / "config.json").is_file():
            raise UserError(f"There are no prompts in {self.prompts}, or no policy in {self.policy()}: run `{self.prepare}` here first.")

    def write_pairs(self, file: Path, count: int) -> None:
        """Two answers of the policy before training to each of ``count`` prompts, read as often as it takes, the one that the proxy
        likes better first. Where it likes both as much there is no pair."""
        file.parent.mkdir(parents=True, exist_ok=True)
        policy, score = CausalPolicy(str(self.policy())), self.proxy()
        prompts = PromptPool(JsonlPrompts(self.prompts), policy, None, "drop", 0).take(0, count)
        rows = []
        with policy.inference():
            for start in range(0, len(prompts), 100):
                rollouts = CacheSampler(max_new_tokens=TOKENS).sample(policy, prompts[start : start + 100], 2, Stream(0, "pairs", 0))
                for prompt, texts in zip(rollouts.prompts, rollouts.texts, strict=True):
                    (worse, rejected), (better, chosen) = sorted(zip(score(prompt, texts), texts, strict=True))
                    if better > worse:
                        rows.append({"prompt": prompt.content, "chosen": chosen, "rejected": rejected})
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def paired(file: Path) -> dict[str, object]:
    """The options of a run that has pairs for prompts and takes as many rollouts as all others."""
    return {
        "data": "lit_align.data.MixedDataModule",
        "data.init_args.prompts.init_args.path": file,
        "data.init_args.max_response_tokens": TOKENS,
        "data.init_args.fixed_passes": "null",
    }


WORLDS = {
    "stories": World(
        config="configs/experiment/stories.yaml",
        prompts="runs/stories-world/prompts.jsonl",
        prepare="python -m benchmarks.stories prepare",
        policy=lambda: data_folder() / "stories260K",
        proxy=lambda: Proxy(str(data_folder() / "sentiment_vader" / "vader_lexicon.txt")),
    ),
    "quickstart": World(
        config="configs/quickstart.yaml",
        prompts="runs/quickstart/world/prompts.jsonl",
        prepare="lit-align quickstart",
        policy=lambda: Path("runs/quickstart/policy"),
        proxy=lambda: proxy_score,
    ),
}
