"""Answers of several policies, or of people, to the same prompts, side by side as a judge reads them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from lit_align.types import Prompt, Rollouts, UserError


@final
@dataclass(frozen=True, slots=True)
class Answers:
    """What one side says: ``texts[i]`` are its answers to ``prompts[i]``. ``trained_for`` is the identity of the annotator whose labels it
    was trained by, empty where nobody knows."""

    name: str
    prompts: tuple[Prompt, ...]
    texts: tuple[tuple[str, ...], ...]
    trained_for: str = ""


@final
@dataclass(frozen=True, slots=True)
class Matches:
    """One row for every answer to be compared: its prompt, the number ``about`` of that prompt, which rows of equal prompts share, and the
    texts of all sides in the order of ``names``."""

    names: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    about: tuple[int, ...]
    texts: tuple[tuple[str, ...], ...]

    def rollouts(self, start: int, end: int) -> Rollouts:
        """Rows ``start`` to ``end`` as an annotator takes them, the sides as responses."""
        texts, prompts = self.texts[start:end], self.prompts[start:end]
        return text_rollouts(prompts, texts)


def text_rollouts(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> Rollouts:
    """``K`` texts to each of ``B`` prompts as an annotator takes them, which reads prompts and texts; there are no tokens, ``T`` is 0."""
    b, k = len(texts), len(texts[0])
    mask = torch.zeros(b, k, 0, dtype=torch.bool)
    return Rollouts(
        prompts=tuple(prompts),
        occurrences=torch.zeros(b, dtype=torch.long),
        prompt_tokens=torch.zeros(b, 0, dtype=torch.long),
        prompt_mask=torch.zeros(b, 0, dtype=torch.bool),
        response_tokens=torch.zeros(b, k, 0, dtype=torch.long),
        response_mask=mask,
        loss_mask=mask,
        sampling_logps=torch.zeros(b, k, 0),
        finished=torch.ones(b, k, dtype=torch.bool),
        texts=tuple(map(tuple, texts)),
        policy_version=0,
    )


def matched(sides: Sequence[Answers]) -> Matches:
    """Answers to the prompts that all sides have, in the order of the first.

    Prompts are the same if their texts are, a user's one turn and the same text without a role included; the n-th time that a side has a
    prompt meets the n-th time of the others. To one prompt the k-th answers meet; a side with a single one meets all of the others'. A
    reference answer, where a side has one, goes to the judge with the prompt.

    Raises:
        UserError: if two sides have one name, no prompt is common to all, or the numbers of answers to a prompt don't fit.
    """
    names = tuple(side.name for side in sides)
    if len({*names}) < len(names) or len(names) < 2:
        raise UserError(f"Expected at least two sides of different names, got {', '.join(names) or 'none'}.")
    rows = [_by_prompt(side) for side in sides]
    common = [key for key in rows[0] if all(key in row for row in rows)]
    if not common:
        known = "; ".join(f"{side.name} has {len(side.prompts)}, the first {_shown(side.prompts)}" for side in sides)
        raise UserError(f"No prompt is answered by all sides: {known}. Give answers to the same prompts.")
    numbers: dict[str, int] = {}
    prompts, about, texts = list[Prompt](), list[int](), list[tuple[str, ...]]()
    for key in common:
        places = [row[key] for row in rows]
        of_sides = [side.texts[place] for side, place in zip(sides, places, strict=True)]
        most = max(map(len, of_sides))
        if any(len(answers) not in (1, most) for answers in of_sides):
            counts = ", ".join(f"{name} has {len(answers)}" for name, answers in zip(names, of_sides, strict=True))
            raise UserError(f"To one prompt each side needs as many answers as the others, or one, but to the same prompt {counts}.")
        candidates = [side.prompts[place] for side, place in zip(sides, places, strict=True)]
        prompt = next((prompt for prompt in candidates if prompt.reference is not None), candidates[0])
        for k in range(most):
            prompts.append(prompt)
            about.append(numbers.setdefault(key[0], len(numbers)))
            texts.append(tuple(answers[k % len(answers)] for answers in of_sides))
    return Matches(names, tuple(prompts), tuple(about), tuple(texts))


def _by_prompt(side: Answers) -> dict[tuple[str, int], int]:
    """What a prompt says, and how often it came before -> its place."""
    seen: Counter[str] = Counter()
    found = {}
    for place, prompt in enumerate(side.prompts):
        said = _said(prompt)
        found[said, seen[said]] = place
        seen[said] += 1
    return found


def _said(prompt: Prompt) -> str:
    content = prompt.content
    turns = ({"role": "user", "content": content},) if isinstance(content, str) else content
    return json.dumps([(turn["role"], turn["content"]) for turn in turns])


def _shown(prompts: Sequence[Prompt]) -> str:
    return repr(_said(prompts[0]))[:80] if prompts else "none"
