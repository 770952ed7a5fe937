"""Seven defects that a library of this kind has shipped: each has a test here that would catch it.

1. The trainer of online DPO can't evaluate: it has no prediction step.
2. Logged KL, entropy and regularised reward include padding; the loss does not.
3. A tie labels the first response as chosen, at full weight, and two identical responses are a pair.
4. Two responses per prompt are hard-coded: no best-versus-worst of K, no soft label or margin, no SLiC.
5. The logged share of responses that ended is that of one rank, its siblings are everyone's.
6. Prompts above a length are cut without a word.
7. A run that is resumed between two samplings draws other responses.

``TESTS`` names those that are elsewhere, beside what they are about; the rest follows.
"""

import ast
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_align.algorithms import DPO, GRPO, AlignmentModule, AllPairs, BestVersusWorst, Pairing
from lit_align.annotators import FunctionAnnotator
from lit_align.data import ListPrompts
from lit_align.models import CausalPolicy
from lit_align.types import Samples
from tests.algorithms.cases import Case
from tests.algorithms.drive import Driver, columns
from tests.tiny import PROMPTS, adamw, make_data, make_trainer, vowels, write_tiny
from tests.wheel.harness import Fit, differing, fit

ROOT = Path(__file__).parents[2]
HERE = "tests/algorithms/test_defects.py"
COMMON = "tests/algorithms/test_common.py"
TESTS = {
    1: [f"{HERE}::test_online_dpo_evaluates", "tests/wheel/test_evaluation.py::test_test_and_predict"],
    2: [f"{HERE}::test_held_out_divergence_is_of_the_responses_own_tokens", f"{COMMON}::test_padding_is_not_read"],
    3: [
        f"{HERE}::test_ties_and_twins_are_no_pair",
        f"{COMMON}::test_siblings_of_equal_score",
        f"{COMMON}::test_siblings_of_the_same_tokens",
    ],
    4: [f"{HERE}::test_pairs_of_many", f"{COMMON}::test_micro_batches_add_up"],
    5: [
        "tests/algorithms/test_common_ranks.py::test_two_processes_take_the_steps_of_one",
        "tests/wheel/test_ranks.py::test_samples_and_losses_are_those_of_one_process",
    ],
    6: ["tests/data/test_pool.py::test_longer_prompts_are_dropped_counted_and_told"],
    7: [f"{HERE}::test_resumed_between_two_samplings", "tests/wheel/test_resume.py::test_resumed_at_any_micro_batch"],
}
INNER: dict[str, Any] = {"micro_batch_prompts": 2, "inner_epochs": 2, "chunk_prompts": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("model"), dropout=0.2)


@pytest.mark.parametrize("defect", range(1, 8))
def test_every_defect_has_its_tests(defect: int) -> None:
    for test in TESTS[defect]:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


class Heard(Callback):
    """Held-out samples of an evaluation."""

    def __init__(self) -> None:
        self.samples: list[Samples] = []

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *index: int) -> None:
        self.samples.append(batch)


HELD_OUT: dict[str, Any] = {"eval_prompts": ListPrompts(PROMPTS[:5], name="held out"), "eval_responses_per_prompt": 2}


@pytest.mark.parametrize("method", ["validate", "test"])
def test_online_dpo_evaluates(method: str, model: str, tmp_path: Path) -> None:
    module = DPO(CausalPolicy(model), optimizer=adamw())
    data = make_data(**HELD_OUT, eval_annotator=FunctionAnnotator(vowels))
    trainer = make_trainer(tmp_path, max_epochs=1, check_val_every_n_epoch=1)
    trainer.fit(module, data)
    assert "val/reward" in trainer.callback_metrics
    (result,) = getattr(make_trainer(tmp_path), method)(module, data, verbose=False)
    stage = {"validate": "val", "test": "test"}[method]
    assert set(result) == {f"{stage}/{name}" for name in ("reward", "response_length", "finished", "kl_reference")}
    assert 0 <= result[f"{stage}/reward"] <= 1


def test_held_out_divergence_is_of_the_responses_own_tokens(model: str, tmp_path: Path) -> None:
    """Response by response, without anything beside it."""
    heard, module = Heard(), DPO(CausalPolicy(model), optimizer=adamw(2e-3))
    make_trainer(tmp_path).fit(module, make_data())
    (result,) = make_trainer(tmp_path, callbacks=[heard]).validate(module, make_data(**HELD_OUT, chunk_prompts=5), verbose=False)
    (rollouts,) = (samples.rollouts for samples in heard.samples)
    assert len({int(n) for n in rollouts.response_mask.sum(-1).flatten()}) > 2, "some end before others"
    reference, gains = module.policy.make_reference().policy, []
    for b in range(5):
        for k in range(2):
            one = rollouts.rows([b]).map_tensors(lambda x, axes, k=k: x[:, k : k + 1] if axes[:2] == "BK" else x)
            length = int(one.response_mask.sum())
            one = one.map_tensors(lambda x, axes, n=length: x[..., :n] if axes.endswith("T") else x)
            with module.policy.inference():
                gains.append(float((module.policy(one).token_logps - reference(one).token_logps).sum()))
    assert abs(result["val/kl_reference"]) > 0.05
    assert result["val/kl_reference"] == pytest.approx(sum(gains) / 10, abs=1e-4)


@pytest.mark.parametrize("pairing", [BestVersusWorst(), BestVersusWorst(soft=True), AllPairs(), AllPairs(soft=True)], ids=str)
@pytest.mark.parametrize("judged", [False, True])
def test_ties_and_twins_are_no_pair(pairing: Pairing, judged: bool, model: str, tmp_path: Path) -> None:
    case = Case(DPO, judged=judged)
    batch = Driver(model, tmp_path).batch(case, k=2)
    assert int((~pairing.pairs(batch).isnan()).sum()) == 4
    even = None if batch.preferences is None else batch.preferences * 0 + 0.5
    tied = replace(batch, scores=torch.ones(4, 2), preferences=even)
    twins = replace(columns(batch, [0, 0]), scores=batch.scores, preferences=batch.preferences)
    assert pairing.pairs(tied).isnan().all()
    assert pairing.pairs(twins).isnan().all()


SURE = 1 / (1 + math.exp(-2.0))  # of a difference of 2


@pytest.mark.parametrize(
    ("pairing", "judged", "expected"),
    [
        (BestVersusWorst(), False, {(2, 1): 1.0}),
        (BestVersusWorst(soft=True), False, {(2, 1): 1 / (1 + math.exp(-3.0))}),
        (BestVersusWorst(soft=True), True, {(2, 1): 0.9}),
        (AllPairs(), False, {(2, 1): 1.0, (2, 0): 1.0, (0, 1): 1.0, (2, 3): 1.0, (3, 1): 1.0}),
        (
            AllPairs(soft=True),
            False,
            {
                (2, 1): 1 / (1 + math.exp(-3.0)),
                (2, 0): SURE,
                (2, 3): SURE,
                (0, 1): 1 / (1 + math.exp(-1.0)),
                (3, 1): 1 / (1 + math.exp(-1.0)),
            },
        ),
        (AllPairs(), True, {(2, 1): 1.0, (0, 2): 1.0}),
        (AllPairs(soft=True), True, {(2, 1): 0.9, (0, 2): 0.6}),
    ],
)
def test_pairs_of_many(pairing: Pairing, judged: bool, expected: dict[tuple[int, int], float], model: str, tmp_path: Path) -> None:
    """Four responses, of which 0 and 3 are equal by score; the judge compared 2 with 1 and with 0, and saw no difference in 1 and 3."""
    preferences = torch.full((1, 4, 4), math.nan)
    for (i, j), sure in {(2, 1): 0.9, (0, 2): 0.6, (1, 3): 0.5}.items():
        preferences[0, i, j], preferences[0, j, i] = sure, 1 - sure
    batch = Driver(model, tmp_path).batch(Case(DPO), prompts=1)
    scores = torch.tensor([[1.0, 0.0, 3.0, 1.0]])
    pairs = pairing.pairs(replace(batch, scores=scores, preferences=preferences if judged else None))[0]
    found = {(i, j): float(pairs[i, j]) for i, j in (~pairs.isnan()).nonzero().tolist()}
    assert found == pytest.approx(expected)


def make(kind: type[AlignmentModule], model: str) -> AlignmentModule:
    return kind(CausalPolicy(model), optimizer=adamw())  # pyright: ignore[reportCallIssue]


class Saves(Callback):
    """A checkpoint after every micro-batch of the second rollout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.folder / f"{batch_idx}.ckpt")


@pytest.fixture(scope="module", params=[DPO, GRPO])
def whole(request: pytest.FixtureRequest, model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[type[AlignmentModule], Path, Fit]:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    made, trainer = make(request.param, model), {"max_epochs": 3, "accumulate_grad_batches": 2}
    return request.param, folder, fit(folder / "whole", model, module=made, callbacks=[Saves(folder)], trainer=trainer, **INNER)


@pytest.mark.parametrize("at", [0, 1, 4, 6])
def test_resumed_between_two_samplings(at: int, whole: tuple[type[AlignmentModule], Path, Fit], model: str, tmp_path: Path) -> None:
    """In the first and in the second pass over a rollout, after an optimizer step and in the middle of one: to the bit."""
    kind, folder, result = whole
    trainer = {"max_epochs": 3, "accumulate_grad_batches": 2}
    resumed = fit(tmp_path, model, module=make(kind, model), trainer=trainer, ckpt_path=folder / f"{at}.ckpt", **INNER)
    assert differing(result.state, resumed.state) == []
    assert [r.texts for r in resumed.recorder.rollouts] == [r.texts for r in result.recorder.rollouts[2:]]
    assert resumed.recorder.losses == result.recorder.losses[-len(resumed.recorder.losses) :]
