"""A language model that compares responses by principles, drawn anew for every pair."""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import final

import yaml

from lit_align.annotators.asking import Judge, Verdict
from lit_align.annotators.comparing import Comparison
from lit_align.annotators.template import Template, digest
from lit_align.types import Annotation, JudgeBackend, Rollouts, UserError


@final
class Constitution(Judge):
    """Asks which of two responses a principle asks for, in both orders and by ``draws`` principles, and keeps the average.

    Which principles a pair is judged by is a pure function of (seed, policy version, prompt id, occurrence, pair): the same whatever
    else is in the batch and on any number of ranks, and both orders get the same. They differ among themselves, so that ``draws`` as
    large as the constitution is the mean over all of it. Preferences and scores are those of `PairwiseJudge`. Source: Constitutional AI,
    Bai et al. 2022, https://arxiv.org/abs/2212.08073, where one of 16 principles is drawn for each comparison.

    Args:
        backend: the language model.
        principles: ``general``, which is shipped, the path of a YAML list of your own, or the list itself.
        draws: principles per pair; two questions each.
        seed: of the draws.
        template: ``general``, or the path of a YAML file of your own, with the places ``{prompt}``, ``{principle}``, ``{response_1}`` and
            ``{response_2}``.
        tie_margin, opponents, min_mass, verdict: see `PairwiseJudge`.

    Raises:
        UserError: if there is no such file, it is no list of different texts, or ``draws`` is not from 1 to their number; see also
            `PairwiseJudge`.
    """

    def __init__(
        self,
        backend: JudgeBackend,
        principles: str | Sequence[str] = "general",
        draws: int = 1,
        seed: int = 0,
        template: str = "general",
        tie_margin: float = 1e-3,
        opponents: int | None = None,
        min_mass: float = 0.5,
        verdict: Verdict = "soft",
    ) -> None:
        self.principles = _read(principles)
        if not 1 <= draws <= len(self.principles):
            raise UserError(f"Constitution: draws should be from 1 to the number of principles, {len(self.principles)}, got {draws}.")
        self.backend, self.template, self.draws, self.seed = backend, Template.load(template, "constitution"), draws, seed
        self.comparison = Comparison("Constitution", backend, tie_margin, opponents, min_mass, verdict)
        self.asker = self.comparison.asker
        counts = f"{len(self.principles)} principles:{digest(json.dumps(self.principles))}, draws={draws}, seed={seed}"
        self.identity = f"Constitution({backend.identity}, {self.template.identity}, {counts}, {self.comparison.identity})"

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Preferences ``[B, K, K]``, scores and mass ``[B, K]`` on the CPU."""

        def questions(row: int, pair: tuple[int, int], first: str, second: str) -> list[str]:
            prompt = rollouts.prompts[row]
            counter = f"{self.seed}/{rollouts.policy_version}/{prompt.id}/{int(rollouts.occurrences[row])}/{pair[0]}/{pair[1]}"
            return [
                self.template.ask(prompt, principle=self.principles[n], response_1=first, response_2=second) for n in self.drawn(counter)
            ]

        return self.comparison.annotate(rollouts, questions, self.version)

    def drawn(self, counter: str) -> list[int]:
        """The numbers of the principles that a counter draws, without repetition."""
        return sorted(range(len(self.principles)), key=lambda n: hashlib.blake2b(f"{counter}/{n}".encode()).digest())[: self.draws]


def _read(principles: str | Sequence[str]) -> list[str]:
    where, listed = "Constitution: principles", principles
    if isinstance(principles, str):
        shipped = files("lit_align.annotators").joinpath("constitutions", f"{principles}.yaml")
        where = f"principles {principles}"
        try:
            content = shipped if shipped.is_file() else Path(os.path.expandvars(principles))
            listed = yaml.safe_load(content.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(
                f"Constitution: principles should be `general`, a list of texts, or a readable YAML file of such a list, got "
                f"{principles!r}: {error}.\nThe current folder is {Path.cwd()}."
            ) from error
    if (
        not isinstance(listed, Sequence)
        or isinstance(listed, str)
        or not listed
        or not all(isinstance(p, str) and p.strip() for p in listed)
    ):
        raise UserError(f"{where}: expected a list of texts, each a principle, got {str(listed)[:80]!r}.")
    found = [principle.strip() for principle in listed]
    if twice := [principle for principle in dict.fromkeys(found) if found.count(principle) > 1]:
        raise UserError(f"{where}: each principle should be there once, but {twice[0]!r} is there {found.count(twice[0])} times.")
    return found
