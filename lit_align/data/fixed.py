"""What data modules share whose answers were written before the run."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from lit_align.data.base import AlignmentDataModule
from lit_align.data.packing import encoded, packed
from lit_align.data.pool import LongPrompts
from lit_align.data.sources.mixed import MixedPrompts
from lit_align.functional.distributed import global_sum
from lit_align.types import AlignmentBatch, Answer, EncodedPrompt, IndexedPrompts, Prompt, PromptSource, UserError


class FixedDataModule(AlignmentDataModule, ABC):
    """Every epoch is the next ``prompts_per_rollout`` prompts with the answers that the data have; nothing is sampled.

    Args:
        prompts: with their answers.
        eval_prompts: held-out ones, for ``val/loss``.
        prompts_per_rollout: on all ranks together.
        micro_batch_prompts: prompts of one forward and backward pass on one rank.
        inner_epochs: how often they are trained on before the next ones.
        max_response_tokens: longest answer, its end included; the rest of a longer one, and its end, are not learnt.
        max_prompt_tokens: longest prompt; None is what the context leaves beside the answer.
        long_prompts: what becomes of longer prompts.
        seed: of the order of prompts and of dropout.
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

    @abstractmethod
    def answers_of(self, prompt: Prompt) -> tuple[Answer, ...]:
        """At least one answer.

        Raises:
            UserError: if there is none.
        """

    @property
    def samples(self) -> bool:
        """Never."""
        return False

    @property
    def response_room(self) -> int:
        """The longest answer."""
        return self.max_response_tokens

    @final
    def on_setup(self, stage: str) -> None:
        """Refuse an algorithm that needs samples, and prompts without an answer; those of a stream when they are read."""
        if stage == "fit" and self.aligner.needs.sampled:
            raise UserError(
                f"{type(self.aligner).__name__} trains on samples of the policy, but these data are fixed: use OnlineDataModule, or an "
                "algorithm for fixed data, such as SFT or DPO."
            )
        for source in (self.prompts, self.eval_prompts):
            require_answers(source, self.answers_of)

    @final
    def make_rollout(self, number: int, prompts: list[EncodedPrompt]) -> AlignmentBatch:
        """The answers as a batch, prepared."""
        model, device = self.aligner.text_model, self._trainer.strategy.root_device
        batch = self._batch_of(prompts, torch.arange(len(prompts)) // self._step_rows).to(device)
        answers = batch.valid.sum()
        with self._trainer.precision_plugin.forward_context(), model.inference():
            batch, _ = self.aligner.prepare_rollout(batch, self.aligner.needs, self.micro_batch_prompts)
        used, answers = global_sum(torch.stack([batch.used.sum(), answers])).tolist()
        if number == 0 and not used:
            raise UserError(
                f"{type(self.aligner).__name__} learns nothing from any of the {int(answers)} labelled answers to the first "
                f"{self.prompts_per_rollout} prompts. A loss on pairs takes two answers of different scores to one prompt, SFT answers of "
                "score 1, IterativeSFT several answers or a threshold. Choose the algorithm for which these data were made."
            )
        return batch.to("cpu")

    @final
    def evaluation_batch(self, prompts: list[EncodedPrompt]) -> AlignmentBatch:
        """Held-out answers."""
        return self._batch_of(prompts, torch.zeros(len(prompts), dtype=torch.long))

    @property
    def evaluation_chunk(self) -> int:
        """As while training."""
        return self.micro_batch_prompts

    def _batch_of(self, prompts: list[EncodedPrompt], steps: Tensor) -> AlignmentBatch:
        model = self.aligner.text_model
        rows = [encoded(model, prompt, self.answers_of(prompt.prompt), self.max_response_tokens) for prompt in prompts]
        return packed(rows, model.pad_id, steps, at_least=self.aligner.needs.responses)


def require_answers(source: PromptSource | None, answers_of: Callable[[Prompt], tuple[Answer, ...]]) -> None:
    """Ask for the answers to every prompt that can be read before a run."""
    for part in source.sources.values() if isinstance(source, MixedPrompts) else [source]:
        if isinstance(part, IndexedPrompts):
            for prompt in part:
                answers_of(prompt)
