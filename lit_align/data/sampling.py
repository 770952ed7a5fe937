"""What data modules share whose answers, or some of them, the policy writes while it trains."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_align.data.base import AlignmentDataModule, datasets_of
from lit_align.data.budget import Budget
from lit_align.data.chunks import alike, joined
from lit_align.data.costs import Costs
from lit_align.data.journal import LabelJournal
from lit_align.data.labelling import labelled
from lit_align.data.ledger import Ledger
from lit_align.data.lock import lock_run
from lit_align.data.pool import LongPrompts
from lit_align.data.spend import Price, Spend
from lit_align.data.telemetry import LabelTelemetry
from lit_align.functional.distributed import gathered, global_mean, global_std, global_sum
from lit_align.metering import Meter, current_meter, metered
from lit_align.types import Annotation, Annotator, EncodedPrompt, PromptSource, Rollouts, Sampler, Samples, Stream, UserError

Answered = list[tuple[Rollouts, Annotation]]


class SamplingDataModule(AlignmentDataModule, ABC):
    """Owns sampler, annotators and the journal of labels; held-out prompts are answered by the policy, too.

    Args:
        prompts: what to read while training.
        sampler: draws the responses.
        annotator: labels them; None where nobody has to. Its labels are committed to a journal in the run's folder before they are used.
        eval_prompts: held-out prompts.
        eval_annotator: scores their answers; without one, only lengths and divergence are reported.
        prompts_per_rollout: on all ranks together.
        responses_per_prompt: K.
        micro_batch_prompts: prompts of one forward and backward pass on one rank.
        inner_epochs: how often a rollout is trained on.
        missing_eos_penalty: subtracted from the score of a response that did not end by itself, in units of reward.
        chunk_prompts: prompts, of like length, that are sampled, then annotated, together on one rank.
        eval_responses_per_prompt: K of held-out prompts.
        eval_sampler: answers held-out prompts, greedily for example; the training one if None.
        max_prompt_tokens: longest prompt; None is what the context leaves beside the response.
        long_prompts: what becomes of longer prompts.
        seed: of the order of prompts, of sampling and of dropout.
        prices: of the models that annotators ask, by name.
        budget: what may be used for labels.
        telemetry: says when labels are not to be trusted; with its own limits if None.

    Attributes:
        spent: what the labels of the latest rollout cost, on all ranks.
    """

    def __init__(
        self,
        prompts: PromptSource,
        sampler: Sampler,
        annotator: Annotator | None,
        eval_prompts: PromptSource | None,
        eval_annotator: Annotator | None,
        prompts_per_rollout: int,
        responses_per_prompt: int,
        micro_batch_prompts: int,
        inner_epochs: int,
        missing_eos_penalty: float,
        chunk_prompts: int,
        eval_responses_per_prompt: int,
        eval_sampler: Sampler | None,
        max_prompt_tokens: int | None,
        long_prompts: LongPrompts,
        seed: int,
        prices: dict[str, Price] | None,
        budget: Budget | None,
        telemetry: LabelTelemetry | None,
    ) -> None:
        super().__init__(
            prompts, eval_prompts, prompts_per_rollout, micro_batch_prompts, inner_epochs, max_prompt_tokens, long_prompts, seed
        )
        self.sampler, self.annotator, self.eval_annotator = sampler, annotator, eval_annotator
        self.responses_per_prompt, self.eval_responses_per_prompt = responses_per_prompt, eval_responses_per_prompt
        self.eval_sampler = sampler if eval_sampler is None else eval_sampler
        self.missing_eos_penalty, self.chunk_prompts = missing_eos_penalty, chunk_prompts
        self.prices, self.budget, self.spent = prices or {}, budget, Spend()
        self.telemetry = LabelTelemetry() if telemetry is None else telemetry
        self._journal: LabelJournal | None = None
        self._costs: Costs | None = None
        self._evaluation: Ledger | None = None  # of an evaluation without a fit
        self._lock: FileLock | None = None  # on the first rank

    @property
    def response_room(self) -> int:
        """The longest response."""
        return max(self.sampler.max_new_tokens, self.eval_sampler.max_new_tokens)

    def check_fit(self) -> None:
        """A subclass's own checks before it trains."""

    @final
    def on_setup(self, stage: str) -> None:
        """Wake the annotators; open the journal of a folder where no other run lives."""
        device = self._trainer.strategy.root_device
        self.sampler.setup()
        self.eval_sampler.setup()
        if stage == "fit":
            self._check_sampler()
            if self.responses_per_prompt < self.needs.responses:
                raise UserError(
                    f"{type(self.aligner).__name__} as configured compares the responses to a prompt and needs at least "
                    f"{self.needs.responses} of them, got responses_per_prompt = {self.responses_per_prompt}. Raise it, or choose a "
                    "baseline over the batch (for DAR: `baseline: lit_align.algorithms.BatchMean` with `weighting: ClippedWeights`)."
                )
            self.check_fit()
            if self.annotator is not None:
                self.annotator.setup(device)
            if self._trainer.is_global_zero:
                self._lock = lock_run(Path(self._trainer.default_root_dir))
            self._trainer.strategy.barrier()  # nobody reads or mends the journal of a run that goes on
            self._journal = LabelJournal(Path(self._trainer.default_root_dir) / "journal", self._trainer.global_rank)
            self._costs = Costs(self._trainer, self._journal, self.prices, self.budget)
            self._trainer.strategy.barrier()  # every rank has read the files of all before anyone appends
        if self.eval_annotator is not None and self.eval_prompts is not None:
            self.eval_annotator.setup(device)
            if stage != "fit":
                folder = Path(self._trainer.default_root_dir) / "ledger" / "evaluation"
                self._evaluation = Ledger(folder, self._trainer.global_rank, self._trainer.world_size, self.prices)

    @final
    def begin(self, stream: Stream, at_most: int, prompts: int) -> Meter:
        """Who is told what a rollout costs, if the budget has room for ``at_most`` labels on all ranks; callbacks then hear that it
        starts, with responses to ``prompts`` prompts on this rank. Where the policy answers nothing there is nothing to hear."""
        meter = self.costs.admit(stream, at_most)
        if self.samples:
            self.tell("start", stream.rollout, prompts * self.responses_per_prompt)
        return meter

    def label(self, prompts: list[EncodedPrompt], stream: Stream, answered: Answered, annotator: Annotator | None) -> Annotation:
        """Answer and annotate, adding to ``answered``; what was said of these prompts. Without an annotator, nothing is said."""
        parts, places = alike(prompts, self.chunk_prompts)
        sampled = (self.sampler.sample(self.aligner.policy, part, self.responses_per_prompt, stream) for part in parts)
        label = _nothing_said if annotator is None else partial(self.journal.annotate, annotator, stream=stream)
        done = sum(rollouts.finished.numel() for rollouts, _ in answered)
        overlap = annotator is not None and annotator.waits
        found = labelled(sampled, label, partial(self.tell, "progress"), done=done, overlap=overlap)
        answered.append(joined(found, places))
        return answered[-1][1]

    @final
    def learn(self, stream: Stream, rollouts: Rollouts) -> None:
        """Let the annotator learn from a rollout that it has labelled; what it asks others is in the same journal."""

        def ask(annotator: Annotator, asked: Rollouts) -> Annotation:
            return self.journal.annotate(annotator, asked, replace(stream, name=f"{stream.name}/teacher"))

        if self.annotator is not None:
            self.aligner.log_rollout(self.annotator.learn(rollouts, ask))

    @final
    def state_of_parts(self) -> dict[str, Any]:
        """What the annotator has learnt, and what is known of its labels."""
        learnt = {} if self.annotator is None else {"annotator": self.annotator.state_dict()}
        return {**learnt, "telemetry": self.telemetry.state_dict()}

    @final
    def load_state_of_parts(self, state: dict[str, Any]) -> None:
        """Give it back."""
        if self.annotator is not None:
            self.annotator.load_state_dict(state.get("annotator", {}))
        if "telemetry" in state:
            self.telemetry.load_state_dict(state["telemetry"])

    @final
    def evaluation_batch(self, prompts: list[EncodedPrompt]) -> Samples:
        """Answers drawn with the same noise at every evaluation, so that differences are the policy's."""
        policy = self.aligner.policy
        with self._trainer.precision_plugin.forward_context(), policy.inference():
            rollouts = self.eval_sampler.sample(policy, prompts, self.eval_responses_per_prompt, Stream(self.seed, "eval", 0))
        meter = self._evaluation if self._costs is None else self._costs.ledger
        with metered(meter or current_meter()):
            annotation = self.eval_annotator.annotate(rollouts) if self.eval_annotator is not None else None
        return Samples(rollouts, annotation, datasets_of(self.eval_prompts))

    @property
    def evaluation_chunk(self) -> int:
        """As while training."""
        return self.chunk_prompts

    @final
    def teardown(self, stage: str) -> None:
        """Close journal, ledgers, samplers and annotators, say what an evaluation has cost; leave the folder to others."""
        self.sampler.close()
        self.eval_sampler.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
            if self.annotator is not None:
                self.annotator.close()
        if self._costs is not None:
            self._costs.close()
            self._costs = None
        if self._evaluation is not None:
            if stage != "fit":  # all ranks are here, and none has failed
                spend = self._evaluation.report(self._trainer.strategy.root_device)
                if spend.happened:
                    rank_zero_info(
                        f"Cost of all calls in {Path(self._trainer.default_root_dir) / 'ledger' / 'evaluation'}: {spend.sentence}."
                    )
            self._evaluation.close()
            self._evaluation = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self.eval_annotator is not None:
            self.eval_annotator.close()

    @final
    def on_exception(self, exception: BaseException) -> None:
        """Lightning calls no ``teardown`` then."""
        self.teardown("fit")

    def _check_sampler(self) -> None:
        if self.samples and self.needs.on_policy and self.sampler.max_staleness:
            raise UserError(
                f"{type(self.aligner).__name__} as configured is right only for samples of exactly the policy being trained, but those of "
                f"{type(self.sampler).__name__} may be of one that is {self.sampler.max_staleness} rollouts older. Set its "
                "`synchronise_every` to 1, or choose an algorithm that takes older samples, such as GRPO."
            )

    @property
    def journal(self) -> LabelJournal:
        """The labels of this run; open from ``setup`` to ``teardown`` of a fit."""
        if self._journal is None:
            raise RuntimeError("The journal is open only while fitting.")
        return self._journal

    @property
    def costs(self) -> Costs:
        """What is spent on labels; open as long as the journal."""
        if self._costs is None:
            raise RuntimeError("Costs are counted only while fitting.")
        return self._costs

    @final
    def report(self, number: int, annotation: Annotation, finished: Tensor, lengths: Tensor, datasets: Sequence[str]) -> None:
        """Log what was sampled and said; stop where nothing that was asked about could be labelled.

        Args:
            number: of the rollout.
            annotation: of this rank's prompts that the annotator was asked about; there may be none of them.
            finished, lengths: of their responses, ``[B, K]``; lengths in tokens.
            datasets: that each of the prompts is of.
        """
        valid = annotation.valid
        asked, scored = global_sum(torch.tensor([valid.numel(), int(valid.sum())], device=valid.device)).tolist()
        if asked and not scored:
            raise UserError(
                f"The annotator gave no valid score for any of the {asked} responses of rollout {number}: there is nothing to learn "
                "from. Its first failure is in the warnings above; try it on one prompt by hand."
            )
        everything = torch.ones_like(finished)
        self.aligner.log_rollout(
            {
                "reward/mean": global_mean(annotation.scores, valid),
                "reward/std": global_std(annotation.scores, valid),
                "response/length": global_mean(lengths.float(), everything),
                "response/finished": global_mean(finished.float(), everything),
                "labels/used": self.costs.labels_used(),
                "labels/invalid": asked - scored,
            }
        )
        self.spent, costs = self.costs.report(number)
        self.aligner.log_rollout(costs)
        measured = self.telemetry.measure(annotation, lengths)
        self.aligner.log_rollout({f"labels/{name}": value for name, value in measured.items()})
        if self._trainer.is_global_zero:
            self.telemetry.warn(measured)
        if annotation.annotator_version:
            self.aligner.log_rollout({"labels/annotator_version": annotation.annotator_version})
        for name in sorted(set().union(*gathered(list(annotation.parts)))):  # a rank that asked about nothing has none
            part = annotation.parts.get(name, torch.zeros_like(annotation.scores[:0]))
            if global_sum(part.isfinite().sum()):
                self.aligner.log_rollout({f"reward/{name}": global_mean(part, part.isfinite())})
        for name in datasets_of(self.prompts):
            of_it = valid & torch.tensor([dataset == name for dataset in datasets], dtype=torch.bool, device=valid.device).unsqueeze(-1)
            if global_sum(of_it.sum()):  # the same everywhere: what nobody scored is left out
                self.aligner.log_rollout({f"reward/{name}": global_mean(annotation.scores, of_it)})


def _nothing_said(rollouts: Rollouts) -> Annotation:
    nothing = torch.zeros_like(rollouts.finished, device="cpu")
    return Annotation(scores=nothing.float(), valid=nothing)
