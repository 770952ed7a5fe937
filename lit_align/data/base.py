"""What offline and online data share: prompts in order, the loader with its place, the state of a rollout."""

import math
from abc import ABC, abstractmethod
from typing import Any, cast, final

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_align.data.loader import LazyLoader, MicroBatch, RolloutLoader, derived_seed, schedule
from lit_align.data.pool import LongPrompts, PromptEncoder, numbered
from lit_align.data.readers import PromptReader, reader_of
from lit_align.data.sources.mixed import MixedPrompts
from lit_align.functional.distributed import global_sum
from lit_align.types import Aligner, AlignmentBatch, EncodedPrompt, Needs, PromptSource, RolloutCallback, UserError


class AlignmentDataModule(LightningDataModule, ABC):
    """Gives the Trainer one epoch of prepared micro-batches, and the same ones again after a resume.

    One epoch is one rollout of ``prompts_per_rollout`` prompts. It is cut into optimizer steps of ``micro_batch_prompts`` x
    accumulation x world size prompts: row i of the rollout belongs to step i // that, and rank r takes the r-th slice of every
    step.

    Args:
        prompts: what to read while training.
        eval_prompts: what to read in ``validate``, ``test`` and ``predict``.
        prompts_per_rollout: on all ranks together.
        micro_batch_prompts: prompts of one forward and backward pass on one rank.
        inner_epochs: how often a rollout is trained on.
        max_prompt_tokens: longest prompt; None is what the context leaves beside the response.
        long_prompts: what becomes of longer prompts: ``drop``, ``truncate_left`` or ``refuse``.
        seed: of the order of prompts, of sampling and of dropout.
    """

    def __init__(
        self,
        prompts: PromptSource,
        eval_prompts: PromptSource | None,
        prompts_per_rollout: int,
        micro_batch_prompts: int,
        inner_epochs: int,
        max_prompt_tokens: int | None,
        long_prompts: LongPrompts,
        seed: int,
    ) -> None:
        super().__init__()
        self.prompts, self.eval_prompts = prompts, eval_prompts
        self.prompts_per_rollout, self.micro_batch_prompts, self.inner_epochs = prompts_per_rollout, micro_batch_prompts, inner_epochs
        self.max_prompt_tokens, self.seed = max_prompt_tokens, seed
        self.long_prompts: LongPrompts = long_prompts
        self._rollout: int | None = None
        self._batch: AlignmentBatch | None = None  # this rank's prepared rows of rollout number _rollout
        self._ranks: list[dict[str, Tensor]] = []  # every rank's, for the checkpoint
        self._place: dict[str, Any] = {}  # of the reader, behind that rollout
        self._drawn: list[EncodedPrompt] = []  # for the latest rollout, on all ranks

    @abstractmethod
    def make_rollout(self, number: int, prompts: list[EncodedPrompt]) -> AlignmentBatch:
        """This rank's rows of epoch ``number``, prepared, on the CPU."""

    @abstractmethod
    def evaluation_batch(self, prompts: list[EncodedPrompt]) -> Any:
        """Held-out data for the module's evaluation step, of the policy as it is when this is called."""

    @property
    @abstractmethod
    def evaluation_chunk(self) -> int:
        """How many prompts to evaluate together."""

    @property
    @abstractmethod
    def samples(self) -> bool:
        """Whether the policy answers while it trains, at least some prompts."""

    @property
    @abstractmethod
    def response_room(self) -> int:
        """Tokens of the context to keep free for the response."""

    @final
    def setup(self, stage: str) -> None:
        """Refuse what can't be right, naming the setting to change; then read the prompts."""
        if stage == "fit":
            self._check_trainer()
            self._reader = self.pool_of(self.prompts, self.response_room)
            if self._trainer.current_epoch and self._place:
                self._reader.load_state_dict(self._place)  # the same Trainer goes on
            self._rollout, self._batch, self._ranks = None, None, []  # of an earlier fit: another policy's
            if self.eval_prompts is None:
                self._trainer.limit_val_batches = 0  # Lightning warns of an empty loader
        held_out = self.eval_prompts
        self._held_out = None if held_out is None else self.pool_of(held_out, self.response_room).in_order()
        self.on_setup(stage)

    def on_setup(self, stage: str) -> None:
        """A subclass's own checks and resources."""

    @final
    def train_dataloader(self) -> RolloutLoader:
        """One epoch: the rollout that a checkpoint brought if it is this epoch's, else a new one."""
        number = self._trainer.current_epoch
        if self._batch is None or self._rollout != number:
            self._batch = self.make_rollout(number, self._rank_prompts())
            self._rollout, self._ranks = number, _gathered({name: tensor for name, tensor, _ in self._batch.tensors()})
            self._place = self._reader.state_dict()
            self.aligner.log_rollout(self._reader.metrics())
        elif (rows := len(self._batch.scores) * self._trainer.world_size) != self.prompts_per_rollout:
            raise UserError(
                f"The checkpoint was written inside a rollout of {rows} prompts, but prompts_per_rollout is "
                f"{self.prompts_per_rollout}. Set it to {rows}, or resume from a checkpoint of a rollout's end."
            )
        return self._loader(number, self._batch)

    def _loader(self, number: int, batch: AlignmentBatch) -> RolloutLoader:
        trainer, micro = self._trainer, self.micro_batch_prompts
        counted = {
            "response_normaliser": batch.valid,
            "token_normaliser": batch.loss_mask & batch.valid.unsqueeze(-1),
            "pair_normaliser": torch.zeros_like(batch.valid) if batch.pairs is None else ~batch.pairs.isnan(),
        }
        counts = torch.stack([which.reshape(-1, self._step_rows, which[0].numel()).sum((1, 2)) for which in counted.values()])  # [3, steps]
        counts = global_sum(counts.to(trainer.strategy.root_device)).cpu()
        normalisers = counts / (trainer.world_size * trainer.accumulate_grad_batches)
        plan = []
        for step in schedule(counts.shape[1], self.inner_epochs, self.seed, number):
            of_step = dict(zip(counted, normalisers[:, step], strict=True))
            for start in range(step * self._step_rows, (step + 1) * self._step_rows, micro):
                seed = derived_seed(self.seed, "dropout", number, len(plan), trainer.global_rank)
                plan.append(MicroBatch(torch.arange(start, start + micro), of_step, seed))
        return RolloutLoader(batch, plan)

    @final
    def val_dataloader(self) -> LazyLoader:
        """Held-out prompts, sampled when the loop asks: an eager loader would score the policy of the first step."""
        return self._evaluation_loader()

    @final
    def test_dataloader(self) -> LazyLoader:
        """As `val_dataloader`."""
        return self._evaluation_loader()

    @final
    def predict_dataloader(self) -> LazyLoader:
        """As `val_dataloader`."""
        return self._evaluation_loader()

    @final
    def state_dict(self) -> dict[str, Any]:
        """Every rank's prepared rows and the place behind them; tensors, numbers, lists and dicts only, and no collective."""
        return {} if self._rollout is None else {"rollout": self._rollout, "ranks": self._ranks, "place": self._place}

    @final
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this rank's rows back, to train on, and read on behind them: an evaluation of the checkpoint has no use for them."""
        if not state_dict or self._trainer.state.fn != TrainerFn.FITTING:
            return
        if len(state_dict["ranks"]) != self._trainer.world_size:
            raise UserError(
                f"The checkpoint holds a rollout of {len(state_dict['ranks'])} processes, this run has {self._trainer.world_size}. "
                "Resume with as many, or start a new run from the exported policy."
            )
        self._rollout, self._ranks, self._place = state_dict["rollout"], state_dict["ranks"], state_dict["place"]
        self._reader.load_state_dict(self._place)
        self._batch = AlignmentBatch(**self._ranks[self._trainer.global_rank])

    @property
    def aligner(self) -> Aligner:
        """The algorithm."""
        return cast(Aligner, self._trainer.lightning_module)

    @property
    def needs(self) -> Needs:
        """Of the algorithm and of the callbacks that watch rollouts."""
        needs = self.aligner.needs
        for callback in self._callbacks:
            needs |= callback.needs
        return needs

    @final
    def tell(self, event: str, *arguments: object) -> None:
        """Call ``on_rollout_<event>`` of every rollout callback."""
        for callback in self._callbacks:
            getattr(callback, f"on_rollout_{event}")(self._trainer, self._trainer.lightning_module, *arguments)

    @property
    def _trainer(self) -> Any:
        if self.trainer is None:
            raise RuntimeError(f"{type(self).__name__} is used by a Trainer: call trainer.fit(module, datamodule).")
        return self.trainer

    @property
    def _callbacks(self) -> list[RolloutCallback]:
        return [callback for callback in self._trainer.callbacks if isinstance(callback, RolloutCallback)]

    @property
    def _step_rows(self) -> int:
        """Prompts of one optimizer step on one rank."""
        return self.micro_batch_prompts * self._trainer.accumulate_grad_batches

    def _rank_prompts(self) -> list[EncodedPrompt]:
        """This rank's slice of every optimizer step, whatever the number of ranks."""
        self._drawn = []
        everyone = self.draw(self.prompts_per_rollout)
        return [everyone[i] for i in self.rank_rows]

    @property
    def rank_rows(self) -> list[int]:
        """Numbers of this rank's rows in the rollout of all ranks."""
        rank, world = self._trainer.global_rank, self._trainer.world_size
        return [i for i in range(self.prompts_per_rollout) if i // self._step_rows % world == rank]

    @final
    def draw(self, count: int) -> list[EncodedPrompt]:
        """The next ``count`` prompts for the rollout under way, the same on every rank; one that it has already is the next
        ``occurrence``."""
        self._drawn = numbered([*self._drawn, *self._reader.take(count)])
        return self._drawn[-count:]

    @final
    def pool_of(self, source: PromptSource, response_room: int) -> PromptReader:
        """The prompts of ``source`` that leave ``response_room`` tokens of the context, by this module's rule for longer ones."""
        context, limit = self.aligner.text_model.context_length, self.max_prompt_tokens
        if context is not None:
            room = context - response_room
            limit = room if limit is None else min(limit, room)
        return reader_of(source, PromptEncoder(self.aligner.text_model, limit, self.long_prompts), self.seed)

    def _evaluation_loader(self) -> LazyLoader:
        rank, world = self._trainer.global_rank, self._trainer.world_size
        if self._held_out is None:
            raise UserError("There are no held-out prompts: set `eval_prompts` of the data module.")
        if len(self._held_out) < world:
            raise UserError(f"eval_prompts should be at least as many as there are processes, {world}, got {len(self._held_out)}.")
        mine = self._held_out[rank::world]
        count = math.ceil(
            len(self._held_out) // world / self.evaluation_chunk
        )  # as many on every rank: sharded policies need all of them in every forward
        return LazyLoader([mine[i * len(mine) // count : (i + 1) * len(mine) // count] for i in range(count)], self.evaluation_batch)

    def _check_trainer(self) -> None:
        trainer, step = self._trainer, self._step_rows * self._trainer.world_size
        if self.prompts_per_rollout < step or self.prompts_per_rollout % step:
            raise UserError(
                f"prompts_per_rollout should be a multiple of {step} (world size {trainer.world_size} x micro_batch_prompts "
                f"{self.micro_batch_prompts} x accumulate_grad_batches {trainer.accumulate_grad_batches}), got {self.prompts_per_rollout}."
            )
        if self.inner_epochs < 1:
            raise UserError(f"inner_epochs should be at least 1, got {self.inner_epochs}.")
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
            raise UserError("GradientAccumulationScheduler would change which prompts share a step; set trainer.accumulate_grad_batches.")
        if trainer.reload_dataloaders_every_n_epochs != 1:
            raise UserError("Every epoch needs a new rollout: set trainer.reload_dataloaders_every_n_epochs to 1.")
        if self.samples and self.needs.on_policy and (self.inner_epochs > 1 or self.prompts_per_rollout > step):
            raise UserError(
                f"{type(self.aligner).__name__} as configured is right only for samples of exactly the policy being trained, but a "
                f"rollout of {self.prompts_per_rollout} prompts makes {self.inner_epochs * self.prompts_per_rollout // step} optimizer "
                f"steps. Set inner_epochs to 1 and prompts_per_rollout to {step}, or raise accumulate_grad_batches."
            )


def datasets_of(source: PromptSource | None) -> tuple[str, ...]:
    """Names of the datasets that a source mixes; none if it is only one."""
    return tuple(source.sources) if isinstance(source, MixedPrompts) else ()


def _gathered(mine: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Everyone's, on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
