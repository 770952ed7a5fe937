"""A judge that can be computed by hand, and runs that it watches."""

import math
import random
from typing import Any, final

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from callbacks import JudgeEvaluation
from callbacks.judge_evaluation import beside
from lit_align.algorithms import SFT, PreviousRound
from lit_align.annotators import FunctionAnnotator
from lit_align.data import DemonstrationDataModule, ListPrompts
from lit_align.data.pool import PromptPool
from lit_align.evaluation.win_rate import win_rate
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import Annotation, Annotator, IndexedPrompts, Prompt, Rollouts, Stream, UserError
from tests.callbacks.doubles import fit, make_rollout
from tests.tiny import PROMPTS, adamw, make_dar, make_data, vowels

HELD_OUT = ListPrompts(["cab", "fig", "jade", "hi", "bee", "dig a"])
INTERVAL = {"judge/win_rate_low", "judge/win_rate_high"}


@final
class Judge(Annotator):
    """`vowels`, with a memory; what begins with a letter of ``mute`` it can't score."""

    def __init__(self, mute: str = "") -> None:
        self.mute = mute
        self.heard: list[Rollouts] = []
        self.awake: list[bool] = []

    def setup(self, device: torch.device) -> None:
        self.awake.append(True)

    def close(self) -> None:
        self.awake.append(False)

    def annotate(self, rollouts: Rollouts) -> Annotation:
        self.heard.append(rollouts)
        random.random(), torch.rand(3)  # a judge may draw
        scores = torch.tensor([vowels(prompt, texts) for prompt, texts in zip(rollouts.prompts, rollouts.texts, strict=True)])
        valid = torch.tensor([[not text or text[0] not in self.mute for text in texts] for texts in rollouts.texts])
        return Annotation(scores=scores.where(valid, math.nan), valid=valid)


def lengths(prompt: Prompt, texts: Any) -> list[float]:
    return [float(len(text)) for text in texts]


def answers(policy: Any, prompts: ListPrompts = HELD_OUT, k: int = 2) -> Rollouts:
    """What ``policy`` says to them under the judge's noise."""
    with policy.inference():
        return CacheSampler(max_new_tokens=8).sample(
            policy, PromptPool(prompts, policy, None, "drop", 0).in_order(), k, Stream(0, "judge", 0)
        )


def judged(curves: dict[str, dict[int, float]]) -> dict[int, dict[str, float]]:
    xs = sorted({x for name, curve in curves.items() if name.startswith("judge/") for x in curve})
    return {x: {name: curve[x] for name, curve in curves.items() if name.startswith("judge/")} for x in xs}


def test_the_policy_rises_above_the_reference_from_exactly_a_half(root, model):
    _, curves = fit(root, model, [JudgeEvaluation(judge := Judge(), HELD_OUT, every_n_rollouts=2, responses_per_prompt=2)], max_epochs=5)
    found = judged(curves)
    assert list(found) == [0, 2, 4, 5]  # before, every second, at the end
    assert found[0]["judge/win_rate"] == 0.5
    assert found[0]["judge/score"] == found[0]["judge/reference_score"]
    assert found[0]["judge/kl_reference"] == pytest.approx(0.0, abs=1e-5)
    assert found[5]["judge/win_rate"] > 0.7
    assert found[5]["judge/win_rate_low"] < found[5]["judge/win_rate"] <= found[5]["judge/win_rate_high"]
    assert found[5]["judge/score"] > found[0]["judge/score"] + 0.1
    assert {metrics["judge/reference_score"] for metrics in found.values()} == {found[0]["judge/score"]}  # sampled once
    assert found[5]["judge/kl_reference"] > 0.1
    assert judge.awake == [True, False]


def test_every_number_is_the_one_computed_by_hand(root, model):
    evaluation = JudgeEvaluation(Judge(mute="fgj"), HELD_OUT, responses_per_prompt=2, chunk_prompts=4)
    trainer, curves = fit(root, model, [evaluation], max_epochs=2)
    policy, reference = trainer.lightning_module.policy, trainer.lightning_module.reference
    mine, rivals = answers(policy), answers(reference.policy)
    spoken = [Judge(mute="fgj").annotate(said) for said in (mine, rivals)]
    valid = spoken[0].valid & spoken[1].valid
    assert (spoken[0].valid & ~spoken[1].valid).any()
    assert (spoken[1].valid & ~spoken[0].valid).any()
    assert valid.any()
    rate = win_rate(spoken[0].scores, spoken[1].scores, valid)
    kl = mine.sampling_logps.sum(-1) - reference.policy(mine).token_logps.where(mine.response_mask, 0.0).sum(-1)
    assert judged(curves)[2] == pytest.approx(
        {
            "judge/win_rate": rate.value,
            "judge/win_rate_low": rate.low,
            "judge/win_rate_high": rate.high,
            "judge/score": float(spoken[0].scores[valid].mean()),
            "judge/reference_score": float(spoken[1].scores[valid].mean()),
            "judge/invalid": float((~valid).sum()),
            "judge/response_length": float(mine.response_mask.sum(-1).float().mean()),
            "judge/finished": float(mine.finished.float().mean()),
            "judge/kl_reference": float(kl.mean()),
        },
        abs=1e-5,
    )


def test_the_judge_sees_both_sides_at_once_the_policy_first(root, model):
    fit(root, model, [JudgeEvaluation(judge := Judge(), HELD_OUT, responses_per_prompt=2)], max_epochs=2)
    before, after = judge.heard
    assert [len(texts) for texts in after.texts] == [4] * len(HELD_OUT)
    assert all(texts[:2] == texts[2:] for texts in before.texts)
    assert [texts[2:] for texts in after.texts] == [texts[2:] for texts in before.texts]
    assert after.texts != before.texts
    assert [after.response_mask.shape[1], after.sampling_logps.shape[1], after.finished.shape[1]] == [4, 4, 4]


def test_the_opponent_is_the_policy_before_training_also_where_the_reference_moves(root, model):
    def moving():
        return make_dar(model, anchor=PreviousRound(1))

    fit(root, model, [], module=moving(), max_epochs=2)[0].save_checkpoint(root / "two.ckpt")
    evaluation = JudgeEvaluation(judge := Judge(), HELD_OUT, responses_per_prompt=2)  # it comes when the reference has moved
    trainer, _ = fit(root, model, [evaluation], module=moving(), max_epochs=3, ckpt_path=root / "two.ckpt")
    initial = answers(CausalPolicy(model)).texts
    assert tuple(texts[2:] for texts in judge.heard[-1].texts) == initial
    assert answers(trainer.lightning_module.reference.policy).texts != initial


def test_responses_of_two_lengths_stand_beside_each_other():
    short = make_rollout(torch.zeros(1, 1), logps=torch.full((1, 1, 1), -1.0), texts=[["a"]])[0]
    long = make_rollout(torch.zeros(1, 2), logps=torch.full((1, 2, 3), -2.0), texts=[["b", "c"]])[0]
    for left, right, lengths in ((short, long, [1, 3, 3]), (long, short, [3, 3, 1])):
        both = beside(left, right)
        assert both.response_mask.sum(-1).tolist() == [lengths]
        assert both.response_mask[0, 0, : lengths[0]].all()
        assert both.sampling_logps.sum(-1).tolist() == [[-1.0 if n == 1 else -6.0 for n in lengths]]
        assert both.texts == (left.texts[0] + right.texts[0],)
        assert both.prompts == left.prompts


def test_the_best_checkpoint_is_the_one_that_the_judge_liked(root, model):
    look = {"monitor": "judge/win_rate", "mode": "max", "every_n_epochs": 2, "save_on_train_epoch_end": True}
    keep = ModelCheckpoint(root / "kept", "{epoch}", save_weights_only=True, **look)
    evaluation = JudgeEvaluation(Judge(), ListPrompts(PROMPTS), every_n_rollouts=2)  # listed second: ModelCheckpoint looks last anyway
    _, curves = fit(root, model, [keep, evaluation], max_epochs=4, enable_checkpointing=True)
    rates = curves["judge/win_rate"]
    best = max((2, 4), key=rates.__getitem__)
    assert rates[2] != rates[4]
    assert float(keep.best_model_score) == pytest.approx(rates[best])
    module = make_dar(model)
    module.load_state_dict(torch.load(keep.best_model_path, weights_only=True)["state_dict"])
    said = answers(module.policy, ListPrompts(PROMPTS), 1)
    scores = torch.tensor([vowels(prompt, texts) for prompt, texts in zip(said.prompts, said.texts, strict=True)])
    assert float(scores.mean()) == pytest.approx(curves["judge/score"][best])


@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 6}])
def test_the_last_checkpoint_has_its_own_verdict(root, model, limits):
    look = {"monitor": "judge/win_rate", "mode": "max", "every_n_epochs": 3, "save_on_train_epoch_end": True}
    keep = ModelCheckpoint(root / "kept", save_weights_only=True, **look)
    evaluation = JudgeEvaluation(Judge(), ListPrompts(PROMPTS), every_n_rollouts=2)
    _, curves = fit(root, model, [keep, evaluation], enable_checkpointing=True, **limits)
    assert curves["judge/win_rate"][3] != curves["judge/win_rate"][2]
    assert float(keep.best_model_score) == pytest.approx(curves["judge/win_rate"][3])


def test_early_stopping_can_watch_between_two_evaluations(root, model):
    stopper = EarlyStopping("judge/win_rate", mode="max", patience=1, check_on_train_epoch_end=True)
    trainer, curves = fit(root, model, [stopper, JudgeEvaluation(Judge(), HELD_OUT, every_n_rollouts=9)], max_epochs=8)
    assert trainer.current_epoch == 2  # 0.5, then 0.5 again
    assert list(judged(curves)) == [0, 2]  # an end that nobody saw coming is judged, too


def test_a_rollout_that_is_not_trained_on_is_not_judged(root, model):
    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    _, curves = fit(root, model, [Stop(), JudgeEvaluation(judge := Judge(), HELD_OUT, every_n_rollouts=3)], max_epochs=8)
    assert list(judged(curves)) == [0, 2]
    assert len(judge.heard) == 2


def test_chunks_do_not_matter(root, model):
    found = []
    for size in (1, 4, 32):
        _, curves = fit(root / str(size), model, [JudgeEvaluation(Judge(), HELD_OUT, chunk_prompts=size)], max_epochs=1)
        found.append(judged(curves)[1])
    assert found[0] == pytest.approx(found[2], abs=1e-5)
    assert found[1] == pytest.approx(found[2], abs=1e-5)


def test_a_resumed_run_knows_the_last_verdict_and_the_same_rival(root, model):
    first, curves = fit(root, model, [JudgeEvaluation(Judge(), HELD_OUT, every_n_rollouts=2)], max_epochs=2)
    first.save_checkpoint(root / "first.ckpt")
    seen: list[float] = []

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(float(trainer.callback_metrics["judge/win_rate"]))

    evaluation = JudgeEvaluation(judge := Judge(), HELD_OUT, every_n_rollouts=2)
    _, later = fit(root, model, [evaluation, Look()], max_epochs=4, ckpt_path=root / "first.ckpt")
    assert seen == [curves["judge/win_rate"][2]] != [0.5]
    assert list(judged(later)) == [4]
    assert len(judge.heard) == 1
    assert later["judge/reference_score"][4] == curves["judge/reference_score"][0]
    whole = fit(root / "whole", model, [JudgeEvaluation(Judge(), HELD_OUT, every_n_rollouts=2)], max_epochs=4)[1]
    assert judged(later)[4] == judged(whole)[4]


def test_prompts_that_leave_no_room_are_dropped_as_for_training(root, model):
    prompts, data = ListPrompts(["a", "abc", "abcdefghij"]), make_data(max_prompt_tokens=3, prompts=ListPrompts(["a", "b"]))
    with pytest.warns(UserWarning, match="1 of 3 prompts"):
        fit(root, model, [JudgeEvaluation(judge := Judge(), prompts)], max_epochs=1, data=data)
    assert [prompt.content for prompt in judge.heard[0].prompts] == ["a", "abc"]
    sampler = CacheSampler(max_new_tokens=61)  # of a context of 64
    with pytest.warns(UserWarning, match="1 of 3 prompts .* 3 tokens"):
        fit(root, model, [JudgeEvaluation(judge := Judge(), prompts, sampler)], max_epochs=1)
    assert [prompt.content for prompt in judge.heard[0].prompts] == ["a", "abc"]


def test_a_judge_that_says_nothing_gives_no_win_rate(root, model):
    with pytest.warns(UserWarning, match="Judge scored none of 6 pairs"):
        trainer, _ = fit(root, model, [JudgeEvaluation(Judge(mute="abcdefghij "), HELD_OUT)], max_epochs=1)
    metrics = trainer.callback_metrics
    assert not metrics.keys() & (INTERVAL | {"judge/win_rate", "judge/score", "judge/reference_score"})
    assert metrics["judge/invalid"] == 6


@pytest.mark.parametrize(("judge", "told"), [(FunctionAnnotator(vowels), True), (FunctionAnnotator(lengths), False), (Judge(), False)])
def test_it_is_said_that_the_policy_is_trained_for_its_judge(root, model, caplog, judge, told):
    caplog.set_level("INFO")
    fit(root, model, [JudgeEvaluation(judge, HELD_OUT)], max_epochs=1)
    assert ("the policy is trained for this very judge, tests.tiny.vowels, and will please it" in caplog.text) == told


@final
class Demonstrations(IndexedPrompts):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Prompt:
        return Prompt(index, "abcd"[index], reference="e")


def test_without_a_sampler_to_borrow_it_asks_for_one(root, model):
    data = DemonstrationDataModule(Demonstrations(), prompts_per_rollout=2, micro_batch_prompts=2, max_response_tokens=8)
    with pytest.raises(UserError, match="DemonstrationDataModule has none to lend"):
        fit(root, model, [JudgeEvaluation(Judge(), HELD_OUT)], max_epochs=1, module=SFT(CausalPolicy(model)), data=data)
    evaluation = JudgeEvaluation(Judge(), HELD_OUT, CacheSampler(max_new_tokens=8))
    _, curves = fit(root, model, [evaluation], max_epochs=1, module=SFT(CausalPolicy(model), adamw()), data=data)
    assert curves["judge/win_rate"][0] == 0.5
    assert curves["judge/kl_reference"][1] > 1e-3


@pytest.mark.parametrize("option", ["every_n_rollouts", "responses_per_prompt", "chunk_prompts"])
def test_it_counts_from_one(option):
    with pytest.raises(UserError, match=f"{option} = 0"):
        JudgeEvaluation(Judge(), HELD_OUT, **{option: 0})
