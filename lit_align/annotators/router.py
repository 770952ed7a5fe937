"""Another annotator for another kind of prompt."""

import warnings
from typing import final

import torch
from torch import Tensor

from lit_align.annotators.composite import Composite
from lit_align.types import Annotation, Annotator, Prompt, Rollouts


@final
class Router(Composite):
    """Asks of every prompt the annotator that is there for its kind, once for all prompts of a kind.

    Scores keep the unit of whoever gave them: an algorithm that compares prompts with each other, or divides by a spread over all of them,
    needs routes of one unit. Preferences are those of the routes that have any; where a route only scores, they are NaN and pairs are
    made of the scores. Every annotator learns from the prompts of its own route.

    Args:
        by: ``dataset``, the name of the prompt's dataset where a run mixes several, or the name of a field of ``prompt.meta``.
        routes: annotators by that field's value, as a text.
        default: of every other prompt. Without one those are invalid, counted, and shown once.

    Attributes:
        unrouted: prompts so far without a route.

    Raises:
        UserError: if there is no route.
    """

    def __init__(self, by: str, routes: dict[str, Annotator], default: Annotator | None = None) -> None:
        settings = f"by={by!r}, routes={list(routes)}, default={default is not None}"
        super().__init__([*routes.values(), *([] if default is None else [default])], settings)
        self.by, self._number = by, {value: number for number, value in enumerate(routes)}
        self._default = None if default is None else len(routes)
        self.unrouted = 0

    @property
    def log_odds(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where those of every route are."""
        return all(member.log_odds for member in self.members)

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores ``[B, K]`` and, if any route has them, preferences ``[B, K, K]`` on the CPU, in the order of the rollouts."""
        b, k = rollouts.response_tokens.shape[:2]
        unknown = torch.full((b, k, k), torch.nan, dtype=torch.float32)
        scores, mass, preferences = torch.zeros(b, k, dtype=torch.float32), unknown[..., 0].clone(), unknown
        valid = torch.zeros(b, k, dtype=torch.bool)
        parts: dict[str, Tensor] = {}  # with the number of the route behind the name
        judged = compared = False
        for number, member in enumerate(self.members):
            rows = self._rows(number, rollouts)
            if not rows:
                continue
            answer = member.annotate(rollouts.rows(rows)).to("cpu")
            scores[rows], valid[rows] = answer.scores.detach().float(), answer.valid
            for name, part in answer.parts.items():
                whole = parts.setdefault(f"{name}_{number}", torch.full_like(scores, torch.nan))
                whole[rows] = part.detach().float()
            if answer.mass is not None:
                mass[rows], judged = answer.mass.detach().float(), True
            if answer.preferences is not None:
                preferences[rows], compared = answer.preferences.detach().float(), True
        self._count(rollouts)
        return Annotation(
            scores=scores.where(valid, 0.0),
            valid=valid,
            preferences=preferences if compared else None,
            mass=mass if judged else None,
            parts=parts,
            annotator_version=self.version,
        )

    def share(self, number: int, rollouts: Rollouts) -> Rollouts:
        """The prompts of its route."""
        return rollouts.rows(self._rows(number, rollouts))

    def _rows(self, number: int, rollouts: Rollouts) -> list[int]:
        return [row for row, prompt in enumerate(rollouts.prompts) if self._number.get(self._value(prompt), self._default) == number]

    def _value(self, prompt: Prompt) -> str:
        return prompt.dataset if self.by == "dataset" else str(prompt.meta.get(self.by))

    def _count(self, rollouts: Rollouts) -> None:
        if self._default is not None:
            return
        strays = [value for prompt in rollouts.prompts if (value := self._value(prompt)) not in self._number]
        if strays and not self.unrouted:
            warnings.warn(
                f"Router expected every prompt's {self.by!r} to be one of {list(self._number)}, but {len(strays)} of a chunk have another, "
                f"{strays[0]!r} for example. Their responses are invalid (nothing is learned from them) and the run goes on. Add a route, "
                "or a `default`; later cases are counted in `unrouted` and not shown.",
                stacklevel=3,
            )
        self.unrouted += len(strays)
