"""Which rows make a step, and that nothing else about them matters."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.testing import assert_close

from lit_align.generation import CacheSampler
from lit_align.types import AlignmentBatch, EncodedPrompt, Policy, Prompt, Rollouts, Sampler, Stream, UserError
from tests.tiny import make_dar
from tests.wheel.harness import Fit, Scores, fit, patchy

STEP = 4
DATA: dict[str, Any] = {"prompts_per_rollout": 16, "inner_epochs": 3}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_step_is_the_same_prompts_for_any_micro_batch(accumulate: int, tiny: str, root: Path) -> None:
    result = fit(root, tiny, micro_batch_prompts=STEP // accumulate, trainer={"accumulate_grad_batches": accumulate}, **DATA)
    rollouts = result.recorder.rollouts
    expected = [{p.id for p in r.prompts[i : i + STEP]} for r in rollouts for i in range(0, 16, STEP)]
    steps = result.recorder.steps(accumulate)
    turns = [steps[i : i + 4] for i in range(0, len(steps), 4)]  # rollout 0: three, rollout 1: three
    assert turns[0] + turns[3] == expected, "first as sampled"
    assert all(sorted(map(sorted, turns[i])) == sorted(map(sorted, turns[i - i % 3])) for i in range(6)), "then the same steps"
    assert any(turns[i] != turns[i - i % 3] for i in range(6)), "in another order"
    assert turns[1] != turns[2] or turns[4] != turns[5], "a new one each time"
    assert set().union(*turns[0]) == {p.id for p in rollouts[0].prompts}
    assert len(set().union(*turns[0])) == 16
    assert [p.id for p in rollouts[0].prompts] != [p.id for p in rollouts[1].prompts], "the second reading has its own order"


@pytest.mark.parametrize(("prompts", "micro", "accumulate"), [(8, 3, 1), (8, 4, 3), (6, 4, 1), (4, 8, 1)])
def test_a_partial_last_step_is_refused(prompts: int, micro: int, accumulate: int, tiny: str, root: Path) -> None:
    trainer = {"accumulate_grad_batches": accumulate}
    with pytest.raises(UserError, match=rf"multiple of {micro * accumulate} .*micro_batch_prompts {micro} .*got {prompts}\."):
        fit(root, tiny, prompts_per_rollout=prompts, micro_batch_prompts=micro, trainer=trainer)


@pytest.fixture(scope="module")
def prepared(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """A fit of one step, whose batch has weights far from 1, unfinished rows and invalid ones."""
    module = make_dar(tiny, alpha=0.2, beta=0.3)
    return fit(tmp_path_factory.mktemp("prepared"), tiny, module=module, annotator=Scores(patchy), micro_batch_prompts=8)


def losses(result: Fit, batch: AlignmentBatch) -> Tensor:
    """Loss of every valid response, ``[B, K]``, by the training step itself."""
    valid = batch.valid.sum().float()
    step = result.module.training_step(replace(batch, response_normaliser=valid, token_normaliser=valid, dropout_seed=0), 0)
    assert_close(step["loss"], step["losses"].where(batch.valid, 0.0).sum() / valid)
    return step["losses"].where(batch.valid, 0.0)


def shuffled(order: Tensor) -> Callable[[AlignmentBatch], AlignmentBatch]:
    return lambda batch: batch.map_tensors(lambda tensor, letters: tensor[order] if letters.startswith("B") else tensor)


def test_the_order_of_rows_changes_nothing(prepared: Fit) -> None:
    batch, order = prepared.recorder.batches[1], torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    again, _ = prepared.module.prepare(shuffled(order)(batch))
    assert_close(again.weights, batch.weights[order], atol=1e-5, rtol=1e-5)
    assert_close(losses(prepared, again), losses(prepared, batch)[order], atol=1e-5, rtol=1e-5)
    assert batch.weights.std() > 0.1


@pytest.mark.parametrize("junk", [0, 7])
def test_more_padding_changes_nothing(junk: int, prepared: Fit) -> None:
    batch = prepared.recorder.batches[1]
    assert not batch.prompt_mask.all()
    assert not batch.response_mask.all()

    def widened(tensor: Tensor, letters: str) -> Tensor:
        fill = junk if tensor.dtype == torch.long else False
        return pad(tensor, (3, 0), value=fill) if letters == "BP" else pad(tensor, (0, 4), value=fill) if letters == "BKT" else tensor

    wide = batch.map_tensors(widened)
    wide = replace(
        wide,
        prompt_tokens=wide.prompt_tokens.where(wide.prompt_mask, junk),
        response_tokens=wide.response_tokens.where(wide.response_mask, junk),
    )
    assert_close(losses(prepared, wide), losses(prepared, batch), atol=1e-5, rtol=1e-5)


def test_a_row_alone_has_the_loss_it_has_in_company(prepared: Fit) -> None:
    batch = prepared.recorder.batches[1]
    alone = torch.cat([losses(prepared, batch.rows(torch.tensor([i]))) if batch.valid[i].any() else torch.zeros(1, 4) for i in range(8)])
    assert_close(alone, losses(prepared, batch), atol=1e-5, rtol=1e-5)


@final
class Watched(Sampler):
    """The usual one, and how long the prompts of every chunk were."""

    def __init__(self) -> None:
        self.max_new_tokens, self.lengths = 8, list[list[int]]()
        self.sampler = CacheSampler(8)

    def sample(self, policy: Policy, prompts: Sequence[EncodedPrompt], responses_per_prompt: int, stream: Stream) -> Rollouts:
        self.lengths.append([len(prompt.tokens) for prompt in prompts])
        return self.sampler.sample(policy, prompts, responses_per_prompt, stream)


def short_ones_without_spread(prompt: Prompt, texts: Sequence[str]) -> list[float]:
    return [float(k) if len(prompt.content) > 2 else 1.0 for k in range(len(texts))]


@pytest.mark.parametrize("extra", [0, 12])
def test_prompts_of_like_length_are_sampled_together_and_return_to_their_order(extra: int, tiny: str, root: Path) -> None:
    sampler, options = Watched(), {"max_extra_prompts": extra, "trainer": {"max_epochs": 1}}
    parts, whole = (
        fit(root / str(size), tiny, sampler=chosen, annotator=Scores(short_ones_without_spread), chunk_prompts=size, **options)
        for size, chosen in ((3, sampler), (32, CacheSampler(8)))
    )
    assert (sum(map(len, sampler.lengths)) > 8) == (extra > 0)
    assert [len(part) for part in sampler.lengths[:3]] == [3, 3, 2]
    drawn = [length for part in sampler.lengths[:3] for length in part]
    assert drawn == sorted(drawn, reverse=True)
    one, other = parts.recorder.rollouts[0], whole.recorder.rollouts[0]
    assert one.prompts == other.prompts
    assert [len(p.content) for p in one.prompts] != sorted(len(p.content) for p in one.prompts), "another order than that of lengths"
    assert one.texts == other.texts
    assert torch.equal(one.prompt_tokens, other.prompt_tokens)
    assert torch.equal(parts.recorder.annotations[0].scores, whole.recorder.annotations[0].scores)
