"""The vocabulary checks its shapes, cuts only padding, moves as one, and leaves a policy as it was found."""

from dataclasses import fields, replace

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from lit_align.types import AlignmentBatch, Annotation, EncodedPrompt, Needs, Policy, PolicyOutput, Prompt, Reference, Rollouts, Samples
from tests.models.batches import as_batch, make_rollouts

PROMPTS = [[4], [5, 6, 7], [8, 9]]
RESPONSES = [[[3, 1], [4, 5, 6, 1]], [[1], [7, 1]], [[8, 9, 1], [3]]]


@pytest.fixture
def rollouts() -> Rollouts:
    """B = 3, K = 2, P = 3, T = 4; log-probs that tell every position apart."""
    made = make_rollouts(PROMPTS, RESPONSES, pad_id=0)
    counting = -torch.arange(1.0, 25.0).view(3, 2, 4)
    texts = tuple((f"{i}a", f"{i}b") for i in range(3))
    return replace(made, sampling_logps=counting.where(made.response_mask, 0.0), texts=texts)


@pytest.fixture
def batch(rollouts: Rollouts) -> AlignmentBatch:
    return as_batch(rollouts)


def full(batch: AlignmentBatch) -> AlignmentBatch:
    """Every field filled."""
    per_response = torch.arange(6.0).view(3, 2)
    preferences = torch.arange(12.0).view(3, 2, 2)
    made = {"advantages": per_response, "weights": -per_response, "targets": per_response + 1, "pairs": preferences / 12}
    made |= {"source": torch.tensor([0, 1, 2]), "uniforms": torch.arange(3) / 3, "baselines": torch.arange(3.0)}
    assert batch.sampling_logps is not None
    made |= {"values": batch.sampling_logps / 2, "returns": batch.sampling_logps / 3}
    made |= {"engine_logps": batch.sampling_logps / 4, "engine_factors": per_response + 2}
    counts = {"response_normaliser": torch.tensor(6.0), "token_normaliser": torch.tensor(12.0), "pair_normaliser": torch.tensor(5.0)}
    return replace(batch, preferences=preferences, reference_logps=batch.sampling_logps, **made, **counts, dropout_seed=3)


def test_a_wrong_rank_names_the_field_the_axes_and_the_shape(batch: AlignmentBatch) -> None:
    with pytest.raises(ValueError, match=r"AlignmentBatch\.scores should have axes BK, got shape \(3,\)\."):
        replace(batch, scores=torch.zeros(3))
    with pytest.raises(ValueError, match=r"AlignmentBatch\.response_normaliser should have axes \(\), got shape \(1,\)\."):
        replace(batch, response_normaliser=torch.zeros(1))
    with pytest.raises(ValueError, match=r"AlignmentBatch\.advantages should have axes BK, got shape \(3,\)\."):
        replace(batch, advantages=torch.zeros(3))
    with pytest.raises(ValueError, match=r"PolicyOutput\.token_logps should have axes BKT"):
        PolicyOutput(token_logps=torch.zeros(3, 2))


def test_a_letter_has_one_size_in_a_record(batch: AlignmentBatch, rollouts: Rollouts) -> None:
    with pytest.raises(ValueError, match=r"AlignmentBatch\.scores has B = 2, but prompt_tokens has B = 3\."):
        replace(batch, scores=torch.zeros(2, 3))  # transposed
    with pytest.raises(ValueError, match=r"AlignmentBatch\.loss_mask has T = 3, but response_tokens has T = 4\."):
        replace(batch, loss_mask=batch.loss_mask[..., :-1])
    with pytest.raises(ValueError, match=r"Rollouts\.prompt_mask has P = 2, but prompt_tokens has P = 3\."):
        replace(rollouts, prompt_mask=rollouts.prompt_mask[:, 1:])
    with pytest.raises(ValueError, match=r"Annotation\.preferences has K = 3, but scores has K = 2\."):
        Annotation(scores=torch.zeros(4, 2), valid=torch.ones(4, 2, dtype=torch.bool), preferences=torch.zeros(4, 2, 3))


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4)])
def test_advantages_are_of_responses_or_of_their_tokens(shape: tuple[int, ...], batch: AlignmentBatch) -> None:
    advantages = torch.arange(float(torch.Size(shape).numel())).view(shape)
    some = replace(batch, advantages=advantages).rows(torch.tensor([1]))
    assert some.advantages is not None
    assert some.advantages.tolist() == (advantages[[1]] if len(shape) == 2 else advantages[[1], :, :2]).tolist()
    with pytest.raises(ValueError, match=r"advantages has T = 5, but response_tokens has T = 4"):
        replace(batch, advantages=torch.zeros(3, 2, 5))


def test_every_tensor_of_a_record_declares_its_axes(batch: AlignmentBatch, rollouts: Rollouts) -> None:
    for record in (full(batch), rollouts):
        tensors = {f.name for f in fields(record) if isinstance(getattr(record, f.name), torch.Tensor)}
        assert {name for name, _, _ in record.tensors()} == tensors
    assert {name for name, _, _ in full(batch).tensors()} == {f.name for f in fields(AlignmentBatch)} - {
        "dropout_seed",
        "annotator_version",
        "engine_staleness",
        "max_engine_factor",
    }


@pytest.mark.parametrize(
    ("index", "width", "length"),
    [([0], 1, 4), ([1], 3, 2), ([2], 2, 3), ([1, 2], 3, 3), ([2, 0], 2, 4), ([0, 1, 2], 3, 4), ([1, 1], 3, 2)],
)
def test_rows_are_those_asked_for_without_columns_that_are_padding_in_all(index, width, length, batch: AlignmentBatch) -> None:
    found = full(batch).rows(torch.tensor(index))
    expected = make_rollouts([PROMPTS[i] for i in index], [RESPONSES[i] for i in index], pad_id=0)
    assert expected.prompt_tokens.shape == (len(index), width)
    assert expected.response_tokens.shape == (len(index), 2, length)
    for name in ("prompt_tokens", "prompt_mask", "response_tokens", "response_mask", "loss_mask"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    whole = full(batch)
    assert whole.sampling_logps is not None
    assert found.sampling_logps is not None
    assert found.reference_logps is not None
    assert found.sampling_logps.tolist() == whole.sampling_logps[index, :, :length].tolist()
    assert found.reference_logps.tolist() == found.sampling_logps.tolist()
    assert found.engine_logps is not None
    assert found.engine_logps.tolist() == (found.sampling_logps / 4).tolist()
    for name in (
        "engine_factors",
        "scores",
        "valid",
        "finished",
        "optimizer_steps",
        "prompt_ids",
        "weights",
        "advantages",
        "targets",
        "pairs",
        "preferences",
    ):
        assert getattr(found, name).tolist() == getattr(whole, name)[index].tolist(), name
    assert (found.response_normaliser, found.token_normaliser, found.pair_normaliser, found.dropout_seed) == (6.0, 12.0, 5.0, 3)


def test_what_is_used_is_valid_weighted_and_in_a_pair(batch: AlignmentBatch) -> None:
    everything = torch.ones(3, 2, dtype=torch.bool)
    assert replace(batch, valid=everything).used.all()
    valid = torch.tensor([[True, False], [True, True], [True, True]])
    assert replace(batch, valid=valid).used.tolist() == valid.tolist()
    weights = torch.tensor([[1.0, 1.0], [0.0, -1.0], [2.0, 0.0]])
    assert replace(batch, valid=valid, weights=weights).used.tolist() == [[True, False], [False, True], [True, False]]
    pairs = torch.full((3, 2, 2), torch.nan)
    pairs[1, 1, 0] = 0.0
    assert replace(batch, valid=everything, pairs=pairs).used.tolist() == [[False, False], [True, True], [False, False]]


def test_rows_of_spare_padding_and_of_empty_responses() -> None:
    batch = as_batch(make_rollouts(PROMPTS, RESPONSES, pad_id=0, extra=(2, 3)))
    assert batch.rows(torch.arange(3)).prompt_tokens.shape == (3, 3)
    assert batch.rows(torch.arange(3)).response_tokens.shape == (3, 2, 4)
    silent = replace(batch, response_mask=torch.zeros_like(batch.response_mask))
    assert silent.rows(torch.tensor([0])).response_tokens.shape == (1, 2, 1), "one column stays: no tensor is empty"


def test_rows_of_rollouts_pick_prompts_and_texts_too(rollouts: Rollouts) -> None:
    picked = rollouts.rows([2, 0])
    assert [p.id for p in picked.prompts] == [102, 100]
    assert picked.texts == (("2a", "2b"), ("0a", "0b"))
    assert picked.response_tokens.tolist() == rollouts.response_tokens[[2, 0]].tolist()


def test_a_batch_of_rollouts_and_annotation(rollouts: Rollouts) -> None:
    scores, valid = torch.randn(3, 2), torch.tensor([[True, False]] * 3)
    batch = AlignmentBatch.of(rollouts, Annotation(scores=scores, valid=valid), torch.tensor([0, 0, 1]))
    assert batch.prompt_ids.tolist() == [100, 101, 102]
    assert batch.optimizer_steps.tolist() == [0, 0, 1]
    assert AlignmentBatch.of(rollouts, Annotation(scores=scores, valid=valid)).optimizer_steps.tolist() == [0, 0, 0]
    assert (batch.scores is scores, batch.valid is valid, batch.preferences) == (True, True, None)
    for name in ("prompt_tokens", "prompt_mask", "response_tokens", "response_mask", "loss_mask", "sampling_logps", "finished"):
        assert getattr(batch, name) is getattr(rollouts, name), name
    assert batch.reference_logps is batch.weights is batch.advantages is batch.response_normaliser is None


def test_response_logps_are_sums_over_the_loss_mask(batch: AlignmentBatch) -> None:
    assert batch.sampling_response_logps.tolist() == [[-3.0, -26.0], [-9.0, -27.0], [-54.0, -21.0]]
    mask = batch.loss_mask.clone()
    mask[0, 1, 1] = False  # a tool's token
    poisoned = batch.sampling_logps.where(mask, -torch.inf)  # type: ignore[union-attr]
    assert replace(batch, loss_mask=mask, sampling_logps=poisoned).sampling_response_logps[0].tolist() == [-3.0, -20.0]
    with pytest.raises(ValueError, match=r"This batch has no reference_logps: .* `needs` must ask for a reference"):
        _ = batch.reference_response_logps


def test_to_moves_every_tensor_and_keeps_the_rest(batch: AlignmentBatch, rollouts: Rollouts) -> None:
    moved = full(batch).to("meta")
    assert {tensor.device.type for _, tensor, _ in moved.tensors()} == {"meta"}
    assert moved.dropout_seed == 3
    assert {tensor.device.type for _, tensor, _ in full(batch).tensors()} == {"cpu"}
    annotation = Annotation(scores=batch.scores, valid=batch.valid, annotator_version=2)
    samples = Samples(rollouts, annotation).to("meta")
    assert samples.annotation is not None
    assert (samples.rollouts.finished.device.type, samples.annotation.scores.device.type) == ("meta", "meta")
    assert (samples.rollouts.texts, samples.annotation.annotator_version) == (rollouts.texts, 2)
    assert Samples(rollouts, None).to("meta").annotation is None


def test_lightning_moves_a_batch(batch: AlignmentBatch, rollouts: Rollouts) -> None:
    moved = move_data_to_device(full(batch), torch.device("meta"))
    assert isinstance(moved, AlignmentBatch)
    assert {tensor.device.type for _, tensor, _ in moved.tensors()} == {"meta"}
    assert moved.dropout_seed == 3
    samples = move_data_to_device(Samples(rollouts, None), torch.device("meta"))
    assert samples.rollouts.response_tokens.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")
def test_pinned_memory(batch: AlignmentBatch) -> None:
    assert all(tensor.is_pinned() for _, tensor, _ in full(batch).pin_memory().tensors())


def test_pin_memory_asks_every_tensor(batch: AlignmentBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    pinned = full(batch).pin_memory()
    for (name, new, _), (_, old, _) in zip(pinned.tensors(), full(batch).tensors(), strict=True):
        assert new is not old, name
        assert new.tolist() == old.tolist(), name


def test_records_and_prompts_are_values(batch: AlignmentBatch) -> None:
    with pytest.raises(AttributeError):
        batch.scores = torch.ones(3, 2)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        EncodedPrompt(Prompt(1, "a"), (1,)).occurrence = 2  # type: ignore[misc]


NEEDS = [
    Needs(),
    Needs(reference=True),
    Needs(on_policy=True),
    Needs(responses=4),
    Needs(True, True, 2),
    Needs(False, True, 3),
    Needs(self_labels=True),
]


@pytest.mark.parametrize("one", NEEDS)
@pytest.mark.parametrize("other", NEEDS)
def test_needs_are_united(one: Needs, other: Needs) -> None:
    both = one | other
    labels = one.self_labels or other.self_labels
    assert both == Needs(
        one.reference or other.reference, one.on_policy or other.on_policy, max(one.responses, other.responses), self_labels=labels
    )
    assert isinstance(both.reference, bool)


class Stub(Policy):
    """Submodules in modes of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        self.frozen = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
        self.frozen.eval()
        self.frozen[1].train()

    def forward(self, batch, vocabulary=False, entropy=False) -> PolicyOutput:
        raise NotImplementedError

    def next_token_logits(self, tokens, mask, cache=None):
        raise NotImplementedError

    def encode(self, prompt) -> list[int]:
        raise NotImplementedError

    def encode_response(self, prompt, text) -> list[int]:
        raise NotImplementedError

    def encode_turns(self, prompt, turns) -> tuple[list[int], list[bool]]:
        raise NotImplementedError

    def decode(self, tokens) -> str:
        raise NotImplementedError

    def make_reference(self) -> Reference:
        raise NotImplementedError

    def save(self, folder) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_inference_gives_every_submodule_its_own_mode_back(fails: bool, training: bool) -> None:
    policy = Stub()
    policy.training = training
    before = {name: module.training for name, module in policy.named_modules()}
    assert set(before.values()) == {False, True}

    def infer() -> None:
        with policy.inference():
            assert not any(module.training for module in policy.modules())
            assert not torch.is_grad_enabled()
            if fails:
                raise RuntimeError("in the middle")

    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            infer()
    else:
        infer()
    assert {name: module.training for name, module in policy.named_modules()} == before
    assert torch.is_grad_enabled()


def test_inference_inside_inference() -> None:
    policy = Stub().train()
    with policy.inference():
        with policy.inference():
            pass
        assert not policy.training
        assert not torch.is_grad_enabled()
    assert all(module.training for module in policy.modules())
