"""What is compared: an algorithm, a batch, lengths, a model."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

Algorithm = Literal["online_dpo", "rloo", "grpo", "sft", "dpo"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
ONLINE: tuple[Algorithm, ...] = ("online_dpo", "rloo", "grpo")
SHAPES: dict[Algorithm, tuple[int, int]] = {"online_dpo": (16, 2), "rloo": (8, 4), "grpo": (8, 4), "sft": (32, 1), "dpo": (16, 2)}

BETA: dict[Algorithm, float] = {"online_dpo": 0.1, "rloo": 0.05, "grpo": 0.04, "dpo": 0.1}
LEARNING_RATE, CLIP = 1e-5, 1.0  # small: texts of the last step are as long as those of the first


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Args:
        algorithm: on both sides.
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
        return self.algorithm in ONLINE

    @property
    def name(self) -> str:
        """What is in the first column."""
        lengths = f"{self.prompt_tokens}+{self.response_tokens}{' forced' if self.forced else ''}"
        return f"{self.algorithm} {self.model}, {self.prompts} x {self.k}, {lengths}, {self.threads} thread{'s' * (self.threads > 1)}"

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


def everything(threads: int = 2) -> Iterator[Case]:
    """Every line of the page, the most important first; ``threads`` of the larger model."""
    for algorithm in ALGORITHMS:
        yield published(algorithm, "5m", 1)
    for algorithm in ONLINE:
        yield replace(published(algorithm, "5m", 1), forced=True)
    rloo = published("rloo", "5m", 1)
    for k in (2, 16):
        yield replace(rloo, k=k)
    yield replace(rloo, prompt_tokens=256)
    yield replace(rloo, response_tokens=256)
    for algorithm in ALGORITHMS:
        yield published(algorithm, "25m", threads)


Axis = Literal["k", "length", "batch", "size"]


def swept(axis: Axis, case: Case) -> list[Case]:
    """``case`` at growing values of one axis, everything else as it is; lengths are forced, so that only the axis moves."""
    case = replace(case, forced=case.online)
    match axis:
        case "k":
            return [replace(case, k=k) for k in (2, 4, 8, 16)]
        case "length":
            return [replace(case, response_tokens=tokens) for tokens in (32, 64, 128, 256)]
        case "batch":
            return [replace(case, prompts=prompts) for prompts in (4, 8, 16, 32)]
        case "size":
            return [replace(case, model=model) for model in ("1m", "5m", "12m", "25m")]


def along(axis: Axis, case: Case, parameters: int) -> float:
    """Where ``case`` is on the axis; ``parameters`` of its model."""
    return {"k": case.k, "length": case.response_tokens, "batch": case.prompts, "size": parameters}[axis]
