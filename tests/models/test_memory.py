"""What saves memory changes no number: gradient checkpointing, a reference that is kept elsewhere, another attention kernel."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig

from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy, FrozenReference, LoRA
from lit_align.types import AlignmentBatch, EncodedPrompt, Policy, PolicyOutput, Prompt, Rollouts, Stream, UserError
from tests.models.batches import as_batch, make_rollouts
from tests.tiny import make_dar, make_data, make_trainer, write_tiny

EOS = 1
PROMPTS = [[2, 5], [7], [3, 4, 5, 6, 7, 8, 9], [2, 2, 11]]
RESPONSES = [[[5, 6, EOS], [EOS]], [[3, 4, 5, 6, 7, 8], [9, EOS]], [[12, 13, EOS], [13]], [[EOS], [4, 4, 4, 4, EOS]]]
ROLLOUTS = make_rollouts(PROMPTS, RESPONSES, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="module")
def dropping(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("dropout"), dropout=0.3)


def pair(path, **options) -> tuple[CausalPolicy, CausalPolicy]:
    """The same policy without and with gradient checkpointing."""
    made = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        policy = CausalPolicy(path, gradient_checkpointing=checkpointing, **options)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        made.append(policy)
    return made[0], made[1]


def inner_calls(policy: CausalPolicy) -> list[int]:
    """Grows by the length of its input whenever the first layer's MLP runs."""
    calls: list[int] = []
    policy.model.model.layers[0].mlp.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape[1]))
    return calls


def logps(policy):
    with policy.inference():
        return policy(ROLLOUTS).token_logps


# Gradient checkpointing


@pytest.mark.parametrize("lora", [None, LoRA(rank=4, dropout=0.3)], ids=["whole", "lora"])
def test_checkpointing_gives_the_same_gradient(lora, dropping):
    grads, calls = [], []
    for policy in pair(dropping, lora=lora):
        calls.append(inner_calls(policy))
        torch.manual_seed(5)  # dropout
        policy(ROLLOUTS).token_logps.where(ROLLOUTS.response_mask, 0.0).sum().backward()
        grads.append({name: parameter.grad for name, parameter in policy.named_parameters() if parameter.requires_grad})
    for name, grad in grads[0].items():
        assert grad.abs().max() > 0
        assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-6)
    assert (len(calls[0]), len(calls[1])) == (1, 2)  # computed again in the backward pass


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["whole", "lora"])
def test_sampling_keeps_its_cache(lora, folder):
    prompts = [EncodedPrompt(Prompt(id=i, content=""), tuple(tokens)) for i, tokens in enumerate(PROMPTS)]
    said = []
    for policy in pair(folder, lora=lora):
        _ = policy.way  # probed before the calls are counted
        calls = inner_calls(policy)
        with policy.inference():
            said.append(CacheSampler(max_new_tokens=8).sample(policy, prompts, 2, Stream(0, "train", 0)))
        assert calls == [7, *[1] * (len(calls) - 1)]  # the longest prompt, then one token at a time
        assert len(calls) > 3
    assert torch.equal(said[0].response_tokens, said[1].response_tokens)
    assert torch.equal(said[0].sampling_logps, said[1].sampling_logps)


def test_a_run_with_checkpointing_is_the_run_without(folder, tmp_path):
    weights = []
    for number, policy in enumerate(pair(folder)):
        module = make_dar(folder)
        module.policy = policy
        make_trainer(tmp_path / str(number)).fit(module, make_data())
        weights.append(policy.state_dict())
    for name, value in weights[0].items():
        assert_close(weights[1][name], value, atol=1e-5, rtol=0)


def test_an_architecture_that_cannot_checkpoint_is_refused(folder, monkeypatch):
    monkeypatch.setattr("transformers.LlamaForCausalLM.supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match=r"LlamaForCausalLM can't do gradient checkpointing: set gradient_checkpointing to false"):
        CausalPolicy(folder, gradient_checkpointing=True)


# Reference offload


class Located(Policy):
    """Says where its weights are when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.register_buffer("constant", torch.ones(1))
        self.seen: list[tuple[str, str]] = []

    def forward(self, batch: AlignmentBatch | Rollouts, vocabulary: bool = False, entropy: bool = False) -> PolicyOutput:
        self.seen.append((self.linear.weight.device.type, self.constant.device.type))
        return PolicyOutput(token_logps=torch.zeros(batch.response_tokens.shape, device=batch.response_tokens.device))

    def next_token_logits(self, tokens, mask, cache=None):
        raise NotImplementedError

    def encode(self, prompt):
        raise NotImplementedError

    encode_response = encode_turns = decode = make_reference = save = encode


@pytest.mark.parametrize("offload", [True, False])
def test_an_offloaded_reference_is_on_the_device_only_while_it_scores(offload):
    policy = Located()
    weight = policy.linear.weight.detach().clone()
    elsewhere = as_batch(ROLLOUTS).to("meta")  # a second device that every machine has
    reference = FrozenReference(policy, offload=offload)
    for _ in range(2):
        assert reference.token_logps(elsewhere).device.type == "meta"
        assert policy.linear.weight.device.type == ("cpu" if offload else "meta")
    assert policy.seen == [("meta", "meta")] * 2
    if offload:
        assert torch.equal(policy.linear.weight, weight)


def test_an_offloaded_reference_comes_home_after_somebody_sampled_from_it():
    policy, homes = Located(), []
    policy.to = lambda device: homes.append(device)  # type: ignore
    FrozenReference(policy, offload=True).token_logps(as_batch(ROLLOUTS))
    assert homes == ["cpu"]


def test_an_offloaded_reference_says_the_same(folder):
    near, far = CausalPolicy(folder).make_reference(), CausalPolicy(folder, reference_offload=True).make_reference()
    assert isinstance(near, FrozenReference)
    assert isinstance(far, FrozenReference)
    assert (near.offload, far.offload) == (False, True)
    for _ in range(2):
        assert torch.equal(near.token_logps(as_batch(ROLLOUTS)), far.token_logps(as_batch(ROLLOUTS)))


# Attention


def test_attention_can_be_chosen_and_is_the_references_too(folder):
    policies = {name: CausalPolicy(folder, attn_implementation=name) for name in ("eager", "sdpa")}
    for name, policy in policies.items():
        reference = policy.make_reference()
        assert policy.model.config._attn_implementation == name
        assert reference.policy.model.config._attn_implementation == name
    assert_close(logps(policies["eager"]), logps(policies["sdpa"]), atol=1e-5, rtol=0)


def test_an_attention_that_is_not_there_is_refused(folder):
    with pytest.raises(UserError, match=r"attn_implementation 'spda' can't be used for .* `sdpa` and `eager` need nothing installed"):
        CausalPolicy(folder, attn_implementation="spda")


# Tokens without an embedding


def with_added(folder, **tokens) -> str:
    path = write_tiny(folder)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens(tokens)
    tokenizer.save_pretrained(path)
    return path


def test_a_pad_token_that_was_added_to_the_tokenizer_alone_needs_no_resizing(folder, tmp_path):
    policy, plain = CausalPolicy(with_added(tmp_path, pad_token="<new>")), CausalPolicy(folder)
    assert policy.tokenizer.pad_token_id == 14  # the model has rows 0 to 13
    assert policy.pad_id == EOS
    prompts = [EncodedPrompt(Prompt(id=i, content=""), tuple(tokens)) for i, tokens in enumerate(PROMPTS)]
    said = []
    for each in (policy, plain):
        with each.inference():
            rollouts = CacheSampler(max_new_tokens=8).sample(each, prompts, 2, Stream(0, "train", 0))
            said.append((rollouts.texts, each(rollouts).token_logps.where(rollouts.response_mask, 0.0)))
    assert said[0][0] == said[1][0]
    assert torch.equal(said[0][1], said[1][1])


def test_an_end_without_an_embedding_ends_nothing(tmp_path):
    policy = CausalPolicy(with_added(tmp_path, eos_token="<end>"))
    assert policy.tokenizer.eos_token_id == 14
    assert policy.eos_ids == {EOS}
    assert policy.encode_response(Prompt(id=0, content="a"), "b") == [4, EOS]


def test_a_text_with_a_token_without_an_embedding_is_refused(tmp_path):
    policy = CausalPolicy(with_added(tmp_path, additional_special_tokens=["<think>"]))
    for attempt in (
        lambda: policy.encode(Prompt(id=0, content="a<think>")),
        lambda: policy.encode_response(Prompt(id=0, content="a"), "<think>"),
    ):
        with pytest.raises(UserError, match=r"reads '<think>' as token 14, but the model embeds only 14\. Take it out of the text"):
            attempt()


# Tied weights


def test_tied_weights_train_and_save_as_one(tmp_path):
    path = write_tiny(tmp_path / "tied", tie_word_embeddings=True)
    module = make_dar(path)
    make_trainer(tmp_path, max_epochs=1).fit(module, make_data())
    policy = module.policy
    assert isinstance(policy, CausalPolicy)
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    policy.save(str(tmp_path / "saved"))
    policy.layouts = ()  # of the run; without them all read alike
    assert torch.equal(logps(CausalPolicy(str(tmp_path / "saved"))), logps(policy))
    assert not torch.equal(logps(CausalPolicy(path)), logps(policy))
    again = make_dar(path)
    again.load_state_dict(module.state_dict())
    assert torch.equal(logps(again.policy), logps(policy))


def test_families_checkpoint_too(tmp_path):
    path = write_tiny(tmp_path)
    sizes = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 16}
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(OPTConfig(vocab_size=14, eos_token_id=1, bos_token_id=2, pad_token_id=0, **sizes)).save_pretrained(
        path
    )
    for policy in pair(path, lora=LoRA(rank=2)):
        policy(ROLLOUTS).token_logps.sum().backward()
        assert all(parameter.grad is not None for parameter in policy.parameters() if parameter.requires_grad)
