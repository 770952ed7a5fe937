"""Fixed answers and fresh ones in one rollout."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch

from lit_align.data.budget import Budget
from lit_align.data.collate import join
from lit_align.data.fixed import require_answers
from lit_align.data.fresh import fresh_row, no_rollouts, picked, said_first, said_of, with_preferences, with_sampling_logps
from lit_align.data.packing import FixedRow, encoded, packed
from lit_align.data.pool import LongPrompts
from lit_align.data.preferences import given_answers
from lit_align.data.routes import Routes, uniforms
from lit_align.data.sampling import Answered, SamplingDataModule
from lit_align.data.spend import Price
from lit_align.data.telemetry import LabelTelemetry
from lit_align.functional.distributed import global_sum
from lit_align.metering import metered
from lit_align.types import (
    AlignmentBatch,
    Annotation,
    Annotator,
    Diagnostics,
    EncodedPrompt,
    IndexedPrompts,
    PromptSource,
    Rollouts,
    Sampler,
    Source,
    Stream,
    UserError,
)


@final
class MixedDataModule(SamplingDataModule):
    """Every epoch is the next ``prompts_per_rollout`` prompts, each with the data's answers or with new ones of the policy as it is now.

    Which of the two, and who labels them, is drawn for every prompt by itself: see `Source`. Fixed rows have what is left of the
    probabilities. A row carries one uniform, with which an algorithm draws its label where that is the policy's.

    Args:
        prompts: with their answers.
        sampler: draws the fresh responses, and those to held-out prompts.
        annotator: labels fresh responses. Its labels are committed to a journal in the run's folder before they are used.
        eval_prompts: held-out prompts; the policy answers them.
        eval_annotator: scores these answers; without one, only lengths and divergence are reported.
        relabel: the probability that the policy labels the data's answers.
        fresh_self: that the policy answers, and labels its answers; the annotator is not asked.
        fresh_annotated: that the policy answers, and the annotator labels.
        fixed_passes: how often the run should train on every prompt as a fixed row, in expectation. The number of rollouts follows,
            passes x prompts / (share of fixed rows x ``prompts_per_rollout``), and takes the place of the Trainer's ``max_epochs``:
            a mixture that has fewer fixed rows runs for longer. None leaves ``max_epochs`` alone.
        prompts_per_rollout: on all ranks together.
        responses_per_prompt: fresh responses to a prompt.
        micro_batch_prompts: prompts of one forward and backward pass on one rank.
        inner_epochs: how often a rollout is trained on.
        max_response_tokens: longest answer of the data, its end included; the rest of a longer one, and its end, are not learnt.
        missing_eos_penalty: subtracted from the annotator's score of a response that did not end by itself, in units of reward.
        chunk_prompts: prompts, of like length, that are sampled, then annotated, together on one rank.
        eval_responses_per_prompt: K of held-out prompts.
        eval_sampler: answers held-out prompts, greedily for example; the training one if None.
        max_prompt_tokens: longest prompt; None is what the context leaves beside the response.
        long_prompts: what becomes of longer prompts.
        seed: of the order of prompts, of the routes, of sampling, of labels and of dropout.
        prices: of the models that annotators ask, by name.
        budget: what may be used for labels.
        telemetry: says when labels are not to be trusted; with its own limits if None.

    Raises:
        UserError: if the probabilities are none.
    """

    def __init__(
        self,
        prompts: PromptSource,
        sampler: Sampler,
        annotator: Annotator | None = None,
        eval_prompts: PromptSource | None = None,
        eval_annotator: Annotator | None = None,
        relabel: float = 0.0,
        fresh_self: float = 0.0,
        fresh_annotated: float = 0.0,
        fixed_passes: float | None = None,
        prompts_per_rollout: int = 32,
        responses_per_prompt: int = 2,
        micro_batch_prompts: int = 8,
        inner_epochs: int = 1,
        max_response_tokens: int = 256,
        missing_eos_penalty: float = 0.0,
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
        self.routes, self.fixed_passes = Routes(relabel, fresh_self, fresh_annotated), fixed_passes
        self.max_response_tokens = max_response_tokens

    @property
    def samples(self) -> bool:
        """Where an answer may be fresh."""
        return self.routes.fresh > 0

    @property
    def response_room(self) -> int:
        """The longest response, the data's or a fresh one."""
        return max(self.max_response_tokens, self.sampler.max_new_tokens, self.eval_sampler.max_new_tokens)

    def check_fit(self) -> None:
        """Refuse routes that the algorithm, the annotator or the data can't go; say how long the run is."""
        routes, algorithm = self.routes, type(self.aligner).__name__
        if routes.self_labelled and not self.aligner.needs.self_labels:
            raise UserError(
                f"{algorithm} takes labels as they come, but relabel = {routes.relabel} and fresh_self = {routes.fresh_self} leave them to "
                "the policy. Set both to 0, or choose an algorithm that draws labels of its own."
            )
        if routes.fresh < 1 - 1e-9:
            if self.aligner.needs.sampled:
                raise UserError(
                    f"{algorithm} trains on samples of the policy, but only {routes.fresh:g} of the rows are: use OnlineDataModule, or an "
                    "algorithm for fixed data, such as DPO."
                )
            require_answers(self.prompts, given_answers)
        if routes.fresh_annotated and self.annotator is None:
            raise UserError(
                f"fresh_annotated = {routes.fresh_annotated} asks an annotator, but there is none. Set `annotator`, or the former to 0."
            )
        if self.annotator is not None and self.annotator.learns:
            raise UserError(
                f"{type(self.annotator).__name__} learns from rollouts that it has labelled as a whole, and here it labels some rows. Use "
                "OnlineDataModule, or an annotator that stays as it is."
            )
        if self.fixed_passes is not None:
            self._trainer.fit_loop.max_epochs = self.rollouts_of(self.fixed_passes, self.prompts_per_rollout)

    def make_rollout(self, number: int, prompts: list[EncodedPrompt]) -> AlignmentBatch:
        """Sample the fresh rows, annotate those that the annotator labels, put them among the fixed ones, then let the algorithm
        prepare the whole."""
        sources = self.routes.sources(self.seed, number, prompts)
        judged, own = ([i for i, found in enumerate(sources) if found == wanted] for wanted in (Source.FRESH_ANNOTATED, Source.FRESH_SELF))
        fresh, answered, said = [*judged, *own], Answered(), None
        stream, device = Stream(self.seed, "train", number), self._trainer.strategy.root_device
        asked = int(global_sum(torch.tensor(len(judged), device=device))) * self.responses_per_prompt
        with (
            metered(self.begin(stream, asked, len(fresh))),
            self._trainer.precision_plugin.forward_context(),
            self.aligner.policy.inference(),
        ):
            if judged:
                said = self.label([prompts[i] for i in judged], stream, answered, self.annotator)
            if own:
                self.label([prompts[i] for i in own], stream, answered, None)
            rollouts = join([r for r, _ in answered]).to("cpu") if answered else no_rollouts(self.responses_per_prompt, number)
            batch = self._packed(prompts, judged, fresh, rollouts, said)
            labels = torch.tensor(uniforms(self.seed, "label", number, prompts))
            batch = replace(batch, source=torch.tensor(sources), uniforms=labels)
            if self.routes.fresh_annotated:
                self._report_judged(number, batch, said, [prompts[i] for i in judged])
            batch = self._penalised(batch).to(device)
            batch, diagnostics = self.aligner.prepare_rollout(batch, self.needs, self.micro_batch_prompts)
        self._report_sources(sources)
        self._tell_end(fresh, rollouts, said, batch, diagnostics)
        return batch.to("cpu")

    def _packed(
        self, prompts: list[EncodedPrompt], judged: list[int], fresh: list[int], rollouts: Rollouts, said: Annotation | None
    ) -> AlignmentBatch:
        """All rows, in the order of ``prompts``; those numbered ``fresh`` are the rollouts, the first of them are ``judged``."""
        model, own = self.aligner.text_model, [0.0] * self.responses_per_prompt
        rows: dict[int, FixedRow] = {}
        for row, i in enumerate(fresh):
            scores = said_of(said, row) if said is not None and row < len(judged) else own
            rows[i] = fresh_row(prompts[i], rollouts, row, scores)
        for i in range(len(prompts)):
            if i not in rows:
                rows[i] = encoded(model, prompts[i], given_answers(prompts[i].prompt), self.max_response_tokens)
        steps = torch.arange(len(prompts)) // self._step_rows
        batch = packed([rows[i] for i in range(len(prompts))], model.pad_id, steps, at_least=self.aligner.needs.responses)
        batch = with_preferences(batch, judged, said) if said is not None else batch
        return with_sampling_logps(batch, fresh, rollouts) if self.samples else batch

    def _penalised(self, batch: AlignmentBatch) -> AlignmentBatch:
        judged = (batch.sources == Source.FRESH_ANNOTATED).unsqueeze(-1)
        return replace(batch, scores=batch.scores - self.missing_eos_penalty * (~batch.finished & batch.valid & judged).float())

    def rollouts_of(self, passes: float, prompts_per_rollout: int) -> int:
        """How many rollouts have so many expected passes over the prompts as fixed rows.

        Raises:
            UserError: if nobody can say.
        """
        if not (passes > 0 and self.routes.fixed and isinstance(self.prompts, IndexedPrompts)):
            raise UserError(
                f"fixed_passes should be a positive number of passes over prompts that can be counted, some rows of which are fixed, "
                f"got {passes} with a share of {self.routes.fixed:g} and {type(self.prompts).__name__}. Leave it out, and set "
                "trainer.max_epochs."
            )
        return math.ceil(passes * len(self.prompts) / (self.routes.fixed * prompts_per_rollout))

    def _report_judged(self, number: int, batch: AlignmentBatch, said: Annotation | None, prompts: Sequence[EncodedPrompt]) -> None:
        """What the annotator said of this rank's prompts; there may be none of them."""
        device, judged, k = self._trainer.strategy.root_device, batch.sources == Source.FRESH_ANNOTATED, self.responses_per_prompt
        if said is None:
            assert self.annotator is not None
            nothing = torch.zeros(0, k, dtype=torch.bool)
            said = Annotation(scores=nothing.float(), valid=nothing, annotator_version=self.annotator.version)
        finished, lengths = batch.finished[judged, :k].to(device), batch.response_mask.sum(-1)[judged, :k].to(device)
        self.report(number, said.to(device), finished, lengths, [prompt.prompt.dataset for prompt in prompts])

    def _report_sources(self, sources: Sequence[Source]) -> None:
        """How many rows of the rollout came from where."""
        counts = torch.tensor([sources.count(source) for source in Source], device=self._trainer.strategy.root_device)
        counts = global_sum(counts).tolist()
        self.aligner.log_rollout({f"rows/{source.name.lower()}": count for source, count in zip(Source, counts, strict=True)})

    def _tell_end(
        self, fresh: list[int], rollouts: Rollouts, said: Annotation | None, batch: AlignmentBatch, diagnostics: Diagnostics
    ) -> None:
        """Callbacks hear of the fresh rows, on every rank: they compare ranks, and this one may have none."""
        if not self.samples:
            return
        device, k = self._trainer.strategy.root_device, self.responses_per_prompt
        index = torch.tensor(fresh, dtype=torch.int64, device=batch.scores.device)
        shown = batch.map_tensors(lambda tensor, letters: picked(tensor, letters, index, k))
        heard = {name: picked(value, "BKK"[: value.dim()], index, k) for name, value in diagnostics.items()}
        self.tell("end", rollouts.to(device), said_first(said, len(fresh), k).to(device), shown, heard)
