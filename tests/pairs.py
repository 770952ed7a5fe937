"""Fixed pairs and lists as data."""

from typing import Any, final

from lit_align.data import PreferenceDataModule
from lit_align.types import Answer, IndexedPrompts, Prompt

Row = tuple[str, list[str], list[float]]
"""Prompt, responses, scores."""


@final
class ListPairs(IndexedPrompts):
    """Pairs from a list."""

    def __init__(self, rows: list[Row], name: str = "pairs") -> None:
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Prompt:
        prompt, texts, scores = self.rows[index]
        return Prompt(index, prompt, answers=tuple(Answer(text, score) for text, score in zip(texts, scores, strict=True)))


def pair_data(rows: list[Row], eval_rows: list[Row] | None = None, **options: Any) -> PreferenceDataModule:
    """Eight prompts a rollout, four a micro-batch."""
    held_out = None if eval_rows is None else ListPairs(eval_rows, "held out")
    defaults = {"prompts_per_rollout": 8, "micro_batch_prompts": 4, "max_response_tokens": 40}
    return PreferenceDataModule(ListPairs(rows), held_out, **(defaults | options))
