"""What two processes do, run once as a script: ``python -m tests.wheel.ranks MODEL WITH_DROPOUT FOLDER`` with the environment of a rank.

Every scenario writes what this rank saw; the test compares it with one process.
"""

import math
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from callbacks import Histograms, JudgeEvaluation, KLMonitor, SampleTable, Throughput, WeightClipping
from lit_align.algorithms import DAR, DPO, MovingAverage, RunningMax
from lit_align.annotators import FunctionAnnotator, Refreshed, RewardModelAnnotator
from lit_align.data import Budget, ListPrompts, OnlineDataModule
from lit_align.generation import Bfloat16Sampler, CacheSampler
from lit_align.models import CausalPolicy, LoRA
from lit_align.types import Prompt, UserError
from tests.data.test_preferences import data_of, many, moving
from tests.tiny import PROMPTS, adamw, make_dar, make_data, make_trainer, vowels
from tests.wheel.harness import Fit, PlantedGradient, Poison, Recorder, Scores, Weights, differing, fit, patchy
from tests.wheel.test_budget import PRICES, asks
from tests.wheel.test_dynamic import some_flat
from tests.wheel.test_mixed import make_sail
from tests.wheel.test_mixed import mixed as mixture_of_rows
from tests.wheel.test_normaliser import dar, demonstrations, sft
from tests.wheel.test_readings import held_out, mixture
from tests.wheel.test_resume import Saves, everything

HELD_OUT: dict[str, Any] = {"eval_prompts": ListPrompts(PROMPTS[:9], name="held out"), "eval_responses_per_prompt": 4, "chunk_prompts": 4}
FIVE_STEPS: dict[str, Any] = {"max_epochs": 3}
SHARDED: dict[str, Any] = {"max_epochs": 2, "gradient_clip_val": 1.0}
FIXED: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 2, "check_val_every_n_epoch": 2}
LONG: dict[str, Any] = {"sampler": CacheSampler(max_new_tokens=40), "chunk_prompts": 1, "responses_per_prompt": 2}
PARTLY_FRESH: dict[str, Any] = {"prompts_per_rollout": 4, "relabel": 0.0, "fresh_self": 0.15, "fresh_annotated": 0.15}
SEARCH: dict[str, Any] = {"max_extra_prompts": 4, "chunk_prompts": 1}
RESUME: dict[str, Any] = {"micro_batch_prompts": 1, "inner_epochs": 2, "chunk_prompts": 2}


@dataclass
class Ranks:
    """Where a rank does its part, and what it saw."""

    model: str
    with_dropout: str
    folder: Path
    rank: int

    def fit(self, name: str, trainer: dict[str, Any] | None = None, **options: Any) -> Fit:
        return fit(self.folder / name, self.model, trainer=self.two | (trainer or {}), **options)

    @property
    def two(self) -> dict[str, Any]:
        return {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2}

    def normalisers(self) -> dict[str, Any]:
        weights = {}
        for micro, accumulate in ((4, 1), (2, 2)):
            trainer = {"max_epochs": 1, "accumulate_grad_batches": accumulate}
            by_response = self.fit(f"dar{micro}", trainer, module=dar(self.model), micro_batch_prompts=micro, annotator=Scores(patchy))
            data = demonstrations(self.folder / f"answers{self.rank}", micro)
            by_token = self.fit(f"sft{micro}", trainer, module=sft(self.model), data=data)
            weights[f"dar {micro}x{accumulate}"] = by_response.state
            weights[f"sft {micro}x{accumulate}"] = by_token.state
            weights[f"valid {micro}x{accumulate}"] = by_response.recorder.batches[0].valid.sum()
        return weights

    def order(self) -> dict[str, Any]:
        steps = {}
        for micro, accumulate in ((2, 1), (1, 2)):
            trainer = {"accumulate_grad_batches": accumulate}
            result = self.fit(f"order{micro}", trainer, micro_batch_prompts=micro, prompts_per_rollout=16, inner_epochs=3)
            steps[f"{micro}x{accumulate}"] = result.recorder.steps(accumulate)
        return steps

    def losses(self) -> dict[str, Any]:
        result = self.fit("losses", FIVE_STEPS, module=mild(self.model), micro_batch_prompts=2)
        return {
            "losses": result.recorder.losses,
            "texts": texts(result.recorder),
            "metrics": result.recorder.metrics,
            "state": result.state,
        }

    def resumed(self) -> dict[str, Any]:
        saves = Saves(self.folder)
        trainer = {"max_epochs": 3, "accumulate_grad_batches": 2}
        whole = self.fit("whole", trainer, module=everything(self.with_dropout), callbacks=[saves], **RESUME)
        halfway = self.fit("half", trainer | {"max_epochs": 1}, module=everything(self.with_dropout), **RESUME)
        halfway.trainer.save_checkpoint(self.folder / "end.ckpt")
        found = {}
        for name in ("end", "after-2", "after-5"):
            rest = self.fit(f"rest-{name}", trainer, module=everything(self.with_dropout), ckpt_path=self.folder / f"{name}.ckpt", **RESUME)
            found[name] = differing(whole.state, rest.state)
        return found | {"steps": whole.trainer.global_step}

    def adapter(self) -> dict[str, Any]:
        result = self.fit("adapter", FIVE_STEPS, module=adapted(self.model), micro_batch_prompts=2)
        return {"losses": result.recorder.losses, "state": result.state}

    def anchored(self) -> dict[str, Any]:
        """A reference that follows an adapter, whose random factors each rank drew for itself."""
        torch.manual_seed(self.rank)
        policy = CausalPolicy(self.model, lora=LoRA(rank=4, alpha=8.0))
        module = DPO(policy, anchor=MovingAverage(0.5), optimizer=adamw())
        return {"state": self.fit("anchored", {"max_epochs": 3}, module=module, micro_batch_prompts=2).state}

    def sharded(self) -> dict[str, Any]:
        """FSDP2, with responses whose lengths differ between the ranks; then stopped after one rollout of two, and resumed."""
        whole = self.fit("sharded", SHARDED | self.mesh, module=mild(self.model), callbacks=watching(), micro_batch_prompts=2, **LONG)
        kinds = {type(parameter).__name__ for parameter in whole.module.policy.parameters()}
        weights = {name: weight.full_tensor() for name, weight in whole.module.policy.named_parameters()}  # pyright: ignore
        half = self.fit("sharded-half", SHARDED | {"max_epochs": 1} | self.mesh, module=mild(self.model), micro_batch_prompts=2, **LONG)
        file = self.folder / "sharded.ckpt"
        half.trainer.save_checkpoint(file)
        rest = self.fit("sharded-rest", SHARDED | self.mesh, module=mild(self.model), ckpt_path=file, micro_batch_prompts=2, **LONG)
        chunks = [rollouts.response_mask.sum(-1).amax(-1).tolist() for rollouts in whole.recorder.rollouts]
        found = {"losses": whole.recorder.losses, "rest": rest.recorder.losses, "kinds": kinds, "weights": weights}
        return found | {"metrics": whole.recorder.metrics[-1], "chunks": chunks, "refused": self.sharded_adapter()}

    def sharded_adapter(self) -> str:
        with pytest.raises(UserError) as error:
            self.fit("sharded-adapter", SHARDED | self.mesh, module=adapted(self.model), micro_batch_prompts=2)
        return str(error.value)

    def rounded(self) -> dict[str, Any]:
        """A copy in bfloat16 on each rank draws, of weights that are whole or sharded."""
        found = {}
        for name, trainer in (("ddp", {"max_epochs": 2}), ("fsdp2", SHARDED | self.mesh)):
            options = {"sampler": Bfloat16Sampler(max_new_tokens=8), "micro_batch_prompts": 2}
            result = self.fit(f"rounded-{name}", trainer, module=dar(self.model), **options)
            found[name] = {"metrics": result.recorder.metrics, "texts": texts(result.recorder)}
        return found

    @property
    def mesh(self) -> dict[str, Any]:
        sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
        return {"strategy": ModelParallelStrategy(**sizes, save_distributed_checkpoint=False, process_group_backend="gloo"), "devices": 2}

    def one_bad_rank(self) -> dict[str, Any]:
        weights = Weights()
        trainer = {"max_epochs": 1, "accumulate_grad_batches": 2}
        result = self.fit("bad", trainer, callbacks=[Poison((0,), ranks=(1,)), weights], micro_batch_prompts=1)
        return {
            "skipped": differing(weights.seen[0], weights.seen[1]),
            "taken": differing(weights.seen[1], weights.seen[2]),
            "state": result.state,
        }

    def one_bad_gradient(self) -> dict[str, Any]:
        weights = Weights()
        result = self.fit("gradient", {"max_epochs": 1}, callbacks=[PlantedGradient(0, ranks=(1,)), weights], micro_batch_prompts=2)
        return {
            "skipped": differing(weights.seen[0], weights.seen[1]),
            "taken": differing(weights.seen[1], weights.seen[2]),
            "state": result.state,
        }

    def one_silent_rank(self) -> dict[str, Any]:
        """The second rank's annotator has no answer to anything, the first one's has."""
        silent = Scores(lambda prompt, texts: [math.nan] * len(texts) if self.rank else vowels(prompt, texts))
        result = self.fit("silent", {"max_epochs": 1}, annotator=silent, micro_batch_prompts=2)
        return {"state": result.state, "metrics": result.recorder.metrics[0], "skipped": int(result.module.skipped_steps)}

    def evaluation(self) -> dict[str, Any]:
        def silent_on_the_second(prompt: Prompt, responses: Sequence[str]) -> list[float]:
            return [math.nan] * len(responses) if self.rank else vowels(prompt, responses)

        found = {}
        for name, function in (("shared", patchy), ("silent", silent_on_the_second)):
            trainer = make_trainer(self.folder / name, **self.two)
            found[name] = trainer.validate(make_dar(self.model), make_data(**HELD_OUT, eval_annotator=Scores(function)), verbose=False)[0]
        options = {"module": mild(self.model), "eval_annotator": Scores(patchy)} | HELD_OUT
        fitted = self.fit("evaluated", {"max_epochs": 1, "check_val_every_n_epoch": 1}, micro_batch_prompts=2, **options)
        return found | {"fitted": fitted.recorder.metrics[0], "state": fitted.state}

    def mixed(self) -> dict[str, Any]:
        """One dataset in five rows or so, and one held-out prompt: not on every rank in every rollout."""
        result = self.fit(
            "mixed", FIVE_STEPS, module=mild(self.model), micro_batch_prompts=2, prompts=mixture(self.folder / f"rank-{self.rank}")
        )
        trainer = make_trainer(self.folder / "mixed", **self.two)
        data = make_data(eval_prompts=held_out(), eval_annotator=Scores())
        return {
            "texts": texts(result.recorder),
            "metrics": result.recorder.metrics,
            "evaluation": trainer.validate(make_dar(self.model), data, verbose=False)[0],
            "rare": [sum(p.dataset == "rare" for p in rollouts.prompts) for rollouts in result.recorder.rollouts],
        }

    def fixed(self) -> dict[str, Any]:
        """Lists of two to four answers, so that the ranks differ in K; measured before and after."""
        trainer = make_trainer(self.folder / "fixed", **self.two)
        before = trainer.validate(moving(self.model), data_of(many(), many()[:7], each=8, micro=2), verbose=False)[0]
        result = self.fit("fixed", FIXED, module=moving(self.model), data=data_of(many(), many()[:7], each=8, micro=2))
        return {"before": before, "losses": result.recorder.losses, "metrics": result.recorder.metrics[-1], "state": result.state}

    def partly_fresh(self) -> dict[str, Any]:
        """Four rows to a rollout, so few of them fresh that a rank may have none; callbacks compare ranks all the same."""
        data = mixture_of_rows(micro_batch_prompts=2, **PARTLY_FRESH)
        result = self.fit("partly-fresh", {"max_epochs": 6}, module=make_sail(self.model), data=data, callbacks=comparing())
        return {"fresh": [len(r.prompts) for r in result.recorder.rollouts], "metrics": result.recorder.metrics, "state": result.state}

    def dynamic(self) -> dict[str, Any]:
        """Where one rank searches longer than the other, in chunks of one."""
        result = self.fit("dynamic", FIVE_STEPS, module=mild(self.model), micro_batch_prompts=2, annotator=Scores(some_flat), **SEARCH)
        return {"texts": texts(result.recorder), "metrics": result.recorder.metrics, "state": result.state}

    def budget(self) -> dict[str, Any]:
        """Where only the second rank pays, the money is gone on both; then with more of it."""
        annotator = Scores(asks if self.rank else vowels)
        options: dict[str, Any] = {"module": mild(self.model), "micro_batch_prompts": 2, "annotator": annotator, "prices": PRICES}
        ended = self.fit("budget", FIVE_STEPS, budget=Budget(money=70.0), **options)
        ended.trainer.save_checkpoint(self.folder / "budget.ckpt")
        options["module"] = mild(self.model)
        rest = self.fit("budget", FIVE_STEPS, budget=Budget(money=1e6), ckpt_path=self.folder / "budget.ckpt", **options)
        whole = self.fit("no-budget", FIVE_STEPS, **(options | {"module": mild(self.model)}))
        return {
            "rollouts": len(ended.recorder.rollouts),
            "metrics": ended.recorder.metrics,
            "differing": differing(whole.state, rest.state),
            "rest": len(rest.recorder.rollouts),
            "spent": rest.data.spent.calls if isinstance(rest.data, OnlineDataModule) else None,
        }

    def refreshed(self) -> dict[str, Any]:
        """A reward model that learns from the samples of both, with some prompts on each rank whose labels it wants."""
        annotator = learner(str(self.folder / "reward"))
        result = self.fit("refreshed", FIVE_STEPS, module=steady(self.model), micro_batch_prompts=2, annotator=annotator)
        found = annotator.state_dict()
        metrics = result.recorder.metrics
        return {
            "weights": found["weights"],
            "known": found["known"],
            "version": found["version"],
            "metrics": metrics,
            "state": result.state,
        }


def learner(path: str) -> Refreshed:
    """Learns of 5 of 8 prompts after every rollout."""
    return Refreshed(RewardModelAnnotator(path), FunctionAnnotator(vowels), 1, prompts_per_rollout=5, optimizer=adamw(1e-3))


def steady(model: str) -> DAR:
    """Whose scale may start anew."""
    return make_dar(model, alpha=0.5, beta=1.5, scale=RunningMax(), optimizer=adamw(3e-3))


def watching() -> list[Callback]:
    """Three prompts in chunks of one: the ranks have two and one."""
    judge = JudgeEvaluation(FunctionAnnotator(vowels), ListPrompts(PROMPTS[:3]), every_n_rollouts=1, chunk_prompts=1)
    return [judge]


def comparing() -> list[Callback]:
    """All that look at a rollout."""
    return [KLMonitor(), WeightClipping(), SampleTable(), Histograms(), Throughput()]


def mild(model: str) -> DAR:
    """Weights near 1, so that losses are a few nats and 1e-5 of one is a lot."""
    return make_dar(model, alpha=0.5, beta=1.5, optimizer=adamw(3e-3))


def adapted(model: str) -> DAR:
    """The same through a LoRA adapter, whose reference is the policy that the strategy wraps, and with gradient checkpointing."""
    module = mild(model)
    torch.manual_seed(0)  # the adapter's first factors
    module.policy = CausalPolicy(model, lora=LoRA(rank=4, alpha=8.0), gradient_checkpointing=True)
    return module


def texts(recorder: Recorder) -> list[dict[int, tuple[str, ...]]]:
    """Responses of every rollout, by prompt."""
    return [{p.id: said for p, said in zip(r.prompts, r.texts, strict=True)} for r in recorder.rollouts]


def main() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", ".*This is said once, see labels/")  # of toy annotators, rightly
    torch.set_num_threads(1)
    ranks = Ranks(*sys.argv[1:3], Path(sys.argv[3]), int(os.environ["LOCAL_RANK"]))
    scenarios = (
        ranks.normalisers,
        ranks.order,
        ranks.losses,
        ranks.adapter,
        ranks.anchored,
        ranks.refreshed,
        ranks.resumed,
        ranks.sharded,
        ranks.rounded,
        ranks.one_bad_rank,
        ranks.one_bad_gradient,
        ranks.one_silent_rank,
        ranks.evaluation,
        ranks.mixed,
        ranks.partly_fresh,
        ranks.fixed,
        ranks.dynamic,
        ranks.budget,
    )
    torch.save({scenario.__name__: scenario() for scenario in scenarios}, ranks.folder / f"rank-{ranks.rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
