"""Held-out prompts are answered by the policy of the moment, with the same noise, and without a trace in the training."""

import math
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.testing import assert_close

from lit_align.annotators import FunctionAnnotator
from lit_align.data import ListPrompts
from lit_align.generation import CacheSampler
from lit_align.types import Samples, UserError
from tests.tiny import PROMPTS, make_dar, make_data, make_trainer, sgd, vowels
from tests.wheel.harness import Scores, differing, fit, patchy

HELD_OUT: dict[str, Any] = {
    "eval_prompts": ListPrompts(PROMPTS[:5], name="held out"),
    "eval_annotator": FunctionAnnotator(vowels),
    "chunk_prompts": 3,
}
EVERY_ROLLOUT: dict[str, Any] = {"check_val_every_n_epoch": 1, "max_epochs": 4}


class Heard(Callback):
    """Held-out samples, in the order of the evaluations."""

    def __init__(self) -> None:
        self.samples: list[Samples] = []

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *index: int) -> None:
        self.samples.append(batch)

    @property
    def texts(self) -> list[tuple[tuple[str, ...], ...]]:
        return [s.rollouts.texts for s in self.samples]


def test_validation_scores_the_policy_of_the_moment(tiny: str, root: Path) -> None:
    result = fit(root, tiny, trainer=EVERY_ROLLOUT | {"max_epochs": 6}, **HELD_OUT)
    rewards = [metrics["val/reward"] for metrics in result.recorder.metrics]
    (before,) = make_trainer(root).validate(make_dar(tiny), make_data(**HELD_OUT), verbose=False)
    (after,) = make_trainer(root).validate(result.module, make_data(**HELD_OUT), verbose=False)
    assert before["val/kl_reference"] == pytest.approx(0.0, abs=1e-4)
    assert after["val/reward"] == pytest.approx(rewards[-1])
    assert after["val/kl_reference"] == pytest.approx(result.recorder.metrics[-1]["val/kl_reference"], abs=1e-5)
    assert rewards[0] != before["val/reward"], "Lightning asks for the first loader before the first step"
    assert len({before["val/reward"], *rewards}) > 2, "it changes as the policy does"
    assert rewards[-1] > before["val/reward"] + 0.1


def test_the_noise_of_an_evaluation_is_always_the_same(tiny: str, root: Path) -> None:
    heard = Heard()
    fit(
        root,
        tiny,
        module=make_dar(tiny, optimizer=sgd(0.0)),
        callbacks=[heard],
        trainer=EVERY_ROLLOUT,
        eval_responses_per_prompt=2,
        **HELD_OUT,
    )
    assert len(heard.texts) == 2 * 4
    assert heard.texts[:2] == heard.texts[2:4] == heard.texts[4:6] == heard.texts[6:]
    assert len({text for texts in heard.texts[0] for text in texts}) > 3


def test_an_evaluation_leaves_no_trace(tiny_with_dropout: str, root: Path) -> None:
    without = fit(root / "without", tiny_with_dropout, trainer=EVERY_ROLLOUT)
    with_it = fit(root / "with", tiny_with_dropout, trainer=EVERY_ROLLOUT | {"val_check_interval": 1}, **(HELD_OUT | {"chunk_prompts": 32}))
    assert differing(without.state, with_it.state) == []
    assert "val/reward" in with_it.recorder.metrics[-1]
    assert without.recorder.losses == with_it.recorder.losses


def test_held_out_scores_are_averaged_over_valid_responses(tiny: str, root: Path) -> None:
    heard = Heard()
    options = HELD_OUT | {"eval_annotator": Scores(patchy), "eval_responses_per_prompt": 4}
    (result,) = make_trainer(root, callbacks=[heard]).validate(make_dar(tiny), make_data(**options), verbose=False)
    kept = [float(s) for batch in heard.samples if batch.annotation for s in batch.annotation.scores[batch.annotation.valid]]
    assert 0 < len(kept) < 20
    assert result["val/reward"] == pytest.approx(sum(kept) / len(kept))
    silent = options | {"eval_annotator": Scores(lambda prompt, texts: [math.nan] * len(texts))}
    (result,) = make_trainer(root).validate(make_dar(tiny), make_data(**silent), verbose=False)
    assert math.isnan(result["val/reward"])


def test_test_and_predict(tiny: str, root: Path) -> None:
    module, data = make_dar(tiny), make_data(**HELD_OUT, eval_responses_per_prompt=2)
    (tested,) = make_trainer(root).test(module, data, verbose=False)
    assert set(tested) == {"test/reward", "test/response_length", "test/finished", "test/kl_reference"}
    predicted = make_trainer(root).predict(module, data)
    assert predicted is not None
    rows = [row for batch in predicted for row in batch]
    assert [row["prompt"] for row in rows] == PROMPTS[:5]
    assert sum(sum(row["scores"]) for row in rows) / 10 == pytest.approx(tested["test/reward"])
    assert all(len(row["responses"]) == len(row["logps"]) == len(row["finished"]) == 2 for row in rows)
    assert all(logp < 0 for row in rows for logp in row["logps"])


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_without_held_out_prompts_only_fit_works(method: str, tiny: str, root: Path) -> None:
    with pytest.raises(UserError, match="set `eval_prompts`"):
        getattr(make_trainer(root), method)(make_dar(tiny), make_data())


def test_without_an_evaluation_annotator_lengths_and_divergence_are_reported(tiny: str, root: Path) -> None:
    (result,) = make_trainer(root).validate(make_dar(tiny), make_data(eval_prompts=HELD_OUT["eval_prompts"]), verbose=False)
    assert set(result) == {"val/response_length", "val/finished", "val/kl_reference"}


def test_demonstrations_have_a_loss(tiny: str, root: Path) -> None:
    from tests.wheel.test_normaliser import demonstrations, response_logp, sft

    data = demonstrations(root, 3)
    data.eval_prompts = data.prompts
    module = sft(tiny)
    (result,) = make_trainer(root).validate(module, data, verbose=False)
    policy, rows = module.policy, [data.prompts[i] for i in range(8)]
    logps = [response_logp(policy, policy.encode(row), policy.encode_response(row, row.reference or "")) for row in rows]  # pyright: ignore[reportArgumentType]
    total = sum(float(p.detach().sum()) for p in logps)
    assert_close(result["val/loss"], -total / sum(len(p) for p in logps), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="OnlineDataModule"):
        make_trainer(root).predict(module, data)


def test_held_out_prompts_may_have_a_sampler_of_their_own(tiny: str, root: Path) -> None:
    greedy, drawn = (make_data(**HELD_OUT, eval_responses_per_prompt=2, eval_sampler=s) for s in (CacheSampler(8, greedy=True), None))
    answers = []
    for data in (greedy, drawn):
        heard = Heard()
        make_trainer(root, callbacks=[heard]).validate(make_dar(tiny), data, verbose=False)
        answers.append(heard.texts)
    assert all(first == second for chunk in answers[0] for first, second in chunk), "the likeliest answer twice"
    assert any(first != second for chunk in answers[1] for first, second in chunk)
