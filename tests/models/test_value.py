"""Values of tokens: where a critic begins, what it reads, and what it can't be made of."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from lit_align.models import CausalPolicy, LoRA, RewardNetwork, ValueModel
from lit_align.types import UserError
from tests.models.batches import as_batch, make_rollouts
from tests.tiny import write_tiny

EOS = 1
PROMPTS = [[2, 5], [7], [3, 4, 5, 6, 7, 8, 9]]
RESPONSES = [[[5, 6, EOS], [EOS]], [[3, 4, 5, 6, 7, 8], [9, EOS]], [[12, 13, EOS], [13]]]
ROLLOUTS = make_rollouts(PROMPTS, RESPONSES, 0)
BATCH = as_batch(ROLLOUTS)
PADDED = as_batch(make_rollouts(PROMPTS, RESPONSES, 7, extra=(2, 3)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("value"), context=64)


def moved_head(policy: CausalPolicy) -> CausalPolicy:
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))  # pyright: ignore
    return policy


def test_a_critic_begins_with_what_the_reward_model_would_score_so_far(tiny: str, tmp_path: Path) -> None:
    """Prompt and tokens before each one, as one row."""
    network = RewardNetwork(tiny, seed=3)
    network.save(str(tmp_path / "reward"))
    values = ValueModel(str(tmp_path / "reward"))(BATCH)
    for i, prompt in enumerate(PROMPTS):
        for k, response in enumerate(RESPONSES[i]):
            for t in range(len(response)):
                row = torch.tensor([[*prompt, *response[:t]]])
                assert_close(values[i, k, t], network(row, torch.ones_like(row).bool())[0], atol=1e-5, rtol=0)
    assert values[BATCH.response_mask].std() > 1e-2


def test_a_value_head_reads_what_the_language_head_reads(tiny: str) -> None:
    policy = moved_head(CausalPolicy(tiny, value_head=True))
    output, head = policy(BATCH), policy.value_head
    assert head is not None
    assert output.values is not None
    for i, prompt in enumerate(PROMPTS):
        for k, response in enumerate(RESPONSES[i]):
            row = torch.tensor([[*prompt, *response]])
            hidden = policy.model.model(input_ids=row).last_hidden_state[0, len(prompt) - 1 : -1]
            assert_close(output.values[i, k, : len(response)], head(hidden)[:, 0], atol=1e-5, rtol=0)
    assert_close(output.token_logps, CausalPolicy(tiny)(BATCH).token_logps)
    assert CausalPolicy(tiny)(BATCH).values is None


def test_a_new_value_head_expects_nothing_and_learns_at_once(tiny: str) -> None:
    policy = CausalPolicy(tiny, value_head=True)
    values = policy(BATCH).values
    assert values is not None
    assert values.count_nonzero() == 0
    (values - 1).square()[BATCH.response_mask].sum().backward()
    assert next(policy.value_head.parameters()).grad.abs().max() > 0  # pyright: ignore[reportOptionalMemberAccess]


def test_padding_is_not_read(tiny: str) -> None:
    head, critic = moved_head(CausalPolicy(tiny, value_head=True)), ValueModel(tiny)
    for read in (lambda batch: head(batch).values, critic):
        assert_close(read(PADDED)[..., :6][BATCH.response_mask], read(BATCH)[BATCH.response_mask], atol=1e-5, rtol=0)


def test_values_are_float32_under_autocast(tiny: str) -> None:
    """And of a head that computes in it: of the trunk alone two digits are lost."""
    critic = ValueModel(tiny)
    with torch.autocast("cpu", torch.bfloat16):
        values = critic(BATCH)
    assert values.dtype == torch.float32
    rounded = values[BATCH.response_mask].bfloat16().float()
    assert not torch.equal(rounded, values[BATCH.response_mask])


def test_entropy_is_that_of_the_tempered_choice(tiny: str) -> None:
    policy = CausalPolicy(tiny, temperature=0.7)
    found = policy(BATCH, entropy=True).entropy
    assert found is not None
    row = torch.tensor([[*PROMPTS[1], *RESPONSES[1][0]]])
    probabilities = (policy.model(input_ids=row).logits[0, :-1] / 0.7).softmax(-1)
    assert_close(found[1, 0], -(probabilities * probabilities.log()).sum(-1), atol=1e-5, rtol=0)
    assert policy(BATCH).entropy is None


def test_gradient_checkpointing_gives_the_same_gradient(tiny: str) -> None:
    found = []
    for checkpointing in (False, True):
        critic = ValueModel(tiny, gradient_checkpointing=checkpointing)
        critic(BATCH)[BATCH.response_mask].square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in critic.parameters() if p.grad is not None]))
        assert len(found[-1]) == sum(p.numel() for p in critic.parameters())
    assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


def test_a_saved_policy_and_its_reference_have_no_value_head(tiny: str, tmp_path: Path) -> None:
    policy = CausalPolicy(tiny, value_head=True)
    assert policy.make_reference().policy.value_head is None
    policy.save(str(tmp_path / "saved"))
    assert_close(CausalPolicy(str(tmp_path / "saved"))(BATCH).token_logps, policy(BATCH).token_logps)


def test_a_value_head_has_no_use_with_lora(tiny: str) -> None:
    with pytest.raises(UserError, match=r"value_head trains the policy's own trunk.*critic: lit_align\.models\.ValueModel"):
        CausalPolicy(tiny, lora=LoRA(rank=2), value_head=True)


def test_another_tokenizer_is_refused(tiny: str, tmp_path: Path) -> None:
    other = write_tiny(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(other)
    tokenizer.add_tokens(["zz"])
    tokenizer.save_pretrained(other)
    ValueModel(tiny).check(CausalPolicy(tiny))
    with pytest.raises(UserError, match="is another one than the policy's"):
        ValueModel(other).check(CausalPolicy(tiny))


def test_an_encoder_is_refused(tiny: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "num_labels": 1}
    BertForSequenceClassification(BertConfig(**sizes)).save_pretrained(tmp_path)
    PreTrainedTokenizerFast.from_pretrained(tiny).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no linear head on a causal trunk"):
        ValueModel(str(tmp_path))
