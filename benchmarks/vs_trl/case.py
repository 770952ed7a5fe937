"""What is compared: an algorithm, a batch, lengths, a model."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

Algorithm = Literal["online_dpo", "rloo", "grpo", "sft", "dpo", "dar"]
ALGORITHMS: tuple[Algorithm, ...] = ("online_dpo", "rloo", "grpo", "sft", "dpo")  # those that TRL has
ONLINE: tuple[Algorithm, ...] = ("online_dpo", "rloo", "grpo")
SHAPES: dict[Algorithm, tuple[int, int]] = {
    "online_dpo": (16, 2),
    "rloo": (8, 4),
    "grpo": (8, 4),
    "sft": (32, 1),
    "dpo": (16, 2),
    "dar": (8, 4),
}

BETA: dict[Algorithm, float] = {"online_dpo": 0.1, "rloo": 0.05, "grpo": 0.04, "dpo": 0.1}
LEARNING_RATE, CLIP = 1e-5, 1.0  # small: texts of the last step are as long as those of the first


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Args:
        algorithm: on both sides. TRL has no DAR: there the other side is lit_align's own RLOO.
        model: a size that the benchmark trains, or a folder.
        prompts: of an optimizer step, which is one forward and backward pass.
        k: responses to each.
        prompt_tokens: of the longest prompt; the shortest has about a quarter of them.
        response_tokens: where a response is cut off.
        forced: every response has all of them: the end of sequence is not listened to.
        threads: of both sides.
    """

    algorithm: Algorithm
    model: str
    prompts: int
    k: int
    prompt_tokens: int = 64
    response_tokens: int = 64
    forced: bool = False
    threads: int = 1

    @property
    def online(self) -> bool:
        """Whether responses are sampled."""
        return self.algorithm not in ("sft", "dpo")

    @property
    def sides(self) -> tuple[str, str]:
        """Whose time is divided by whose."""
        return ("dar", "rloo") if self.algorithm == "dar" else ("trl", "ours")

    @property
    def name(self) -> str:
        """What is in the first column."""
        lengths = f"{self.prompt_tokens}+{self.response_tokens}{' forced' if self.forced else ''}"
        algorithm = "dar / rloo" if self.algorithm == "dar" else self.algorithm
        return f"{algorithm} {self.model}, {self.prompts} x {self.k}, {lengths}, {self.threads} thread{'s' * (self.threads > 1)}"

    def to_json(self) -> str:
        """For a process of its own."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Case":
        """The same case."""
        return cls(**json.loads(text))


def published(algorithm: Algorithm, model: str, threads: int) -> Case:
    """The batch that is compared unless another is asked for: 32 responses."""
    prompts, k = SHAPES[algorithm]
    return Case(algorithm, model, prompts, k, threads=threads)
