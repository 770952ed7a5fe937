"""Whose words a bfloat16 copy writes, when it is brought up to date, and what is drawn without it."""

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_align.generation import Bfloat16Sampler, CacheSampler
from lit_align.models import CausalPolicy, LoRA
from lit_align.types import EncodedPrompt, Policy, Prompt, Rollouts, Sampler, Stream, UserError
from tests.test_types import Stub
from tests.tiny import write_tiny

PROMPTS = [EncodedPrompt(Prompt(id=10 + i, content=""), tokens) for i, tokens in enumerate([(2, 5), (7,), (3, 4, 5, 6), (2, 2, 11)])]
TRAIN = Stream(seed=0, name="train", rollout=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def policy(model: str) -> CausalPolicy:
    return CausalPolicy(model, temperature=0.8)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Policy]:
    """The policy at every copying."""
    found, rounded = list[Policy](), CausalPolicy.rounded

    def watched(policy: CausalPolicy, copy: Policy | None = None) -> CausalPolicy:
        found.append(policy)
        return rounded(policy, copy)

    monkeypatch.setattr(CausalPolicy, "rounded", watched)
    return found


def sample(sampler: Sampler, policy: Policy, stream: Stream = TRAIN, prompts: Any = PROMPTS) -> Rollouts:
    with policy.inference():
        return sampler.sample(policy, prompts, 3, stream)


def copy_of(sampler: Bfloat16Sampler) -> CausalPolicy:
    assert isinstance(sampler._copy, CausalPolicy)
    return sampler._copy


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in policy.weights()}


def assert_rounded(sampler: Bfloat16Sampler, expected: dict[str, Tensor]) -> None:
    found = dict(copy_of(sampler).model.named_parameters())
    assert found.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight.bfloat16())] == []


@torch.no_grad()
def make_exact(policy: CausalPolicy) -> None:
    """All that it computes has few digits: hidden states of 1 and -1, which layers leave alone, and sums of quarters for logits."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in policy.model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            weight.zero_()
        elif "embed" in name:
            weight.copy_(torch.randint(2, weight.shape, generator=generator) * 2.0 - 1)
        elif "head" in name:
            weight.copy_(torch.randint(-1, 2, weight.shape, generator=generator) / 4)


@pytest.mark.parametrize("stop", [None, ["a"]])
def test_where_nothing_is_rounded_it_is_the_policys_own_sampler(policy: CausalPolicy, stop: list[str] | None) -> None:
    make_exact(policy)
    found, own = (sample(kind(max_new_tokens=8, stop=stop), policy) for kind in (Bfloat16Sampler, CacheSampler))
    assert found.finished.any()
    assert not found.finished.all()
    for name in ("prompt_tokens", "prompt_mask", "response_tokens", "response_mask", "loss_mask", "finished", "occurrences"):
        assert torch.equal(getattr(found, name), getattr(own, name)), name
    assert found.texts == own.texts
    assert_close(found.engine_logps, own.sampling_logps, atol=1e-5, rtol=0)
    assert (found.policy_version, found.engine_staleness, found.max_engine_factor) == (2, 0, 2.0)


def test_the_copy_draws_and_says_what_rounded_weights_say(policy: CausalPolicy) -> None:
    sampler = Bfloat16Sampler(max_new_tokens=8, max_factor=math.inf)
    found = sample(sampler, policy)
    assert_rounded(sampler, weights(policy))
    assert not any(weight.requires_grad for weight in copy_of(sampler).parameters())
    assert policy.training
    assert found.max_engine_factor == math.inf
    alone = sample(CacheSampler(max_new_tokens=8), copy_of(sampler))
    assert found.texts == alone.texts
    assert torch.equal(found.engine_logps, alone.sampling_logps)
    with torch.no_grad():
        own = policy(found).token_logps
    assert 1e-3 < (found.engine_logps - own).abs()[found.response_mask].mean() < 0.05


def test_it_is_brought_up_to_date_when_the_policy_was_trained(policy: CausalPolicy, copies: list[Policy], model: str) -> None:
    sampler, before = Bfloat16Sampler(max_new_tokens=1), weights(policy)
    sample(sampler, policy, Stream(0, "train", 0))
    places = [weight.data_ptr() for weight in copy_of(sampler).parameters()]
    with torch.no_grad():
        for weight in policy.parameters():
            weight *= 1.1
    sample(sampler, policy, Stream(0, "train", 0), PROMPTS[1:])
    assert_rounded(sampler, before)  # the second chunk of one rollout
    sample(sampler, policy, Stream(0, "train", 1))
    assert_rounded(sampler, weights(policy))
    assert places == [weight.data_ptr() for weight in copy_of(sampler).parameters()], "in place: one copy"
    assert copies == [policy] * 2
    for _ in range(2):
        sample(sampler, policy, Stream(0, "train", 0))  # 0 after 1 is another run
    sampler.setup()
    sample(sampler, policy, Stream(0, "train", 0))
    assert copies == [policy] * 4
    other = CausalPolicy(model)
    sample(sampler, other, Stream(0, "train", 0))
    assert_rounded(sampler, weights(other))
    assert copies == [*[policy] * 4, other]


def test_after_a_failure_it_is_copied_again(policy: CausalPolicy, copies: list[Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Bfloat16Sampler(max_new_tokens=1)
    sample(sampler, policy, Stream(0, "train", 0))

    def fails(*_: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("lit_align.models.policy.merge_into", fails)
        with pytest.raises(RuntimeError, match="no memory"):
            sample(sampler, policy, Stream(0, "train", 1))
    sample(sampler, policy, Stream(0, "train", 0))
    assert len(copies) == 3


def test_closing_frees_the_memory(policy: CausalPolicy) -> None:
    sampler = Bfloat16Sampler(max_new_tokens=1)
    sample(sampler, policy)
    copy = weakref.ref(copy_of(sampler))
    sampler.close()
    gc.collect()
    assert copy() is None
    sample(sampler, policy)  # and it starts again


def test_only_what_is_trained_on_is_drawn_by_the_copy(policy: CausalPolicy, copies: list[Policy]) -> None:
    for name in ("eval", "judge", "quickstart"):
        stream = Stream(0, name, 0)
        found, own = (sample(kind(max_new_tokens=8), policy, stream) for kind in (Bfloat16Sampler, CacheSampler))
        assert found.engine_logps is None
        assert torch.equal(found.response_tokens, own.response_tokens)
        assert torch.equal(found.sampling_logps, own.sampling_logps)
    assert copies == []


def test_temperature_ends_and_way_are_the_policys(policy: CausalPolicy) -> None:
    sampler = Bfloat16Sampler(max_new_tokens=8)
    sample(sampler, policy)
    policy.temperature, policy.eos_ids = 0.5, frozenset({14})  # which no model draws
    found = sample(sampler, policy, Stream(0, "train", 3))
    assert not found.finished.any()
    assert copy_of(sampler).temperature == 0.5
    assert copy_of(sampler).way is policy.way


def test_a_probe_decides_nothing_for_the_copy(policy: CausalPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    way = policy.way
    monkeypatch.setattr("lit_align.models.policy.chosen_way", None)
    sampler = Bfloat16Sampler(max_new_tokens=2)
    sample(sampler, policy)
    assert copy_of(sampler).way is way


def test_an_adapter_is_merged_into_the_copy_alone(model: str) -> None:
    policy = CausalPolicy(model, lora=LoRA(rank=2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    sampler = Bfloat16Sampler(max_new_tokens=8)
    found = sample(sampler, policy)
    assert_rounded(sampler, weights(policy))
    assert [name for name, weight in policy.named_parameters() if not torch.equal(weight, before[name])] == []
    with torch.no_grad():
        own = policy(found).token_logps
    assert (found.engine_logps - own).abs()[found.response_mask].mean() < 0.05, "the base alone would be further"


def test_mixed_precision_changes_nothing(policy: CausalPolicy) -> None:
    plain = sample(Bfloat16Sampler(max_new_tokens=8), policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sample(Bfloat16Sampler(max_new_tokens=8), policy)
    assert torch.equal(found.engine_logps, plain.engine_logps)


@pytest.mark.parametrize(("options", "kind"), [({"dtype": "bfloat16"}, "bfloat16"), ({"dtype": "bfloat16", "lora": LoRA()}, "bfloat16")])
def test_weights_that_are_rounded_already_are_refused(options: Any, kind: str, model: str) -> None:
    with pytest.raises(UserError, match=rf"its weights are {kind} already.*CacheSampler"):
        sample(Bfloat16Sampler(), CausalPolicy(model, **options))


def test_weights_that_are_spread_over_ranks_are_refused(policy: CausalPolicy) -> None:
    policy.model.model.norm.weight = torch.nn.Parameter(torch.zeros(0))
    with pytest.raises(UserError, match=r"model\.norm\.weight is spread over ranks and can't be copied"):
        sample(Bfloat16Sampler(), policy)


def test_a_policy_that_can_not_be_copied_says_what_to_sample_with() -> None:
    with pytest.raises(UserError, match=r"Stub can't be copied to bfloat16.*CacheSampler"):
        Stub().rounded()


@pytest.mark.parametrize("options", [{"max_factor": 0.0}, {"max_factor": math.nan}, {"stop": "a"}, {"stop": [""]}])
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Bfloat16Sampler(**options)
