"""What the project wants of these numbers, and which of them are there.

A target of a ratio is for natural lengths and the published shapes; ``must``, ``bar`` and ``goal`` are each harder than the one before.
"""

from typing import NamedTuple

from benchmarks.vs_trl.case import Algorithm, Case, published


class Aims(NamedTuple):
    """Ratios to reach."""

    must: float
    bar: float
    goal: float


SMALL: dict[Algorithm, Aims] = {"online_dpo": Aims(2.1, 2.5, 3.0), "rloo": Aims(3.5, 4.5, 5.0), "grpo": Aims(2.5, 3.0, 3.5)}
LARGE: dict[Algorithm, Aims] = {"online_dpo": Aims(1.5, 1.6, 2.0), "rloo": Aims(3.2, 3.3, 4.0), "grpo": Aims(1.8, 2.0, 2.5)}
LINES: dict[Case, Aims] = {published(algorithm, "5m", 1): aims for algorithm, aims in SMALL.items()}
LINES |= {published(algorithm, "25m", 2): aims for algorithm, aims in LARGE.items()}
FLOORS, MEMORY, LOOP, DAR = 1.6, 0.5, 0.03, 1.03  # times the floor, of TRL's peak, of a step: at most; DAR's step by RLOO's: at most


def reached(ratio: float, aims: Aims) -> str:
    """The hardest one that is reached.

    >>> [reached(ratio, Aims(2.0, 3.0, 4.0)) for ratio in (1.99, 2.0, 3.5, 4.0)]
    ['missed', 'must', 'bar', 'goal']
    """
    there = [name for name, wanted in aims._asdict().items() if ratio >= wanted]
    return there[-1] if there else "missed"


def limited(value: float | None, most: float, text: str) -> str:
    """``text``, and whether ``value`` is at most ``most``; None was not measured.

    >>> limited(1.6, 1.6, "1.6"), limited(1.61, 1.6, "1.61"), limited(None, 1.6, "")
    ('1.6: met', '1.61: missed', '?')
    """
    return "?" if value is None else f"{text}: {'met' if value <= most else 'missed'}"
