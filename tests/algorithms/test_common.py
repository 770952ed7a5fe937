"""What must be true of every algorithm, shown once for all: no result depends on what it must not depend on.

Each case of `cases.CASES` goes through ``prepare`` and ``training_step`` on a tiny Llama, with reference, sampling policy and policy
three different ones. Two processes are in test_common_ranks.py.
"""

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_align import algorithms
from lit_align.algorithms import AlignmentModule, FixedScale, PreferenceModule, SumOver
from lit_align.algorithms.reduction import in_chunks
from lit_align.types import AlignmentBatch, PolicyOutput, UserError
from tests.algorithms.cases import CASES, Case
from tests.algorithms.drive import Driver, Step, assert_same, columns, invalid, padded, rows
from tests.tiny import make_data, make_trainer, write_tiny

EVERY = pytest.mark.parametrize("name", CASES)
PRICE = {"dar regression": {"scale": FixedScale()}, "grpo": {"beta": 1.0, "normaliser": SumOver(1.0)}}
LONE = [name for name, case in CASES.items() if case.lone]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    folder = tmp_path_factory.mktemp("common")
    return Driver(write_tiny(folder / "model"), folder)


@pytest.fixture(scope="module")
def padless(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The same model, whose tokenizer has no pad token and would pad on the right."""
    folder = tmp_path_factory.mktemp("padless")
    model = Path(write_tiny(folder / "model", pad=False))
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "right"}), encoding="utf-8")
    made = Driver(str(model), folder)
    assert made.policy.pad_id in made.policy.eos_ids
    assert made.policy.tokenizer.padding_side == "right"
    return made


def taught(step: Step) -> bool:
    """Whether the step moves anything: a gradient that should vanish does so up to float32."""
    assert step.gradient.isfinite().all()
    assert step.size < 0.01 or step.size > 0.1
    return step.size > 0.1


def test_every_algorithm_is_in_the_suite() -> None:
    exported = {getattr(algorithms, name) for name in algorithms.__all__}
    ours = {x for x in exported if inspect.isclass(x) and issubclass(x, AlignmentModule) and not inspect.isabstract(x)}
    assert ours == {case.kind for case in CASES.values()}


@EVERY
def test_padding_is_not_read(name: str, driver: Driver) -> None:
    case = CASES[name]
    assert_same(driver.plain(name, case), driver.step(case, padded(driver.batch(case)), trim=False))


@EVERY
def test_an_end_of_sequence_that_pads_is_counted_once(name: str, driver: Driver, padless: Driver) -> None:
    case = CASES[name]
    assert_same(driver.plain(name, case), padless.step(case, padless.batch(case)))


@EVERY
def test_being_cut_off_matters_by_the_tokens_alone(name: str, driver: Driver) -> None:
    case = CASES[name]
    batch = driver.batch(case)
    assert len(set(batch.finished.flatten().tolist())) == 2
    assert_same(driver.plain(name, case), driver.step(case, replace(batch, finished=~batch.finished)))


@pytest.mark.parametrize("score", [math.nan, 100.0])
@EVERY
def test_an_invalid_response_is_as_if_it_were_not_there(name: str, score: float, driver: Driver) -> None:
    case = CASES[name]
    batch = driver.batch(case, k=5)
    which = torch.zeros_like(batch.valid)
    which[:, 1] = True
    assert_same(driver.step(case, columns(batch, [0, 2, 3, 4])), driver.step(case, invalid(batch, which, score)))


@EVERY
def test_a_prompt_without_a_valid_response_is_as_if_it_were_not_there(name: str, driver: Driver) -> None:
    case = CASES[name]
    batch = driver.batch(case, prompts=5)
    which = torch.zeros_like(batch.valid)
    which[2] = True
    assert_same(driver.step(case, rows(batch, [0, 1, 3, 4])), driver.step(case, invalid(batch, which)), metrics=False)


@pytest.mark.parametrize("name", [name for name in CASES if name not in LONE])
def test_a_response_that_lost_its_siblings_is_as_if_it_were_not_there(name: str, driver: Driver) -> None:
    case = CASES[name]
    batch = driver.batch(case, prompts=5)
    which = torch.zeros_like(batch.valid)
    which[2, :3] = True
    assert_same(driver.step(case, rows(batch, [0, 1, 3, 4])), driver.step(case, invalid(batch, which)), metrics=False)


@pytest.mark.parametrize("name", ["dpo", "slic", "simpo", "iterative sft"])
def test_what_no_loss_depends_on_need_not_be_read(name: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    case, forward, sizes = CASES[name], AlignmentModule._forward, []

    def counting(module: AlignmentModule, batch: AlignmentBatch) -> PolicyOutput:
        sizes.append(int(batch.response_mask.any(-1).sum()))
        return forward(module, batch)

    monkeypatch.setattr(AlignmentModule, "_forward", counting)
    few = driver.step(case, driver.batch(case))
    monkeypatch.setattr(AlignmentModule, "_read", counting)
    assert_same(few, driver.step(case, driver.batch(case)))
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("chunk", [1, 3])
def test_what_is_read_in_chunks_is_what_is_read_at_once(chunk: int, driver: Driver) -> None:
    batch = driver.batch(CASES["rloo"])
    with torch.no_grad():
        whole = driver.policy(batch).token_logps
        parts = in_chunks(lambda part: driver.policy(part).token_logps, batch, chunk)
    assert len(set(batch.response_mask.sum(-1).amax(-1).tolist())) > 1, "of several widths"
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [2, 4, 8])
@EVERY
def test_micro_batches_add_up(name: str, k: int, driver: Driver) -> None:
    case = CASES[name]
    for micro in (1, 2) if k == 4 else (1,):
        assert_same(driver.plain(name, case, k), driver.step(case, driver.batch(case, k), micro=micro))


@EVERY
def test_order_does_not_matter(name: str, driver: Driver) -> None:
    case = CASES[name]
    batch = columns(rows(driver.batch(case), [2, 0, 3, 1]), [3, 1, 0, 2])
    assert_same(driver.plain(name, case), driver.step(case, batch, micro=2))


@EVERY
def test_the_better_response_gains(name: str, driver: Driver) -> None:
    """The step, at the policy that sampled, leans towards the best response and away from the worst."""
    case = CASES[name]
    batch = driver.batch(case)
    lean = driver.lean(batch)
    step = driver.step(case, batch, moves=0)
    cosine = float(-step.gradient @ lean / lean.norm() / step.size)
    assert cosine > 0.4


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if issubclass(case.kind, PreferenceModule)])
def test_the_reference_is_where_margins_begin(name: str, driver: Driver) -> None:
    case = CASES[name]
    margin = driver.step(case, driver.batch(case), moves=0).metrics["pairs/margin"]
    if case.module(driver.policy).needs.reference:
        assert margin == pytest.approx(0.0, abs=1e-4)
    else:
        assert abs(margin) > 0.01


@pytest.mark.parametrize("name", ["dar centred", "dar regression", "dar policy gradient", "rloo", "reinforce++ baseline", "ppo", "grpo"])
def test_the_reference_pulls(name: str, driver: Driver) -> None:
    """Where scores are equal, what the reference finds likelier than the policy gains on what it finds less likely."""
    case = CASES[name]
    batch = driver.batch(case)
    loved = driver.loved_by_the_reference(batch)
    lean = driver.lean(replace(batch, scores=loved), moved=True)
    step = driver.step(replace(case, options={**case.options, **PRICE.get(name, {})}), replace(batch, scores=torch.zeros(4, 4)), moves=1)
    assert float(-step.gradient @ lean / lean.norm() / step.size) > 0.1  # by chance: 0.02


@EVERY
def test_siblings_of_equal_score(name: str, driver: Driver) -> None:
    """A tie is no label: neither is the first of them."""
    case = CASES[name]
    batch = driver.batch(case)
    prompt_score = batch.scores[:, :1].expand_as(batch.scores)
    tied = replace(batch, scores=prompt_score, preferences=None if batch.preferences is None else batch.preferences * 0 + 0.5)
    assert taught(driver.step(case, tied, moves=0)) == case.equal


@EVERY
def test_siblings_of_the_same_tokens(name: str, driver: Driver) -> None:
    """Whatever the annotator says of them."""
    case = CASES[name]
    batch = driver.batch(case)
    first = columns(batch, [0, 0, 0, 0])
    same = replace(first, scores=batch.scores, preferences=batch.preferences)
    assert taught(driver.step(case, same, moves=0)) == case.identical


@pytest.mark.parametrize("name", LONE)
def test_a_lone_response_trains(name: str, driver: Driver) -> None:
    assert taught(driver.plain(name, CASES[name], 1))


@pytest.mark.parametrize("name", [name for name in CASES if name not in LONE])
def test_a_lone_response_is_refused(name: str, driver: Driver) -> None:
    module, data = CASES[name].module(driver.policy), make_data(responses_per_prompt=1, micro_batch_prompts=8)
    with pytest.raises(UserError, match=rf"{type(module).__name__} .*at least 2 of them, got responses_per_prompt = 1\. Raise it"):
        make_trainer(driver.folder).fit(module, data)


@EVERY
def test_bfloat16_is_the_same_step_within_five_percent(name: str, driver: Driver) -> None:
    """Of the length of its gradient, at the policy that sampled: where ratios begin to be clipped, a rounding decides. Measured: 2%
    to 3%."""
    case = CASES[name]
    batch = driver.batch(case)
    whole, half = (driver.step(case, batch, moves=0, precision=precision) for precision in ("32-true", "bf16-mixed"))
    assert 1e-4 < whole.distance(half) < 0.05


def test_the_cases_are_what_they_are_called(driver: Driver) -> None:
    """Variations would show nothing on a batch where nobody differs, or nothing is clipped."""
    case = Case(CASES["grpo"].kind)
    batch = driver.batch(case)
    assert len({int(n) for n in batch.response_mask.sum(-1).flatten()}) > 4
    assert 0 in batch.response_mask.sum(-1)
    assert len({int(n) for n in batch.prompt_mask.sum(-1)}) > 3
    for name in ("grpo", "gspo", "cispo"):
        assert 0 < driver.plain(name, CASES[name]).metrics["ratio/clipped_fraction"] < 1
