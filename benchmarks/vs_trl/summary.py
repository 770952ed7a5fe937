"""Numbers of a case from the turns of both sides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import NamedTuple


class Turn(NamedTuple):
    """One optimizer step with everything that belongs to it: seconds, and tokens that were real, not padding."""

    wall: float
    cpu: float
    prompt_tokens: int  # of every prompt once
    response_tokens: int


@dataclass(frozen=True)
class Spread:
    """A median and the range that it is from."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value.

        >>> Spread.of([3.0, 1.0, 2.5])
        Spread(median=2.5, low=1.0, high=3.0)
        """
        return cls(median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        """For a table.

        >>> Spread(2.123, 1.9, 2.5).text()
        '2.12 (1.90-2.50)'
        """
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def median_between(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Two of ``values`` between which the median of their distribution lies with at least this probability, whatever the distribution.

    The j-th smallest of n is above the median only if fewer than j values are below it, which is as likely as fewer than j heads in n
    throws of a coin. None where even the smallest and the largest are too near for that: of fewer than 6 values.

    >>> median_between(range(1, 17))
    (4, 13)
    >>> median_between(range(5))
    """
    ordered, n = sorted(values), len(values)
    outside = [2 * sum(math.comb(n, i) for i in range(j)) / 2**n for j in range(1, n // 2 + 1)]  # if the j-th from each end are taken
    narrow = [j for j, probability in enumerate(outside, 1) if probability <= 1 - confidence]
    return (ordered[narrow[-1] - 1], ordered[-narrow[-1]]) if narrow else None


def ratios(theirs: Sequence[Turn], ours: Sequence[Turn], clock: str) -> list[float]:
    """How many times longer theirs take for a response token, turn by turn, by the ``clock`` ``wall`` or ``cpu``.

    >>> ratios([Turn(2.0, 3.0, 9, 100)], [Turn(1.0, 1.0, 9, 200)], "cpu")
    [6.0]
    """
    pairs = zip(theirs, ours, strict=True)
    return [(getattr(a, clock) / a.response_tokens) / (getattr(b, clock) / b.response_tokens) for a, b in pairs]


def tokens_per_second(turns: Sequence[Turn]) -> float:
    """Response tokens of a second of wall time, median."""
    return median(turn.response_tokens / turn.wall for turn in turns)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent of the power law that fits best: least squares in logarithms.

    >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    log_x, log_y = [math.log(value) for value in x], [math.log(value) for value in y]
    centre_x, centre_y = mean(log_x), mean(log_y)
    products = sum((a - centre_x) * (b - centre_y) for a, b in zip(log_x, log_y, strict=True))
    return products / sum((a - centre_x) ** 2 for a in log_x)
