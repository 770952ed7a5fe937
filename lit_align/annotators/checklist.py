"""A list of things that a response should do, each checked by a language model or by a rule."""

import difflib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from lit_align.annotators.asking import Asker
from lit_align.annotators.deciding import Decider, name_of
from lit_align.annotators.rules import Rule
from lit_align.annotators.template import Template, digest
from lit_align.functional.verdicts import weighted_mean
from lit_align.types import Annotation, Annotator, JudgeBackend, Prompt, Rollouts, UserError

OPTIONS = ("yes", "Yes", "no", "No")
KEYS = ("question", "verifier", "weight")


@final
@dataclass(frozen=True, slots=True)
class Item:
    """One thing to check: a ``question`` that the judge answers, or the name of a ``verifier`` that decides in its place."""

    question: str = ""
    verifier: str = ""
    weight: float = 1.0


@final
class Checklist(Annotator):
    r"""Scores each response by the weighted share of its prompt's checklist that it fulfils, in [0, 1].

    .. math:: r = \frac{\sum_i w_i s_i}{\sum_i w_i}

    ``s_i`` is the probability of yes against no in the backend's answer, or what the item's verifier says. An item without a verdict drops
    out of both sums; a response is invalid if none is left, or if its prompt has no checklist. A prompt's items are in
    ``prompt.meta["checklist"]``: texts, or mappings with ``question`` or ``verifier`` and perhaps ``weight``. One question per distinct
    response and item of the judge's. Source: Viswanathan et al. 2025, https://arxiv.org/abs/2507.18624, who average both where an item has
    a program; here the program decides.

    Args:
        backend: the language model; null if rules decide everything.
        items: for prompts that bring none of their own.
        verifiers: rules by the names that items call them.
        template: ``general``, or the path of a YAML file of your own, with the places ``{prompt}``, ``{item}`` and ``{response}``.
        min_mass: probability that yes and no (small or with a capital) must have together; an answer below it does not count.

    Attributes:
        unlisted: prompts so far without a checklist.

    Raises:
        UserError: if there is no such template, or an item, of ``items`` or, when it is met, of a prompt, is neither a text nor such a
            mapping, names no known verifier, asks a question of no backend, or has a weight that is not positive.
    """

    def __init__(
        self,
        backend: JudgeBackend | None = None,
        items: Sequence[str | Mapping[str, Any]] = (),
        verifiers: Mapping[str, Rule] | None = None,
        template: str = "general",
        min_mass: float = 0.5,
    ) -> None:
        self.backend, self.verifiers = backend, dict(verifiers or {})
        self.waits = backend is not None and backend.waits
        self.template, self.decider = Template.load(template, "checklist"), Decider("Checklist")
        self.asker = None if backend is None else Asker("Checklist", backend, OPTIONS, min_mass)
        self.unlisted = 0
        self.items = self._read(items, "Checklist: items")
        who = "no judge" if backend is None else f"{backend.identity}, {self.template.identity}, min_mass={min_mass}"
        rules = {name: name_of(rule) for name, rule in self.verifiers.items()}
        self.identity = f"Checklist({who}, {digest(json.dumps([[repr(item) for item in self.items], rules]))})"

    def setup(self, device: torch.device) -> None:
        """Wake the backend."""
        if self.backend is not None:
            self.backend.setup(device)

    def close(self) -> None:
        """Let go of it."""
        if self.backend is not None:
            self.backend.close()

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores, and mass where there is a backend, ``[B, K]`` on the CPU."""
        lists = [self._items_of(prompt) for prompt in rollouts.prompts]
        shape = *rollouts.response_tokens.shape[:2], max(map(len, lists), default=0)  # shorter lists leave their last items unknown
        said, mass, weights = (torch.full(shape, value, dtype=torch.float64) for value in (torch.nan, torch.nan, 1.0))
        judged, questions = [], []
        for row, (prompt, texts) in enumerate(zip(rollouts.prompts, rollouts.texts, strict=True)):
            for i, text in enumerate(texts):
                for n, item in enumerate(lists[row]):
                    weights[row, i, n] = item.weight
                    if item.verifier:
                        said[row, i, n] = self.decider.decide(self.verifiers[item.verifier], prompt, text)
                    else:
                        judged.append((row, i, n))
                        questions.append(self.template.ask(prompt, item=item.question, response=text))
        if self.asker is not None and questions:
            logps, masses, enough = self.asker.ask(questions)
            yes = logps.softmax(-1)[:, : len(OPTIONS) // 2].sum(-1)
            index = tuple(torch.tensor(judged).T)
            said[index], mass[index] = yes.where(enough, torch.nan), masses
        known = said.isfinite()
        valid = known.any(-1)
        return Annotation(
            scores=weighted_mean(said, weights, known).where(valid, 0.0).float(),
            valid=valid,
            mass=None if self.asker is None else mass.nanmean(-1).float(),
            annotator_version=self.version,
        )

    def _items_of(self, prompt: Prompt) -> tuple[Item, ...]:
        own = prompt.meta.get("checklist")
        items = self.items if own is None else self._read(own, f"the checklist of prompt {prompt.id}")
        if not items:
            if not self.unlisted:
                warnings.warn(
                    f'Checklist expected prompts with a list of items in meta["checklist"], but prompt {prompt.id} has none. Its responses '
                    "are invalid (nothing is learned from them) and the run goes on; later cases are counted in `unlisted` and not shown. "
                    "Name the column `checklist`, or set `items` for such prompts.",
                    stacklevel=3,
                )
            self.unlisted += 1
        return items

    def _read(self, items: Any, where: str) -> tuple[Item, ...]:
        if isinstance(items, (str, Mapping)) or not isinstance(items, Sequence):
            raise UserError(f"{where}: expected a list of texts or of mappings with {', '.join(KEYS)}, got {items!r}.")
        return tuple(self._item(item, f"{where}, item {number}") for number, item in enumerate(items, start=1))

    def _item(self, item: Any, where: str) -> Item:
        mapping = {"question": item} if isinstance(item, str) else item
        if not isinstance(mapping, Mapping):
            raise UserError(f"{where}: expected a text or a mapping with {', '.join(KEYS)}, got {item!r}.")
        given: dict[str, Any] = {
            key: value for key, value in mapping.items() if value is not None
        }  # a table has null for what a row leaves out
        for key in given.keys() - set(KEYS):
            close = difflib.get_close_matches(str(key), KEYS, 1)
            raise UserError(f"{where}: {key!r} is none of {', '.join(KEYS)}." + (f" Did you mean {close[0]!r}?" if close else ""))
        made = Item(**given)
        if not isinstance(made.weight, (int, float)) or not 0 < made.weight < float("inf"):
            raise UserError(f"{where}: the weight should be a positive number, got {made.weight!r}.")
        if made.verifier:
            if made.verifier not in self.verifiers:
                known = ", ".join(self.verifiers) or "none"
                raise UserError(f"{where}: there is no verifier {made.verifier!r}: `verifiers` of Checklist has {known}.")
        elif not isinstance(made.question, str) or not made.question.strip():
            raise UserError(f"{where}: expected a question or the name of a verifier, got {item!r}.")
        elif self.backend is None:
            raise UserError(
                f"{where}: {made.question[:60]!r} is a question, but Checklist has no backend to ask. Set one, or name a verifier."
            )
        return made
