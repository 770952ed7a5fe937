"""The wheel: sample from the policy, have it labelled, prepare, train, again."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

import torch
from filelock import FileLock

from lit_align.data.base import AlignmentDataModule, datasets_of
from lit_align.data.collate import join
from lit_align.data.dynamic import groups_with_spread
from lit_align.data.journal import LabelJournal
from lit_align.data.labelling import labelled
from lit_align.data.lock import lock_run
from lit_align.data.pool import LongPrompts
from lit_align.functional.distributed import global_mean, global_std, global_sum
from lit_align.types import (
    AlignmentBatch,
    Annotation,
    Annotator,
    EncodedPrompt,
    PromptSource,
    Rollouts,
    Sampler,
    Samples,
    Stream,
    UserError,
)


@final
class OnlineDataModule(AlignmentDataModule):
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
        chunk_prompts: prompts that are sampled, then annotated, together on one rank.
        eval_responses_per_prompt: K of held-out prompts.
        eval_sampler: answers held-out prompts, greedily for example; the training one if None.
        max_prompt_tokens: longest prompt; None is what the context leaves beside the response.
        long_prompts: what becomes of longer prompts.
        seed: of the order of prompts, of sampling and of dropout.
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
    ) -> None:
        super().__init__(
            prompts, eval_prompts, prompts_per_rollout, micro_batch_prompts, inner_epochs, max_prompt_tokens, long_prompts, seed
        )
        self.sampler, self.annotator, self.eval_annotator = sampler, annotator, eval_annotator
        self.responses_per_prompt, self.eval_responses_per_prompt = responses_per_prompt, eval_responses_per_prompt
        self.eval_sampler = sampler if eval_sampler is None else eval_sampler
        self.missing_eos_penalty, self.chunk_prompts = missing_eos_penalty, chunk_prompts
        self.max_extra_prompts = max_extra_prompts
        self._journal: LabelJournal | None = None
        self._lock: FileLock | None = None  # on the first rank

    @property
    def response_room(self) -> int:
        """The longest response."""
        return max(self.sampler.max_new_tokens, self.eval_sampler.max_new_tokens)

    def on_setup(self, stage: str) -> None:
        """Wake the annotators; open the journal of a folder where no other run lives."""
        device = self._trainer.strategy.root_device
        if stage == "fit":
            if self.responses_per_prompt < self.needs.responses:
                raise UserError(
                    f"{type(self.aligner).__name__} as configured compares the responses to a prompt and needs at least "
                    f"{self.needs.responses} of them, got responses_per_prompt = {self.responses_per_prompt}. Raise it, or choose a "
                    "baseline over the batch (for DAR: `baseline: lit_align.algorithms.BatchMean` with `weighting: ClippedWeights`)."
                )
            if self.max_extra_prompts < 0 or (self.max_extra_prompts and self.responses_per_prompt < 2):
                raise UserError(
                    f"max_extra_prompts should be 0 or, with at least 2 responses to a prompt that may score differently, positive, got "
                    f"{self.max_extra_prompts} and responses_per_prompt = {self.responses_per_prompt}. Set it to 0, or raise the latter."
                )
            self.annotator.setup(device)
            if self._trainer.is_global_zero:
                self._lock = lock_run(Path(self._trainer.default_root_dir))
            self._trainer.strategy.barrier()  # nobody reads or mends the journal of a run that goes on
            self._journal = LabelJournal(Path(self._trainer.default_root_dir) / "journal", self._trainer.global_rank)
            self._trainer.strategy.barrier()  # every rank has read the files of all before anyone appends
        if self.eval_annotator is not None and self.eval_prompts is not None:
            self.eval_annotator.setup(device)

    def make_rollout(self, number: int, prompts: list[EncodedPrompt]) -> AlignmentBatch:
        """Sample and annotate chunk by chunk, then let the algorithm prepare the whole."""
        stream, chunks, device = Stream(self.seed, "train", number), [], self._trainer.strategy.root_device
        self.tell("start", number, len(prompts) * self.responses_per_prompt)
        with self._trainer.precision_plugin.forward_context(), self.aligner.policy.inference():
            said = self._label(prompts, stream, chunks)
            kept = self._search(said, stream, chunks) if self.max_extra_prompts else range(len(prompts))
            rollouts, annotation = join([r for r, _ in chunks]), join([a for _, a in chunks]).to(device)
            self._report(number, rollouts, annotation)
            rollouts, annotation = rollouts.rows(kept), annotation.rows(kept)
            batch = AlignmentBatch.of(rollouts, annotation, torch.arange(len(prompts)) // self._step_rows)
            batch = replace(batch, scores=batch.scores - self.missing_eos_penalty * (~batch.finished & batch.valid).float())
            batch, diagnostics = self.aligner.prepare_rollout(batch, self.needs, self.micro_batch_prompts)
        self.tell("end", rollouts, annotation, batch, diagnostics)
        return batch.to("cpu")

    def _label(self, prompts: list[EncodedPrompt], stream: Stream, chunks: list[tuple[Rollouts, Annotation]]) -> Annotation:
        """Answer and annotate, adding to ``chunks``; what was said of these prompts."""
        earlier, size, k = len(chunks), self.chunk_prompts, self.responses_per_prompt
        parts = (prompts[start : start + size] for start in range(0, len(prompts), size))
        sampled = (self.sampler.sample(self.aligner.policy, part, k, stream) for part in parts)
        label, tell = partial(self.journal.annotate, self.annotator, stream=stream), partial(self.tell, "progress")
        done = sum(rollouts.finished.numel() for rollouts, _ in chunks)
        chunks.extend(labelled(sampled, label, tell, done=done, overlap=self.annotator.waits))
        return join([annotation for _, annotation in chunks[earlier:]])

    def _search(self, said: Annotation, stream: Stream, chunks: list[tuple[Rollouts, Annotation]]) -> list[int]:
        """Label further prompts for those whose responses all score the same; which of all groups to train on."""
        device, total, budget = self._trainer.strategy.root_device, self.prompts_per_rollout, self.max_extra_prompts
        label = partial(self._label, stream=stream, chunks=chunks)
        kept, metrics = groups_with_spread(said, self.rank_rows, total, budget, self.draw, label, device)
        self.aligner.log_rollout(metrics)
        return kept

    def evaluation_batch(self, prompts: list[EncodedPrompt]) -> Samples:
        """Answers drawn with the same noise at every evaluation, so that differences are the policy's."""
        policy = self.aligner.policy
        with self._trainer.precision_plugin.forward_context(), policy.inference():
            rollouts = self.eval_sampler.sample(policy, prompts, self.eval_responses_per_prompt, Stream(self.seed, "eval", 0))
        annotation = self.eval_annotator.annotate(rollouts) if self.eval_annotator is not None else None
        return Samples(rollouts, annotation, datasets_of(self.eval_prompts))

    @property
    def evaluation_chunk(self) -> int:
        """As while training."""
        return self.chunk_prompts

    def teardown(self, stage: str) -> None:
        """Close journal and annotators; leave the folder to others."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
            self.annotator.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self.eval_annotator is not None:
            self.eval_annotator.close()

    def on_exception(self, exception: BaseException) -> None:
        """Lightning calls no ``teardown`` then."""
        self.teardown("fit")

    @property
    def journal(self) -> LabelJournal:
        """The labels of this run; open from ``setup`` to ``teardown`` of a fit."""
        if self._journal is None:
            raise RuntimeError("The journal is open only while fitting.")
        return self._journal

    def _report(self, number: int, rollouts: Rollouts, annotation: Annotation) -> None:
        """Log what was sampled and said; stop where nothing could be labelled."""
        valid = annotation.valid
        asked, scored = global_sum(torch.tensor([valid.numel(), int(valid.sum())], device=valid.device)).tolist()
        if not scored:
            raise UserError(
                f"The annotator gave no valid score for any of the {asked} responses of rollout {number}: there is nothing to learn "
                "from. Its first failure is in the warnings above; try it on one prompt by hand."
            )
        everything = torch.ones_like(rollouts.finished)
        written = torch.tensor(self.journal.labels_written, device=valid.device)
        self.aligner.log_rollout(
            {
                "reward/mean": global_mean(annotation.scores, valid),
                "reward/std": global_std(annotation.scores, valid),
                "response/length": global_mean(rollouts.response_mask.sum(-1).float(), everything),
                "response/finished": global_mean(rollouts.finished.float(), everything),
                "labels/used": self.journal.labels_used - written + global_sum(written),
                "labels/invalid": asked - scored,
            }
        )
        if annotation.mass is not None:
            known = annotation.mass.isfinite()
            self.aligner.log_rollout({"labels/option_mass": global_mean(annotation.mass.where(known, 0.0), known)})
        for name in datasets_of(self.prompts):
            of_it = valid & torch.tensor([[prompt.dataset == name] for prompt in rollouts.prompts], device=valid.device)
            if global_sum(of_it.sum()):  # the same everywhere: what nobody scored is left out
                self.aligner.log_rollout({f"reward/{name}": global_mean(annotation.scores, of_it)})
