"""A second value of the trained weights: what it is after moving, and that the policy does not notice."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy, LoRA, MovingReference, MovingWeights
from lit_align.types import EncodedPrompt, Prompt, Stream
from tests.models.batches import as_batch, make_rollouts
from tests.tiny import write_tiny

PROMPTS = [[2, 5], [7], [3, 4, 5, 6, 7, 8, 9], [2, 2, 11]]
RESPONSES = [[[5, 6, 1], [1]], [[3, 4, 5, 6, 7, 8], [9, 1]], [[12, 13, 1], [13]], [[1], [4, 4, 4, 4, 1]]]
ROLLOUTS = make_rollouts(PROMPTS, RESPONSES, 0)
BATCH = as_batch(ROLLOUTS)
KINDS = {
    "whole": {},
    "tied": {},
    "offloaded": {"reference_offload": True},
    "checkpointing": {"gradient_checkpointing": True},
    "bfloat16": {"dtype": "bfloat16"},
    "adapter": {"lora": LoRA(rank=4, alpha=8.0, dropout=0.5)},
    "adapter in bfloat16": {"lora": LoRA(rank=4, alpha=8.0), "dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    plain = write_tiny(tmp_path_factory.mktemp("moving"), dropout=0.3)
    return dict.fromkeys(KINDS, plain) | {"tied": write_tiny(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)}


def make(folders, kind: str) -> CausalPolicy:
    return CausalPolicy(folders[kind], **KINDS[kind])


def both(policy) -> tuple[MovingWeights, MovingReference]:
    weights = MovingWeights(policy)
    return weights, MovingReference(policy, weights)


def train(policy, seed: int = 0, size: float = 0.1) -> None:
    """As after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def said(policy):
    """By the policy itself, in eval mode."""
    with policy.inference():
        return policy(BATCH).token_logps.where(BATCH.response_mask, 0.0)


def trained(policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_it_stays_where_it_was_until_it_becomes_the_policy(kind, folders):
    policy = make(folders, kind)
    weights, reference = both(policy)
    initial = said(policy)
    assert torch.equal(reference.token_logps(BATCH), initial)
    assert torch.equal(initial, policy.make_reference().token_logps(BATCH))
    weights.advance(policy, 0, 0.0)
    moments = []
    for rollout in (1, 2):
        train(policy, rollout)
        moments.append(said(policy))
        assert not torch.allclose(moments[-1], reference.token_logps(BATCH), atol=0.05)
        weights.advance(policy, rollout, 1.0)
        assert torch.equal(reference.token_logps(BATCH), moments[-1])
    train(policy, 3)
    weights.advance(policy, 3, 0.0)
    assert torch.equal(reference.token_logps(BATCH), moments[-1]), "the policy went on, the reference did not"


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_is_left_as_it_was(kind, folders):
    policy = make(folders, kind)
    weights, reference = both(policy)
    weights.advance(policy, 0, 0.0)
    train(policy)
    policy.model.model.layers[0].eval()
    before, values = dict(policy.named_parameters()), trained(policy)
    flags = [p.requires_grad for p in policy.parameters()]
    modes = [module.training for module in policy.modules()]
    reference.token_logps(BATCH)
    with pytest.raises(IndexError):
        reference.token_logps(as_batch(make_rollouts([[99]], [[[1]]], 0)))
    weights.advance(policy, 1, 0.5)
    after = dict(policy.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items()), "an optimizer holds these objects"
    assert all(torch.equal(after[name], value) for name, value in values.items())
    assert [p.requires_grad for p in policy.parameters()] == flags
    assert [module.training for module in policy.modules()] == modes


@pytest.mark.parametrize("decay", [0.9, 0.25])
def test_an_average_is_its_closed_form(decay, folders):
    policy = make(folders, "whole")
    weights, _ = both(policy)
    weights.advance(policy, 0, 1 - decay)
    expected = {name: value.double() for name, value in trained(policy).items()}
    for rollout in (1, 2, 3):
        train(policy, rollout)
        weights.advance(policy, rollout, 1 - decay)
        expected = {name: decay * expected[name] + (1 - decay) * value.double() for name, value in trained(policy).items()}
    state = weights.state_dict()
    for name, value in expected.items():
        assert_close(state[name].double(), value, atol=1e-6, rtol=0)
    assert state["rollout"] == 3


@pytest.mark.parametrize("kind", ["bfloat16", "adapter in bfloat16"])
def test_small_steps_of_an_average_are_not_rounded_away(kind, folders):
    """A thousandth of a difference is less than bfloat16 can tell; five hundred of them close 39 % of it."""
    policy = make(folders, kind)
    weights, reference = both(policy)
    weights.advance(policy, 0, 1.0)
    start = trained(policy)
    train(policy, size=0.01)
    for rollout in range(1, 501):
        weights.advance(policy, rollout, 1e-3)
    state = weights.state_dict()
    for name, value in trained(policy).items():
        assert state[name].dtype == torch.float32
        assert_close(state[name], value.float() + (1 - 1e-3) ** 500 * (start[name].float() - value.float()), atol=1e-4, rtol=0)
    assert reference.token_logps(BATCH).dtype == torch.float32


def test_a_rollout_moves_it_once(folders):
    policy = make(folders, "whole")
    weights, _ = both(policy)
    weights.advance(policy, 0, 0.5)
    train(policy)
    weights.advance(policy, 1, 0.5)
    once = {name: value.clone() for name, value in weights.state_dict().items()}
    weights.advance(policy, 1, 0.5)
    assert all(torch.equal(value, once[name]) for name, value in weights.state_dict().items())
    weights.advance(policy, 2, 0.5)
    assert not torch.equal(weights.state_dict()["model.lm_head.weight"], once["model.lm_head.weight"])


def test_the_first_time_it_becomes_the_policy(folders):
    """Ranks make other random factors of an adapter, and the strategy gives all the first one's only after the weights were kept."""
    policy = make(folders, "adapter")
    weights, _ = both(policy)
    train(policy)
    weights.advance(policy, 0, 0.0)
    assert all(torch.equal(weights.state_dict()[name], value) for name, value in trained(policy).items())


def test_a_tied_matrix_is_one_matrix(folders):
    policy = make(folders, "tied")
    weights, _ = both(policy)
    assert "model.lm_head.weight" not in weights.state_dict()
    train(policy)
    model, own = policy.model, policy.model.lm_head.weight
    with weights.replacing(policy):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.lm_head.weight is not own
    assert model.lm_head.weight is model.model.embed_tokens.weight is own


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_there_is_no_third_copy(kind, folders):
    policy = make(folders, kind)
    weights, _ = both(policy)
    own = {p.data_ptr() for p in policy.parameters() if p.requires_grad}
    shared = {p.data_ptr() for p in policy.parameters() if not p.requires_grad}
    kept = {value.data_ptr() for name, value in weights.state_dict().items() if name != "rollout"}
    with weights.replacing(policy):
        assert {p.data_ptr() for p in policy.parameters()} == kept | shared
    assert not kept & own
    assert len(kept) == len(own)
    if kind == "adapter":
        names = {name for name in weights.state_dict() if name != "rollout"}
        assert names == {name for name, _ in policy.named_parameters() if "lora_" in name}


def test_under_autocast_it_reads_its_own_weights(folders):
    """Autocast remembers the bfloat16 form of a parameter for as long as the context lasts, and a rollout is in one."""
    policy = make(folders, "whole")
    weights, reference = both(policy)
    weights.advance(policy, 0, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        initial = reference.token_logps(BATCH)
    train(policy)
    with torch.autocast("cpu", torch.bfloat16):
        now = said(policy)
        assert torch.equal(reference.token_logps(BATCH), initial)
        assert torch.equal(said(policy), now)
        assert not torch.allclose(now, initial, atol=0.05)
        weights.advance(policy, 1, 1.0)
        assert torch.equal(reference.token_logps(BATCH), now)


@pytest.mark.parametrize("offload", [True, False])
def test_offloaded_weights_stay_at_home(offload, folders):
    policy = make(folders, "offloaded" if offload else "whole")
    weights, _ = both(policy)
    policy.to("meta")  # a second device that every machine has
    with weights.replacing(policy):
        assert {p.device.type for p in policy.parameters()} == {"meta"}
    found = {value.device.type for name, value in weights.state_dict().items() if name != "rollout"}
    assert found == {"cpu" if offload else "meta"}


# State


def test_they_are_state_but_neither_parameters_nor_buffers(folders):
    policy = make(folders, "whole")
    module = nn.ModuleDict({"policy": policy, "kept": MovingWeights(policy)})
    assert {name for name, _ in module.named_parameters()} == {f"policy.{name}" for name, _ in policy.named_parameters()}
    assert [name for name, _ in module.named_buffers() if name.startswith("kept.")] == ["kept.rollout"]
    kept = {name for name in module.state_dict() if name.startswith("kept.")}
    assert kept == {f"kept.{name}" for name, _ in policy.named_parameters()} | {"kept.rollout"}


def test_state_brings_them_back(folders):
    policy, other = make(folders, "whole"), make(folders, "whole")
    weights, reference = both(policy)
    fresh, fresh_reference = both(other)
    train(policy)
    weights.advance(policy, 4, 1.0)
    state = nn.ModuleDict({"kept": weights}).state_dict()
    nn.ModuleDict({"kept": fresh}).load_state_dict(state)
    assert torch.equal(fresh_reference.token_logps(BATCH), reference.token_logps(BATCH))
    assert fresh.rollout == 4
    train(other)
    assert torch.equal(fresh_reference.token_logps(BATCH), reference.token_logps(BATCH)), "what was loaded is nobody else's"


@pytest.mark.parametrize(("kind", "message"), [("missing", "Missing key"), ("unexpected", "Unexpected key"), ("shape", "size mismatch")])
def test_damaged_state_is_refused(kind, message, folders):
    weights, _ = both(make(folders, "whole"))
    state, name = dict(weights.state_dict()), "model.lm_head.weight"
    if kind == "missing":
        del state[name]
    else:
        state["model.more" if kind == "unexpected" else name] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=message):
        weights.load_state_dict(state)


# As a policy


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_it_can_be_sampled_from_and_saved(kind, folders, tmp_path):
    def greedy(policy):
        prompts = [EncodedPrompt(Prompt(id=i, content=""), tuple(tokens)) for i, tokens in enumerate(PROMPTS)]
        with policy.inference():
            return CacheSampler(max_new_tokens=12, greedy=True).sample(policy, prompts, 1, Stream(0, "eval", 0)).texts

    policy = make(folders, kind)
    weights, reference = both(policy)
    train(policy, size=0.5)
    weights.advance(policy, 0, 1.0)
    earlier = greedy(policy)
    train(policy, seed=1, size=0.5)
    assert greedy(reference.policy) == earlier != greedy(policy)
    reference.policy.save(str(tmp_path))
    assert greedy(CausalPolicy(str(tmp_path))) == earlier
