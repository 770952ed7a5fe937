"""Chunks become one record, and no token moves away from its mask."""

from dataclasses import replace

import pytest
import torch

from lit_align.data.collate import join
from lit_align.types import Annotation, Prompt, Rollouts, UserError
from tests.models.batches import as_batch, make_rollouts

PROMPTS = [[4], [5, 6, 7], [8, 9], [10, 11, 12, 13]]
RESPONSES = [[[3, 1], [4, 5, 6, 1]], [[1], [7, 1]], [[8, 9, 1], [3]], [[5, 1], [5, 6, 1]]]


def marked(rows: list[int]) -> Rollouts:
    """Rows of the whole, as narrow as they may be, with log-probs and names that tell every token and row apart."""
    made = make_rollouts([PROMPTS[i] for i in rows], [RESPONSES[i] for i in rows], pad_id=0)
    row, k, t = torch.meshgrid(torch.tensor(rows), torch.arange(2), torch.arange(made.response_mask.shape[-1]), indexing="ij")
    return replace(
        made,
        prompts=tuple(Prompt(id=100 + i, content=f"prompt {i}") for i in rows),
        texts=tuple((f"{i}a", f"{i}b") for i in rows),
        occurrences=torch.tensor(rows),
        sampling_logps=(-1.0 - 100 * row - 10 * k - t).where(made.response_mask, 0.0),
        finished=torch.tensor([[i % 2 == 0, True] for i in rows]),
        policy_version=7,
    )


def assert_same(one: Rollouts, other: Rollouts) -> None:
    assert (one.prompts, one.texts, one.policy_version) == (other.prompts, other.texts, other.policy_version)
    for (name, a, _), (_, b, _) in zip(one.tensors(), other.tensors(), strict=True):
        assert a.dtype == b.dtype, name
        assert a.tolist() == b.tolist(), name


@pytest.mark.parametrize("cuts", [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0], [1, 2, 3]], [[3], [0]], [[2, 0], [1], [3]], [[1]]])
def test_chunks_joined_are_the_whole(cuts: list[list[int]]) -> None:
    """Widths are mixed in all of these; the hand-made whole pads prompts on the left and responses on the right."""
    assert_same(join([marked(rows) for rows in cuts]), marked([i for rows in cuts for i in rows]))


def test_padding_is_on_the_outer_sides_and_masked() -> None:
    joined = join([marked([0]), marked([1])])
    assert joined.prompt_tokens.tolist() == [[0, 0, 4], [5, 6, 7]]
    assert joined.prompt_mask.tolist() == [[False, False, True], [True, True, True]]
    assert joined.response_tokens.tolist() == [[[3, 1, 0, 0], [4, 5, 6, 1]], [[1, 0, 0, 0], [7, 1, 0, 0]]]
    assert joined.loss_mask.tolist() == [
        [[True, True, False, False], [True] * 4],
        [[True, False, False, False], [True, True, False, False]],
    ]
    assert joined.sampling_logps.tolist() == [[[-1, -2, 0, 0], [-11, -12, -13, -14]], [[-101, 0, 0, 0], [-111, -112, 0, 0]]]


def test_a_mask_of_its_own_stays_with_its_tokens() -> None:
    parts = [marked([0]), marked([1])]
    hole = parts[0].loss_mask.clone()
    hole[0, 1, 2] = False  # a tool's token
    joined = join([replace(parts[0], loss_mask=hole), parts[1]])
    assert joined.loss_mask[0, 1].tolist() == [True, True, False, True]
    assert joined.response_mask[0, 1].tolist() == [True] * 4


def test_annotations_with_and_without_preferences() -> None:
    scores, valid = torch.randn(3, 2), torch.tensor([[True, False], [True, True], [False, True]])
    preferences = torch.rand(3, 2, 2)
    both = Annotation(scores=scores, valid=valid, preferences=preferences, annotator_version=4)
    parts = [Annotation(scores=scores[r], valid=valid[r], preferences=preferences[r], annotator_version=4) for r in ([0], [1, 2])]
    joined = join(parts)
    assert joined.preferences is not None
    assert torch.equal(joined.preferences, preferences)
    assert torch.equal(joined.scores, both.scores)
    assert torch.equal(joined.valid, both.valid)
    assert joined.annotator_version == 4
    assert join([replace(part, preferences=None) for part in parts]).preferences is None


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_what_only_some_chunks_have_is_nan_in_the_others(order: list[int]) -> None:
    valid = torch.ones(1, 2, dtype=torch.bool)
    judged = Annotation(scores=torch.ones(1, 2), valid=valid, preferences=torch.rand(1, 2, 2), mass=torch.rand(1, 2))
    parts = [judged, Annotation(scores=torch.zeros(2, 2), valid=valid.expand(2, 2))]
    joined = join([parts[i] for i in order])
    row = 0 if order[0] == 0 else 2
    assert joined.preferences is not None
    assert joined.mass is not None
    assert judged.preferences is not None
    assert torch.equal(joined.preferences[row], judged.preferences[0])
    assert joined.preferences.isnan().flatten(1).all(1).sum() == joined.mass.isnan().all(1).sum() == 2


def test_labels_of_two_versions_are_no_rollout() -> None:
    scores, valid = torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    parts = [Annotation(scores=scores, valid=valid, annotator_version=version) for version in (3, 4)]
    with pytest.raises(UserError, match=r"should have one annotator_version, but they have \[3, 4\]"):
        join(parts)


def test_batches_are_joined_too() -> None:
    whole, parts = as_batch(marked([0, 1, 2])), [as_batch(marked(rows)) for rows in ([0, 2], [1])]
    joined = join([replace(part, advantages=torch.full(part.response_tokens.shape, 2.0)) for part in parts])
    assert joined.prompt_ids.tolist() == [100, 102, 101]
    assert joined.response_tokens.tolist() == whole.response_tokens[[0, 2, 1]].tolist()
    assert joined.advantages is not None
    assert joined.advantages.shape == (3, 2, 4), "per token, so as wide as the responses"
    assert joined.advantages.sum() == 2 * (2 * 2 * 4 + 2 * 2), "and zero where there was none"


def test_responses_to_the_prompts_of_two_chunks_are_as_many() -> None:
    three = make_rollouts([[4]], [[[1], [1], [1]]], pad_id=0)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        join([marked([0]), three])


def test_parts_of_scores_are_joined_by_their_names() -> None:
    def annotation(start: float, rows: int) -> Annotation:
        scores = torch.arange(rows * 2).view(rows, 2) + start
        return Annotation(scores=scores, valid=scores >= 0, parts={"a": scores + 0.5, "b": -scores})

    joined = join([annotation(0.0, 1), annotation(10.0, 2)])
    assert joined.parts["a"].tolist() == [[0.5, 1.5], [10.5, 11.5], [12.5, 13.5]]
    assert joined.parts["b"].tolist() == [[0.0, -1.0], [-10.0, -11.0], [-12.0, -13.0]]
    picked = joined.rows([2, 0])
    assert picked.parts["a"].tolist() == [[12.5, 13.5], [0.5, 1.5]]
    assert {tensor.device.type for _, tensor, _ in joined.to("meta").tensors()} == {"meta"}
    with pytest.raises(ValueError, match=r"Annotation\.parts\.a has B = 2, but scores has B = 1"):
        Annotation(scores=torch.zeros(1, 2), valid=torch.ones(1, 2, dtype=torch.bool), parts={"a": torch.zeros(2, 2)})
