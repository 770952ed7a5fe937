"""What asking has cost: calls, tokens, money."""

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import final

import torch

from lit_align.functional.distributed import global_sum
from lit_align.types import UserError

MILLION = 1_000_000


@final
@dataclass(frozen=True)
class Price:
    """What a model costs, in money of any one currency per million tokens.

    Args:
        prompt: of tokens that it reads.
        completion: of tokens that it writes.

    Raises:
        UserError: if one is negative or not finite.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        if not all(0 <= price < math.inf for price in (self.prompt, self.completion)):
            raise UserError(
                "prices should be money per million tokens, at least 0 and finite, got "
                f"prompt {self.prompt} and completion {self.completion}."
            )

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Of so many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / MILLION


Prices = Mapping[str, Price]
"""By name of the model, as its annotator asks for it."""


@final
@dataclass(frozen=True, slots=True)
class Spend:
    """What was asked, of one process or, after `everyones`, of all.

    What may be paid for counts as an average answered call of its model (as nothing where no call was answered yet).
    """

    calls: float = 0.0  # attempts, whatever became of them
    failures: float = 0.0  # attempts that came to nothing
    maybe_paid: float = 0.0  # of those and of the unanswered ones, how many the other side may charge for
    unpriced: float = 0.0  # attempts at models without a price
    hits: float = 0.0  # answers that were known, and questions not asked
    reused_labels: float = 0.0  # labels that a cache had
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    seconds: float = 0.0  # waiting for answers
    answers: float = 0.0
    price: float = 0.0  # of what was answered, where it is known
    maybe_tokens: float = 0.0  # of what may be paid for
    maybe_price: float = 0.0

    def __add__(self, other: "Spend") -> "Spend":
        return Spend(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def everyones(self, device: torch.device) -> "Spend":
        """The sum over all ranks, each of which must call this; ``device`` is that of the process group."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return Spend(*global_sum(torch.tensor(astuple(self), dtype=dtype, device=device)).tolist())

    @property
    def tokens(self) -> float:
        """Read and written, with those of what may be paid for."""
        return self.prompt_tokens + self.completion_tokens + self.maybe_tokens

    @property
    def money(self) -> float:
        """With that of what may be paid for; NaN where a model has no price."""
        return math.nan if self.unpriced else self.price + self.maybe_price

    @property
    def happened(self) -> bool:
        """Whether anything was asked of, or saved by, a meter."""
        return self.calls + self.hits + self.reused_labels > 0

    def metrics(self, owner: str = "") -> dict[str, float]:
        """``cost/...``, or ``cost/<owner>_...``; without the price where it is not known."""
        named = {
            "calls": self.calls,
            "failures": self.failures,
            "maybe_paid": self.maybe_paid,
            "hits": self.hits,
            "reused_labels": self.reused_labels,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds_per_answer": self.seconds / max(self.answers, 1),
        }
        if not self.unpriced:
            named["price"] = self.price
        return {f"cost/{owner}_{name}" if owner else f"cost/{name}": value for name, value in named.items()}

    @property
    def sentence(self) -> str:
        """For people.

        >>> Spend(calls=3, failures=1, answers=2, prompt_tokens=1200, completion_tokens=2, price=0.5, hits=4).sentence
        '3 calls (1 failed), 4 answers known already; 1,200 tokens read, 2 written; price: 0.50'
        """
        failed = f" ({self.failures:,.0f} failed)" if self.failures else ""
        known = f", {self.hits:,.0f} answers known already" if self.hits else ""
        cached = f", {self.reused_labels:,.0f} labels from a cache" if self.reused_labels else ""
        price = "unknown" if self.unpriced else f"{self.price:,.2f}"
        if self.maybe_paid:
            price += f", and perhaps that of {self.maybe_paid:,.0f} without an answer"
        tokens = f"{self.prompt_tokens:,.0f} tokens read, {self.completion_tokens:,.0f} written"
        return f"{self.calls:,.0f} calls{failed}{known}{cached}; {tokens}; price: {price}"
