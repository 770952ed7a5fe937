"""Fixed pairs as data: each prompt with two or more responses that somebody scored."""

from typing import Any, final

import torch

from lit_align.data import AlignmentDataModule
from lit_align.types import AlignmentBatch, EncodedPrompt, IndexedPrompts, Prompt, TextModel, UserError

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
        prompt, responses, scores = self.rows[index]
        return Prompt(index, prompt, meta={"responses": responses, "scores": scores})


def make_batch(model: TextModel, prompts: list[Prompt], max_tokens: int = 10**6, step_rows: int = 10**6) -> AlignmentBatch:
    """As a data module makes it of `ListPairs`."""
    texts = [prompt.meta["responses"] for prompt in prompts]
    rows = [[model.encode_response(p, text) for text in mine] for p, mine in zip(prompts, texts, strict=True)]
    cut = [[row[:max_tokens] for row in mine] for mine in rows]
    length = max(len(row) for mine in cut for row in mine)
    mask = torch.tensor([[[i < len(row) for i in range(length)] for row in mine] for mine in cut])
    scores = torch.tensor([prompt.meta["scores"] for prompt in prompts])
    heads = torch.tensor([model.encode(prompt) for prompt in prompts])
    return AlignmentBatch(
        prompt_tokens=heads,
        prompt_mask=torch.ones_like(heads, dtype=torch.bool),
        response_tokens=torch.tensor([[row + [model.pad_id] * (length - len(row)) for row in mine] for mine in cut]),
        response_mask=mask,
        loss_mask=mask,
        prompt_ids=torch.tensor([prompt.id for prompt in prompts]),
        scores=scores,
        valid=torch.ones_like(scores, dtype=torch.bool),
        finished=torch.tensor([[len(row) <= max_tokens for row in mine] for mine in rows]),
        optimizer_steps=torch.arange(len(prompts)) // step_rows,
    )


@final
class PairDataModule(AlignmentDataModule):
    """The next ``prompts_per_rollout`` rows of `ListPairs` every epoch."""

    def __init__(
        self,
        rows: list[Row],
        eval_rows: list[Row] | None = None,
        prompts_per_rollout: int = 8,
        micro_batch_prompts: int = 4,
        max_tokens: int = 40,
        seed: int = 0,
    ) -> None:
        held_out = None if eval_rows is None else ListPairs(eval_rows, "held out")
        super().__init__(ListPairs(rows), held_out, prompts_per_rollout, micro_batch_prompts, 1, None, "drop", seed)
        self.max_tokens = max_tokens

    @property
    def response_room(self) -> int:
        return self.max_tokens

    @property
    def evaluation_chunk(self) -> int:
        return self.micro_batch_prompts

    def make_rollout(self, number: int, prompts: list[EncodedPrompt]) -> AlignmentBatch:
        batch = self._batch(prompts, self._step_rows)
        return self.aligner.prepare_rollout(batch, self.aligner.needs, self.micro_batch_prompts)[0].to("cpu")

    def evaluation_batch(self, prompts: list[EncodedPrompt]) -> Any:
        return self._batch(prompts, len(prompts))

    def _batch(self, prompts: list[EncodedPrompt], step_rows: int) -> AlignmentBatch:
        if len({len(p.prompt.meta["scores"]) for p in prompts}) > 1:
            raise UserError("Here all prompts have as many responses.")
        return make_batch(self.aligner.text_model, [p.prompt for p in prompts], self.max_tokens, step_rows)
