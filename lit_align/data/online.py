"""The wheel: sample from the policy, have it labelled, prepare, train, again."""

from dataclasses import replace
from functools import partial
from typing import final

import torch

from lit_align.data.budget import Budget
from lit_align.data.collate import join
from lit_align.data.dynamic import groups_with_spread
from lit_align.data.pool import LongPrompts
from lit_align.data.sampling import Answered, SamplingDataModule
from lit_align.data.spend import Price
from lit_align.data.telemetry import LabelTelemetry
from lit_align.metering import metered
from lit_align.types import AlignmentBatch, Annotation, Annotator, EncodedPrompt, PromptSource, Sampler, Stream, UserError


@final
class OnlineDataModule(SamplingDataModule):
    """Every epoch is a rollout of the policy as it is now, labelled by ``annotator``.

    Args:
        prompts: what to answer while training.
        sampler: draws the responses.
        annotator: labels them. Its labels are committed to a journal in the run's folder before they are used.
        eval_prompts: held-out prompts.
        eval_annotator: scores their answers; without one, only lengths and divergence are reported.
        prompts_per_rollout: on all ranks together.
        responses_per_prompt: K.
        micro_batch_prompts: prompts of one forward and backward pass on one rank.
        inner_epochs: how often a rollout is trained on.
        missing_eos_penalty: subtracted from the score of a response that did not end by itself, in units of reward.
        max_extra_prompts: how many prompts more a rollout may read, on all ranks together, to replace those whose responses all
            score the same (or have fewer than two valid scores): DAPO's dynamic sampling. All of them are labelled.
        chunk_prompts: prompts, of like length, that are sampled, then annotated, together on one rank.
        eval_responses_per_prompt: K of held-out prompts.
        eval_sampler: answers held-out prompts, greedily for example; the training one if None.
        max_prompt_tokens: longest prompt; None is what the context leaves beside the response.
        long_prompts: what becomes of longer prompts.
        seed: of the order of prompts, of sampling and of dropout.
        prices: of the models that annotators ask, by name.
        budget: what may be used for labels.
        telemetry: says when labels are not to be trusted; with its own limits if None.
    """

    def __init__(
        self,
        prompts: PromptSource,
        sampler: Sampler,
        annotator: Annotator,
        eval_prompts: PromptSource | None = None,
        eval_annotator: Annotator | None = None,
        prompts_per_rollout: int = 32,
        responses_per_prompt: int = 4,
        micro_batch_prompts: int = 8,
        inner_epochs: int = 1,
        missing_eos_penalty: float = 0.0,
        max_extra_prompts: int = 0,
        chunk_prompts: int = 32,
        eval_responses_per_prompt: int = 1,
        eval_sampler: Sampler | None = None,
        max_prompt_tokens: int | None = None,
        long_prompts: LongPrompts = "drop",
        seed: int = 0,
        prices: dict[str, Price] | None = None,
        budget: Budget | None = None,
        telemetry: LabelTelemetry | None = None,
    ) -> None:
        super().__init__(
            prompts,
            sampler,
            annotator,
            eval_prompts,
            eval_annotator,
            prompts_per_rollout,
            responses_per_prompt,
            micro_batch_prompts,
            inner_epochs,
            missing_eos_penalty,
            chunk_prompts,
            eval_responses_per_prompt,
            eval_sampler,
            max_prompt_tokens,
            long_prompts,
            seed,
            prices,
            budget,
            telemetry,
        )
        self.max_extra_prompts = max_extra_prompts

    @property
    def samples(self) -> bool:
        """Every answer."""
        return True

    def check_fit(self) -> None:
        """Refuse a search among groups that can't have spread."""
        if self.max_extra_prompts < 0 or (self.max_extra_prompts and self.responses_per_prompt < 2):
            raise UserError(
                f"max_extra_prompts should be 0 or, with at least 2 responses to a prompt that may score differently, positive, got "
                f"{self.max_extra_prompts} and responses_per_prompt = {self.responses_per_prompt}. Set it to 0, or raise the latter."
            )

    def make_rollout(self, number: int, prompts: list[EncodedPrompt]) -> AlignmentBatch:
        """Sample and annotate chunk by chunk, then let the algorithm prepare the whole."""
        stream, answered, device = Stream(self.seed, "train", number), [], self._trainer.strategy.root_device
        meter = self.begin(stream, (self.prompts_per_rollout + self.max_extra_prompts) * self.responses_per_prompt, len(prompts))
        with metered(meter), self._trainer.precision_plugin.forward_context(), self.aligner.policy.inference():
            said = self.label(prompts, stream, answered, self.annotator)
            kept = self._search(said, stream, answered) if self.max_extra_prompts else range(len(prompts))
            rollouts, annotation = join([r for r, _ in answered]), join([a for _, a in answered]).to(device)
            self.report(number, annotation, rollouts.finished, rollouts.response_mask.sum(-1), [p.dataset for p in rollouts.prompts])
            rollouts, annotation = rollouts.rows(kept), annotation.rows(kept)
            batch = AlignmentBatch.of(rollouts, annotation, torch.arange(len(prompts)) // self._step_rows)
            batch = replace(batch, scores=batch.scores - self.missing_eos_penalty * (~batch.finished & batch.valid).float())
            batch, diagnostics = self.aligner.prepare_rollout(batch, self.needs, self.micro_batch_prompts)
            self.learn(stream, rollouts)
        self.tell("end", rollouts, annotation, batch, diagnostics)
        return batch.to("cpu")

    def _search(self, said: Annotation, stream: Stream, answered: Answered) -> list[int]:
        """Label further prompts for those whose responses all score the same; which of all groups to train on."""
        device, total, budget = self._trainer.strategy.root_device, self.prompts_per_rollout, self.max_extra_prompts
        label = partial(self.label, stream=stream, answered=answered, annotator=self.annotator)
        kept, metrics = groups_with_spread(said, self.rank_rows, total, budget, self.draw, label, device)
        self.aligner.log_rollout(metrics)
        return kept
