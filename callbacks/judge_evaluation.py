"""Whether the policy has become better than it was, in the eyes of a judge that it was not trained for."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.functional import pad

from callbacks._logging import log_now
from lit_align.algorithms import AlignmentModule
from lit_align.data import AlignmentDataModule, Price, SamplingDataModule
from lit_align.data.ledger import Ledger
from lit_align.evaluation.win_rate import win_rate
from lit_align.functional.distributed import global_sum
from lit_align.metering import metered
from lit_align.types import (
    AlignmentBatch,
    Annotation,
    Annotator,
    Policy,
    PromptSource,
    RolloutCallback,
    Rollouts,
    Sampler,
    Stream,
    UserError,
)


@final
class JudgeEvaluation(RolloutCallback):
    """Lets a judge compare the policy's answers to held-out prompts with those of the policy as it was before training.

    Before the first epoch, after every ``every_n_rollouts`` rollouts and at the end of the fit; x is the number of rollouts that
    the policy was trained on. The noise of sampling is the same each time and for both, so that a policy that has not moved
    says the same and ties. The judge sees both sides' answers to a prompt at once, as one group of responses, so it may
    be one that scores or one that compares. Over all ranks:

    - ``judge/win_rate``: how often the k-th answer beats the opponent's k-th, a tie counting half, with its 95 % interval
      ``judge/win_rate_low`` and ``judge/win_rate_high``, in which all answers to one prompt are one observation.
    - ``judge/score``, ``judge/reference_score``: means over the pairs that were judged; ``judge/invalid``: how many were not.
    - ``cost/judge_calls``, ``cost/judge_price`` and so on, where the judge may charge: of this evaluation, and no part of the run's budget.
      Every call is in ``ledger/judge`` of the run's folder; what was answered once is known from then on.
    - ``judge/response_length`` in tokens, ``judge/finished``, ``judge/kl_reference`` in nats: of the policy's answers.

    The opponent stays where it is, also where an ``anchor`` moves the reference: its answers are drawn once, from the policy as it
    was loaded. ``judge/reference_score`` is that opponent's; ``judge/kl_reference`` is measured against the reference of the moment.

    EarlyStopping and ModelCheckpoint can monitor them: with ``check_on_train_epoch_end`` and ``save_on_train_epoch_end`` set to
    true, and for ModelCheckpoint ``every_n_epochs`` equal to ``every_n_rollouts``, because between two evaluations the last value
    stays (EarlyStopping's ``patience`` counts those rollouts too).

    Args:
        judge: larger scores are better. Not the annotator that the policy is trained for: it is said if it is.
        prompts: held out. Those that leave no room in the context for a response are dropped, with a warning.
        sampler: draws the answers; None is the data module's.
        every_n_rollouts: how often.
        responses_per_prompt: of each side.
        chunk_prompts: prompts that are sampled and judged together on one rank.
        prices: of the models that the judge asks, by name; None is the data module's.

    Raises:
        UserError: if a number is not positive, or there is no sampler.
    """

    def __init__(
        self,
        judge: Annotator,
        prompts: PromptSource,
        sampler: Sampler | None = None,
        every_n_rollouts: int = 10,
        responses_per_prompt: int = 1,
        chunk_prompts: int = 32,
        prices: dict[str, Price] | None = None,
    ) -> None:
        if min(every_n_rollouts, responses_per_prompt, chunk_prompts) < 1:
            raise UserError(
                f"JudgeEvaluation counts from 1, got every_n_rollouts = {every_n_rollouts}, responses_per_prompt = {responses_per_prompt} "
                f"and chunk_prompts = {chunk_prompts}."
            )
        self.judge, self.prompts, self.sampler, self.prices = judge, prompts, sampler, prices
        self._ledger: Ledger | None = None
        self.every_n_rollouts, self.responses_per_prompt, self.chunk_prompts = every_n_rollouts, responses_per_prompt, chunk_prompts

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the prompts, wake the judge."""
        if stage != "fit":
            return
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        sampler = data.sampler if self.sampler is None and isinstance(data, SamplingDataModule) else self.sampler
        if sampler is None:
            raise UserError(f"JudgeEvaluation needs a sampler: set its `sampler`, as {type(data).__name__} has none to lend.")
        if not isinstance(data, AlignmentDataModule):
            raise UserError(f"JudgeEvaluation reads prompts as lit_align's data modules do; the Trainer has {type(data).__name__}.")
        self._sampler, self._seed = sampler, data.seed
        everyone = data.pool_of(self.prompts, sampler.max_new_tokens).in_order()
        self._total, mine = len(everyone), everyone[trainer.global_rank :: trainer.world_size]
        self._chunks = [mine[i : i + self.chunk_prompts] for i in range(0, len(mine), self.chunk_prompts)]
        self._rivals: list[Rollouts] | None = None  # the opponent's answers, one record per chunk
        self._metrics: dict[str, float] = {}
        self._judged_at = -1  # optimizer steps
        trains = data.annotator if isinstance(data, SamplingDataModule) else None
        if trains is not None and trains.identity and trains.identity == self.judge.identity:
            rank_zero_info(f"JudgeEvaluation: the policy is trained for this very judge, {trains.identity}, and will please it.")
        prices = data.prices if self.prices is None and isinstance(data, SamplingDataModule) else self.prices
        folder, of_rank = Path(trainer.default_root_dir) / "ledger" / "judge", (trainer.global_rank, trainer.world_size)
        self._ledger = Ledger(folder, *of_rank, prices or {}, setting="`prices` of JudgeEvaluation")
        self.judge.setup(trainer.strategy.root_device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the policy as it is before training; after a resume, remember what was found last."""
        self._trained = trainer.current_epoch  # rollouts
        if self._metrics:
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._metrics.items()})
        else:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the rollout that is being trained on: an epoch that another callback stopped has none."""
        self._trained = trainer.current_epoch + 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge where it is due or the last one, before ModelCheckpoint and EarlyStopping look."""
        rollouts = trainer.current_epoch + 1
        last = trainer.should_stop or rollouts == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if last or rollouts % self.every_n_rollouts == 0:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the final policy, where the end came as a surprise."""
        self._evaluate(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the judge, close its ledger."""
        if stage == "fit" and self._ledger is not None:
            self.judge.close()
            self._ledger.close()
            self._ledger = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning calls no ``teardown`` then."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """What was found last, and after how many optimizer steps."""
        return {"metrics": self._metrics, "judged_at": self._judged_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self._metrics, self._judged_at = state_dict["metrics"], state_dict["judged_at"]

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        """Judge this rank's prompts, gather, log; nothing where this very policy was judged already."""
        if trainer.global_step == self._judged_at:
            return
        assert self._ledger is not None
        self._ledger.rollout = self._trained
        with isolate_rng(), metered(self._ledger):  # a judge may draw
            found = self._judged(trainer, _aligner(module))
        table = torch.zeros(self._total, self.responses_per_prompt, 6, device=module.device)
        table[trainer.global_rank :: trainer.world_size] = found
        score, rival, valid, length, finished, kl = global_sum(table).unbind(-1)  # [N, K]: others' rows are 0 here, so this gathers
        judged = valid > 0
        rate = win_rate(score, rival, judged)
        metrics = {"response_length": length, "finished": finished, "kl_reference": kl}
        self._metrics = {f"judge/{name}": float(values.mean()) for name, values in metrics.items()}
        self._metrics |= {"judge/invalid": float(judged.numel() - rate.n)}
        if rate.n:
            self._metrics |= {"judge/win_rate": rate.value, "judge/win_rate_low": rate.low, "judge/win_rate_high": rate.high}
            self._metrics |= {"judge/score": float(score[judged].mean()), "judge/reference_score": float(rival[judged].mean())}
        else:
            rank_zero_warn(f"JudgeEvaluation: {type(self.judge).__name__} scored none of {judged.numel()} pairs, so there is no win rate.")
        self._judged_at = trainer.global_step
        spend = self._ledger.report(trainer.strategy.root_device, self._trained)
        log_now(trainer, self._metrics | (spend.metrics("judge") if spend.happened else {}), self._trained)

    def _judged(self, trainer: Trainer, module: AlignmentModule) -> Tensor:
        """Score, opponent's score, whether both are valid, length, finished and divergence of this rank's answers, ``[n, K, 6]``."""
        k, context = self.responses_per_prompt, trainer.precision_plugin.forward_context
        if self._rivals is None:
            with context():
                self._rivals = [answers.to("cpu") for answers in self._answers(module.initial_reference().policy.to(module.device))]
        rows = [torch.zeros(0, k, 6, device=module.device)]
        with context():
            mine = list(self._answers(module.policy))
        with module.policy.inference():  # an adapter's reference is the policy: as for the answers, once
            for answers, rivals in zip(mine, self._rivals, strict=True):
                said = self.judge.annotate(beside(answers, rivals.to(module.device))).to(module.device)
                valid = said.valid[:, :k] & said.valid[:, k:]
                batch = AlignmentBatch.of(answers, Annotation(scores=said.scores[:, :k], valid=valid))
                with context():
                    batch = replace(batch, reference_logps=module.reference.token_logps(batch))
                kl = batch.sampling_response_logps - batch.reference_response_logps
                length = answers.response_mask.sum(-1)
                columns = (said.scores[:, :k].where(valid, 0.0), said.scores[:, k:].where(valid, 0.0), valid, length, answers.finished, kl)
                rows.append(torch.stack([column.float() for column in columns], -1))
        return torch.cat(rows)

    def _answers(self, policy: Policy) -> Iterator[Rollouts]:
        stream = Stream(self._seed, "judge", 0)  # the same noise each time, so that differences are the policy's
        with policy.inference():  # once: ranks may have different numbers of chunks
            for chunk in self._chunks:
                yield self._sampler.sample(policy, chunk, self.responses_per_prompt, stream)


def beside(left: Rollouts, right: Rollouts) -> Rollouts:
    """Two policies' responses to the same prompts as one group: K of the left, then K of the right."""
    width = max(left.response_mask.shape[-1], right.response_mask.shape[-1])
    columns: dict[str, Any] = {}
    for (name, mine, letters), (_, other, _) in zip(left.tensors(), right.tensors(), strict=True):
        if letters.startswith("BK"):
            parts = [pad(part, (0, width - part.shape[-1])) if letters == "BKT" else part for part in (mine, other)]
            columns[name] = torch.cat(parts, 1)
    return replace(left, **columns, texts=tuple(a + b for a, b in zip(left.texts, right.texts, strict=True)))


def _aligner(module: LightningModule) -> AlignmentModule:
    if not isinstance(module, AlignmentModule):
        raise UserError(f"JudgeEvaluation compares a policy with its reference; {type(module).__name__} has neither.")
    return module
