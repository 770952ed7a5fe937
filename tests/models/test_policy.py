"""What a policy says about a response, against the plainest possible forward of the same model."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import response_logps
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import EncodedPrompt, Prompt, Stream
from tests.models.batches import as_batch, make_rollouts, plain_logps
from tests.tiny import make_dar, make_trainer, write_tiny

EOS = 1
PROMPTS = [[2, 5], [7], [3, 4, 5, 6, 7, 8, 9], [2, 2, 11]]
RESPONSES = [[[5, 6, EOS], [EOS]], [[3, 4, 5, 6, 7, 8], [9, EOS]], [[12, 13, EOS], [13]], [[EOS], [4, 4, 4, 4, EOS]]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("policies")
    return {pad: write_tiny(root / str(pad), pad=pad) for pad in (True, False)}


def each_response():
    return [(i, k, PROMPTS[i], RESPONSES[i][k]) for i, k in itertools.product(range(4), range(2))]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("pad", [True, False], ids=["a pad token", "pad is EOS"])
def test_a_padded_batch_says_what_single_rows_say(folders, pad, temperature):
    policy = CausalPolicy(folders[pad], temperature=temperature)
    assert policy.pad_id == (0 if pad else EOS)
    rollouts = make_rollouts(PROMPTS, RESPONSES, policy.pad_id)
    with policy.inference():
        token_logps = policy(rollouts).token_logps
    assert token_logps.dtype == torch.float32
    sums = response_logps(token_logps, rollouts.response_mask)
    for i, k, prompt, response in each_response():
        expected = plain_logps(policy.model, prompt, response, temperature)
        assert_close(token_logps[i, k, : len(response)], expected, atol=2e-5, rtol=0)
        assert_close(sums[i, k], expected.sum(), atol=5e-5, rtol=0)  # EOS counted once; prompt and padding not at all


@pytest.mark.parametrize("pad", [True, False], ids=["a pad token", "pad is EOS"])
def test_more_padding_changes_nothing(folders, pad):
    policy = CausalPolicy(folders[pad])
    narrow = make_rollouts(PROMPTS, RESPONSES, policy.pad_id)
    wide = make_rollouts(PROMPTS, RESPONSES, policy.pad_id, extra=(5, 4))
    with policy.inference():
        assert_close(
            response_logps(policy(wide).token_logps, wide.response_mask),
            response_logps(policy(narrow).token_logps, narrow.response_mask),
            atol=2e-5,
            rtol=0,
        )


def test_what_stands_in_the_padding_changes_nothing(folders):
    policy = CausalPolicy(folders[True])
    with policy.inference():
        one, other = (policy(make_rollouts(PROMPTS, RESPONSES, pad_id)).token_logps for pad_id in (0, 9))
    mask = make_rollouts(PROMPTS, RESPONSES, 0).response_mask
    assert torch.equal(one[mask], other[mask])


def test_the_gradient_of_left_padded_rows_is_that_of_single_rows(folders):
    policy = CausalPolicy(folders[False])
    rollouts = make_rollouts(PROMPTS, RESPONSES, policy.pad_id, extra=(3, 2))
    (-response_logps(policy(rollouts).token_logps, rollouts.response_mask).sum()).backward()
    batched = {name: parameter.grad.clone() for name, parameter in policy.model.named_parameters()}
    policy.zero_grad()
    for _, _, prompt, response in each_response():
        logits = policy.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="sum").backward()
    for name, parameter in policy.model.named_parameters():
        assert_close(batched[name], parameter.grad, atol=1e-4, rtol=1e-4)
        assert parameter.grad.abs().max() > 0


def test_the_reference_is_the_policy_to_the_bit(folders):
    policy = CausalPolicy(folders[True], temperature=0.7)
    reference = policy.make_reference()
    batch = as_batch(make_rollouts(PROMPTS, RESPONSES, policy.pad_id))
    own = policy(batch).token_logps
    assert own.requires_grad
    said = reference.token_logps(batch)
    assert not said.requires_grad
    assert torch.equal(said, own.detach().where(batch.response_mask, 0.0))
    assert reference.policy.temperature == 0.7


def test_the_reference_stays_when_the_policy_moves(folders):
    policy = CausalPolicy(folders[True])
    batch = as_batch(make_rollouts(PROMPTS, RESPONSES, policy.pad_id))
    before = policy.make_reference().token_logps(batch)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    after = policy.make_reference().token_logps(batch)  # made from the folder, whatever was trained since
    assert torch.equal(after, before)
    assert not torch.allclose(policy(batch).token_logps, before)


def test_dropout_is_for_training_alone(tmp_path):
    policy = CausalPolicy(write_tiny(tmp_path, dropout=0.5))
    rollouts = make_rollouts(PROMPTS, RESPONSES, policy.pad_id)
    with policy.inference():
        quiet = policy(rollouts).token_logps
        assert torch.equal(policy(rollouts).token_logps, quiet)
    assert policy.model.training  # every submodule's mode came back
    assert not torch.equal(policy(rollouts).token_logps, policy(rollouts).token_logps)
    reference = policy.make_reference().token_logps(as_batch(rollouts))
    assert torch.equal(reference, quiet.where(rollouts.response_mask, 0.0))


def test_neither_optimizer_nor_checkpoint_sees_the_reference(folders, tmp_path):
    module = make_dar(folders[True])
    module.trainer = make_trainer(tmp_path)
    names, state = [name for name, _ in module.named_parameters()], list(module.state_dict())
    batch = as_batch(make_rollouts(PROMPTS, RESPONSES, 0))
    module.reference.token_logps(batch)  # loaded now
    assert [name for name, _ in module.named_parameters()] == names
    assert list(module.state_dict()) == state
    assert not any(parameter.requires_grad for parameter in module.reference.policy.parameters())
    assert module.train().policy.training
    assert not module.reference.policy.training
    assert module.reference is module.reference


def test_a_saved_policy_writes_the_same_text(folders, tmp_path):
    policy = CausalPolicy(folders[True])
    with torch.no_grad():
        policy.model.lm_head.weight.add_(torch.randn(policy.model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1)))
    policy.save(str(tmp_path))
    prompts = [EncodedPrompt(Prompt(id=i, content=""), tuple(tokens)) for i, tokens in enumerate(PROMPTS)]
    said = []
    for each in (policy, CausalPolicy(str(tmp_path)), CausalPolicy(folders[True])):
        with each.inference():
            said.append(CacheSampler(max_new_tokens=12, greedy=True).sample(each, prompts, 1, Stream(0, "eval", 0)).texts)
    assert said[0] == said[1] != said[2]


def test_the_dtype_is_that_of_the_weights_and_log_probs_stay_float32(folders):
    policy = CausalPolicy(folders[True], dtype="bfloat16")
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}
    rollouts = make_rollouts(PROMPTS, RESPONSES, policy.pad_id)
    with policy.inference():
        token_logps = policy(rollouts).token_logps
        assert policy.next_token_logits(rollouts.prompt_tokens, rollouts.prompt_mask)[0].dtype == torch.float32
    assert token_logps.dtype == torch.float32
    exact = plain_logps(CausalPolicy(folders[True]).model, PROMPTS[2], RESPONSES[2][0])
    assert_close(token_logps[2, 0, :3], exact, atol=0.1, rtol=0)
