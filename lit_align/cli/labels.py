"""What the labels of a file of pairs mean."""

import math
from dataclasses import dataclass, fields
from typing import final

from lit_align.data.messages import shown
from lit_align.evaluation.agreement.pairs import FIRST, SECOND, TIE
from lit_align.types import UserError


@final
@dataclass(frozen=True, slots=True)
class Labels:
    """Which labels mean that the first response is better, that the second is, that they tie, and that there is no verdict. Upper and
    lower case are the same, and so are a number and its text; null is always no verdict.

    Raises:
        UserError: if a label has two meanings.
    """

    first: tuple[str, ...] = ("1", "a", "model_a", "first")
    second: tuple[str, ...] = ("2", "b", "model_b", "second")
    tie: tuple[str, ...] = ("tie", "tie (inconsistent)")
    none: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        meaning: dict[str, str] = {}
        for option in fields(self):
            for label in getattr(self, option.name):
                other = meaning.setdefault(_plain(label), option.name)
                if other != option.name:
                    raise UserError(
                        f"The label {label!r} would mean both {other} and {option.name}. Give --{other} and --{option.name} lists "
                        "of their own; what is given takes the place of what is usual."
                    )

    def choice(self, label: object, where: str) -> int | None:
        """FIRST, TIE or SECOND; None where there is no verdict.

        Raises:
            UserError: if nobody said what the label means.
        """
        if label is None or (isinstance(label, float) and math.isnan(label)):
            return None
        for names, choice in ((self.first, FIRST), (self.second, SECOND), (self.tie, TIE), (self.none, None)):
            if _plain(label) in map(_plain, names):
                return choice
        known = "; ".join(f"{option.name}: {', '.join(getattr(self, option.name)) or 'null'}" for option in fields(self))
        raise UserError(
            f"{where}: nobody said what the label {shown(label)} means. Known are {known}. Say it with --first, --second, --tie or, if it "
            "is no verdict, --none."
        )


def _plain(label: object) -> str:
    return (f"{label:g}" if isinstance(label, float) else str(label)).strip().lower()
