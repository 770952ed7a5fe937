"""What judges share: asking a backend, and what to say when it would not answer."""

import warnings
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from lit_align.annotators.template import Protocol, Template
from lit_align.functional.verdicts import centred_score, expected_score, most_likely_score, weighted_mean
from lit_align.types import Annotator, JudgeBackend, UserError

Verdict = Literal["soft", "hard"]
"""Whether a judge's whole distribution counts, or only what it finds likeliest."""

GRADES = tuple(str(i) for i in range(1, 11))


class Judge(Annotator):
    """An annotator over a backend, which it wakes and lets go of. A subclass says what is asked."""

    backend: JudgeBackend

    @property
    def waits(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the backend does."""
        return self.backend.waits

    def setup(self, device: torch.device) -> None:
        """Wake the backend."""
        self.backend.setup(device)

    def close(self) -> None:
        """Let go of it."""
        self.backend.close()


@final
class Asker:
    """Puts questions with fixed options to a backend, each different one once.

    Args:
        owner: name of the judge, for messages.
        backend: who is asked.
        options: what it may answer.
        min_mass: how much probability the options must have together for an answer to count.

    Attributes:
        asked: questions so far that the backend was asked.
        refused: questions so far whose options had less mass.

    Raises:
        UserError: if ``min_mass`` is no probability.
    """

    def __init__(self, owner: str, backend: JudgeBackend, options: Sequence[str], min_mass: float) -> None:
        if not 0 <= min_mass <= 1:
            raise UserError(f"{owner}: min_mass should be a probability, from 0 to 1, got {min_mass}.")
        self.owner, self.backend, self.options, self.min_mass = owner, backend, options, min_mass
        self.asked = self.refused = 0

    def ask(self, questions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs of the options ``[N, options]``, their mass ``[N]`` and whether it is enough ``[N]``; float64 on the CPU."""
        position = {question: i for i, question in enumerate(dict.fromkeys(questions))}
        if not position:
            return torch.zeros(0, len(self.options), dtype=torch.float64), torch.zeros(0, dtype=torch.float64), torch.zeros(0).bool()
        logps = self.backend.option_logps([({"role": "user", "content": question},) for question in position], self.options)
        logps = logps.detach().cpu().double()  # [distinct, options]
        mass = logps.logsumexp(-1).exp().nan_to_num(0.0).clamp(max=1.0)
        enough = (mass >= self.min_mass) & (mass > 0)
        self._count(len(position), int((~enough).sum()), float(mass.mean()))
        index = torch.tensor([position[question] for question in questions])
        return logps[index], mass[index], enough[index]

    def grade(self, questions: Sequence[str], shape: Sequence[int], hard: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Grades from -1 to 1, 0 where it would not answer, their mass and whether it is enough; each of this shape, in float64."""
        logps, mass, enough = self.ask(questions)
        grades = most_likely_score(logps) if hard else expected_score(logps)
        return (
            centred_score(grades, best=len(self.options)).where(enough, 0.0).reshape(*shape),
            mass.reshape(*shape),
            enough.reshape(*shape),
        )

    def _count(self, asked: int, refused: int, mean_mass: float) -> None:
        if refused and not self.refused:
            answers, little = (
                f"{self.options[0]!r} to {self.options[-1]!r}",
                f"{f'less than {self.min_mass:g}' if self.min_mass else 'none'} of its probability",
            )
            warnings.warn(
                f"{self.owner} expected a judge that answers {answers}, but {refused} of {asked} times it gave them {little} (mean: "
                f"{mean_mass:.3f}). Those verdicts are invalid (nothing is learned from them) and the run goes on. Look at the end of "
                "the template: the next token should be the verdict; a model that thinks first should be told not to. Later cases are "
                "counted and not shown.",
                stacklevel=4,
            )
        self.asked += asked
        self.refused += refused


def load_templates(names: str | Sequence[str], protocol: Protocol) -> tuple[Template, ...]:
    """One template, or several that ask the same in other words and are averaged.

    Raises:
        UserError: if the list is empty, or see `Template.load`.
    """
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        raise UserError("template should be the name or the file of a template, or a list of such, got an empty list.")
    return tuple(Template.load(name, protocol) for name in listed)


def is_hard(owner: str, verdict: Verdict) -> bool:
    """Whether only the likeliest counts.

    Raises:
        UserError: if it is neither soft nor hard.
    """
    if verdict not in ("soft", "hard"):
        raise UserError(f"{owner}: verdict should be 'soft' or 'hard', got {verdict!r}.")
    return verdict == "hard"


def average(values: Tensor, known: Tensor) -> Tensor:
    """Mean over the last axis of what is known; NaN where nothing is."""
    return weighted_mean(values, torch.ones(values.shape[-1], dtype=values.dtype), known)
