"""Prompts with a good answer each: supervised data as rollouts of one response."""

from typing import final

import torch
from torch import Tensor

from lit_align.data.base import AlignmentDataModule
from lit_align.data.pool import LongPrompts
from lit_align.types import AlignmentBatch, EncodedPrompt, PromptSource, UserError


@final
class DemonstrationDataModule(AlignmentDataModule):
    """Every epoch is the next ``prompts_per_rollout`` demonstrations: K = 1, score 1, nothing sampled.

    Args:
        prompts: their ``reference`` is the answer to imitate.
        eval_prompts: held-out demonstrations, for ``val/loss``.
        prompts_per_rollout: on all ranks together.
        micro_batch_prompts: demonstrations of one forward and backward pass on one rank.
        inner_epochs: how often they are trained on before the next ones.
        max_response_tokens: longest answer, EOS included; the rest of a longer one, and its EOS, are not learnt.
        max_prompt_tokens: longest prompt; None is what the context leaves beside the answer.
        long_prompts: what becomes of longer prompts.
        seed: of the order of demonstrations and of dropout.
    """

    def __init__(
        self,
        prompts: PromptSource,
        eval_prompts: PromptSource | None = None,
        prompts_per_rollout: int = 32,
        micro_batch_prompts: int = 32,
        inner_epochs: int = 1,
        max_response_tokens: int = 256,
        max_prompt_tokens: int | None = None,
        long_prompts: LongPrompts = "drop",
        seed: int = 0,
    ) -> None:
        super().__init__(
            prompts, eval_prompts, prompts_per_rollout, micro_batch_prompts, inner_epochs, max_prompt_tokens, long_prompts, seed
        )
        self.max_response_tokens = max_response_tokens

    @property
    def response_room(self) -> int:
        """The longest answer."""
        return self.max_response_tokens

    def make_rollout(self, number: int, prompts: list[EncodedPrompt]) -> AlignmentBatch:
        """The demonstrations as a batch."""
        batch = self._batch_of(prompts, torch.arange(len(prompts)) // self._step_rows)
        return self.aligner.prepare_rollout(batch, self.aligner.needs, self.micro_batch_prompts)[0].to("cpu")

    def evaluation_batch(self, prompts: list[EncodedPrompt]) -> AlignmentBatch:
        """Held-out demonstrations."""
        return self._batch_of(prompts, torch.zeros(len(prompts), dtype=torch.long))

    @property
    def evaluation_chunk(self) -> int:
        """As while training."""
        return self.micro_batch_prompts

    def _batch_of(self, prompts: list[EncodedPrompt], steps: Tensor) -> AlignmentBatch:
        model = self.aligner.text_model
        answers = [model.encode_response(p.prompt, _answer(p)) for p in prompts]
        cut = [answer[: self.max_response_tokens] for answer in answers]
        width, length = max(len(p.tokens) for p in prompts), max(map(len, cut))
        mask = torch.tensor([[i < len(answer) for i in range(length)] for answer in cut]).unsqueeze(1)  # [B, 1, T]
        one = torch.ones(len(prompts), 1)
        return AlignmentBatch(
            prompt_tokens=torch.tensor([[model.pad_id] * (width - len(p.tokens)) + list(p.tokens) for p in prompts]),
            prompt_mask=torch.tensor([[i >= width - len(p.tokens) for i in range(width)] for p in prompts]),
            response_tokens=torch.tensor([answer + [model.pad_id] * (length - len(answer)) for answer in cut]).unsqueeze(1),
            response_mask=mask,
            loss_mask=mask,
            prompt_ids=torch.tensor([p.prompt.id for p in prompts]),
            scores=one,
            valid=one.bool(),
            finished=torch.tensor([[len(answer) <= self.max_response_tokens] for answer in answers]),
            optimizer_steps=steps,
        )


def _answer(prompt: EncodedPrompt) -> str:
    if prompt.prompt.reference is None:
        raise UserError(
            f"A demonstration needs an answer, but the prompt {str(prompt.prompt.content)[:60]!r} has none. "
            "Name the field that holds it: `reference_field` of the prompt source."
        )
    return prompt.prompt.reference
