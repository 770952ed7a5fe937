"""What is to be reached on one GPU of the H200's class, and whether it was."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A number that should be at least ``wanted``.

    Args:
        name: in words.
        sizes: of the models that it is about.
        wanted: the least.
        read: takes it out of a result, in which it may be missing.
    """

    name: str
    sizes: frozenset[str]
    wanted: float
    read: Callable[[Mapping[str, Any]], float]


GOALS = (
    Goal("tokens a second of a rollout, times those of generate", frozenset({"0.5b"}), 8.0, lambda result: result["rollout"]["ratio"]),
    Goal("share of the decode roof", frozenset({"0.5b", "7b"}), 0.4, lambda result: result["rollout"]["of_the_roof"]["ours"]),
    Goal("model FLOP utilisation of a training step with LoRA", frozenset({"7b"}), 0.4, lambda result: result["rloo"]["ours"]["mfu"]),
)


def verdicts(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every goal with what was found, and whether it was met: None where it was not measured, or is about another size.

    >>> [verdict["met"] for verdict in verdicts({"size": "0.5b", "rollout": {"ratio": 7.9, "of_the_roof": {"ours": 0.4}}})]
    [False, True, None]
    """
    found = [_read(goal, result) for goal in GOALS]
    return [
        {"goal": goal.name, "wanted": goal.wanted, "found": number, "met": None if number is None else number >= goal.wanted}
        for goal, number in zip(GOALS, found, strict=True)
    ]


def _read(goal: Goal, result: Mapping[str, Any]) -> float | None:
    try:
        return goal.read(result) if result["size"] in goal.sizes else None
    except KeyError:
        return None
