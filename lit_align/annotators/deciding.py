"""Asking a rule, and what to say when it could not decide."""

import math
import warnings
from dataclasses import is_dataclass
from types import FunctionType
from typing import final

from lit_align.annotators.rules import Rule
from lit_align.types import Prompt


@final
class Decider:
    """Asks rules about responses; what can't be decided is NaN, never fatal, and said once.

    Args:
        owner: name of the annotator, for messages.

    Attributes:
        undecided: responses so far about which a rule raised an exception or returned no finite number.
    """

    def __init__(self, owner: str) -> None:
        self.owner, self.undecided = owner, 0

    def decide(self, rule: Rule, prompt: Prompt, response: str) -> float:
        """What the rule says, as a number; NaN where it says nothing."""
        try:
            said = rule(prompt, response)
            number = math.nan if said is None else float(said)
            problem = "could not decide: does the prompt have the reference answer that it needs?" if said is None else f"said {said!r}"
        except Exception as error:
            number, problem = math.nan, f"raised {error!r}"
        if math.isfinite(number):
            return number
        self.undecided += 1
        if self.undecided == 1:
            warnings.warn(
                f"{self.owner} expected yes, no or a finite number from {name_of(rule)}, but it {problem} (response "
                f"{response[:80]!r} to prompt {prompt.id}). Such a verdict does not count and the run goes on; later cases are counted in "
                "`undecided` and not shown.",
                stacklevel=2,
            )
        return math.nan


def name_of(rule: Rule) -> str:
    """Which rule it is: where a function is from, a dataclass with its values, any other object's class."""
    if is_dataclass(rule):
        return repr(rule)
    named = rule if isinstance(rule, FunctionType) else type(rule)
    return f"{named.__module__}.{named.__qualname__}"
