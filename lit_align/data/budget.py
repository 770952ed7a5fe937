"""How much a run may ask for, and whether the next rollout is within it."""

import math
from dataclasses import dataclass
from typing import final

from lit_align.types import UserError


@final
@dataclass(frozen=True)
class Budget:
    """What all ranks together may use, over the whole run and all of its resumes. None is no limit.

    A rollout that would go beyond it is not started, and the run ends at the checkpoint before it. Labels are counted exactly, those that a
    cache had included: runs of one budget learn from equally many. Tokens and money of the next rollout are estimated by what a
    label has cost so far in this run, so that they may be exceeded by the error of that estimate, and by the whole of the first rollout;
    attempts that may have been paid for are in both at the price of an average one.

    Args:
        labels: responses that are labelled, valid or not.
        tokens: read and written by models that an annotator asks through a meter, such as those behind an API.
        money: in the currency of the prices.

    Raises:
        UserError: if nothing is limited, or a limit is not positive.
    """

    labels: int | None = None
    tokens: int | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.labels, self.tokens, self.money) if limit is not None]
        if not limits or not all(0 < limit < math.inf for limit in limits):
            raise UserError(
                f"budget should limit labels, tokens or money to a positive number, got labels {self.labels}, tokens {self.tokens} and "
                f"money {self.money}. Leave budget out for no limit."
            )

    def shortage(self, used: "Use", wanted: float) -> str | None:
        """What ``wanted`` labels more would go beyond, None if nothing.

        >>> Budget(labels=100, tokens=5000).shortage(Use(labels=64, tokens=3200, money=0.0), wanted=32)
        >>> Budget(labels=100, tokens=4000).shortage(Use(labels=64, tokens=3200, money=0.0), wanted=32)
        'budget.tokens is 4,000, 3,200 are used, and about 1,600 more are needed'
        """
        if wanted <= 0:
            return None
        share = wanted / used.labels if used.labels else 0.0  # of a first rollout the cost is not known
        needs = (
            ("labels", self.labels, used.labels, wanted, ""),
            ("tokens", self.tokens, used.tokens, used.tokens * share, "about "),
            ("money", self.money, used.money, used.money * share, "about "),
        )
        for name, limit, spent, need, about in needs:
            if limit is not None and spent + need > limit:
                said = [f"{number:,.2f}" if name == "money" else f"{number:,.0f}" for number in (limit, spent, need)]
                return f"budget.{name} is {said[0]}, {said[1]} are used, and {about}{said[2]} more are needed"
        return None


@final
@dataclass(frozen=True)
class Use:
    """What all ranks have used so far; ``money`` is NaN where it is not known."""

    labels: float
    tokens: float
    money: float
