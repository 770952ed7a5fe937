"""An adapter is all that is trained and kept; without it the policy is the model that was loaded."""

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config

from lit_align.generation import CacheSampler
from lit_align.models import AdapterOffReference, CausalPolicy, LoRA
from lit_align.types import EncodedPrompt, Prompt, Rollouts, Stream, UserError
from tests.models.batches import as_batch, make_rollouts
from tests.tiny import make_dar, write_tiny

EOS = 1
PROMPTS = [[2, 5], [7], [3, 4, 5, 6, 7, 8, 9], [2, 2, 11]]
RESPONSES = [[[5, 6, EOS], [EOS]], [[3, 4, 5, 6, 7, 8], [9, EOS]], [[12, 13, EOS], [13]], [[EOS], [4, 4, 4, 4, EOS]]]
ROLLOUTS = make_rollouts(PROMPTS, RESPONSES, 0)
BATCH = as_batch(ROLLOUTS)
GPT2 = GPT2Config(vocab_size=14, bos_token_id=2, eos_token_id=1, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    path = write_tiny(tmp_path_factory.mktemp("gpt2"))
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(GPT2).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


def lora(**options) -> LoRA:
    return LoRA(**({"rank": 4, "alpha": 8.0} | options))


def moved(policy: CausalPolicy) -> CausalPolicy:
    """As after some training: the second factor of every adapter is no longer zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return policy


def logps(policy, rollouts: Rollouts = ROLLOUTS):
    with policy.inference():
        return policy(rollouts).token_logps


def greedy(policy) -> tuple[tuple[str, ...], ...]:
    prompts = [EncodedPrompt(Prompt(id=i, content=""), tuple(tokens)) for i, tokens in enumerate(PROMPTS)]
    with policy.inference():
        return CacheSampler(max_new_tokens=12, greedy=True).sample(policy, prompts, 1, Stream(0, "eval", 0)).texts


def base_weights(policy: CausalPolicy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.model.named_parameters() if "lora_" not in name}


# What is trained


def test_it_begins_as_the_model_to_the_bit(folder):
    plain, adapted = CausalPolicy(folder), CausalPolicy(folder, lora=lora(dropout=0.5))
    assert torch.equal(logps(adapted), logps(plain))
    assert torch.equal(adapted.make_reference().token_logps(BATCH), logps(adapted).where(ROLLOUTS.response_mask, 0.0))


def test_the_change_is_alpha_over_rank_times_the_factors(folder):
    plain, adapted = CausalPolicy(folder), moved(CausalPolicy(folder, lora=LoRA(rank=4, alpha=6.0)))
    layer = adapted.model.model.layers[1].mlp.down_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (a.shape, b.shape) == ((4, 32), (16, 4))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    expected = x @ (plain.model.model.layers[1].mlp.down_proj.weight + 6.0 / 4 * b @ a).T
    assert_close(layer.eval()(x), expected)


def test_all_linear_layers_but_the_head_have_an_adapter(folder):
    policy = CausalPolicy(folder, lora=lora())
    linear = {name for name, module in CausalPolicy(folder).model.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, module in policy.model.named_modules() if isinstance(module, LoraLayer)} == linear - {"lm_head"}


def test_only_the_targets_have_an_adapter(folder):
    policy = CausalPolicy(folder, lora=lora(targets=["q_proj", "v_proj"]))
    found = {name.rpartition(".")[2] for name, module in policy.model.named_modules() if isinstance(module, LoraLayer)}
    assert found == {"q_proj", "v_proj"}


def test_only_the_adapter_reaches_the_optimizer(folder):
    module = make_dar(folder)
    module.policy = CausalPolicy(folder, lora=lora())
    optimizer = module.configure_optimizers()
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for name, parameter in module.named_parameters() if "lora_" in name}
    module.policy(BATCH).token_logps.sum().backward()
    assert {name for name, parameter in module.named_parameters() if parameter.grad is not None} == {
        name for name, _ in module.named_parameters() if "lora_" in name
    }


def test_dropout_is_for_training_alone(folder):
    policy = moved(CausalPolicy(folder, lora=lora(dropout=0.5)))
    torch.manual_seed(0)
    first = policy(ROLLOUTS).token_logps
    assert not torch.equal(policy(ROLLOUTS).token_logps, first)
    assert torch.equal(logps(policy), logps(policy))


# The reference


def test_the_reference_is_the_model_that_was_loaded_to_the_bit(folder):
    policy, plain = moved(CausalPolicy(folder, temperature=0.7, lora=lora(dropout=0.5))), CausalPolicy(folder, temperature=0.7)
    reference = policy.make_reference()
    assert isinstance(reference, AdapterOffReference)
    said = reference.token_logps(BATCH)
    assert torch.equal(said, plain.make_reference().token_logps(BATCH))
    assert not torch.allclose(logps(policy), said, atol=0.1)
    assert not said.requires_grad


def test_the_reference_drops_nothing_out(tmp_path):
    path = write_tiny(tmp_path, dropout=0.5)  # in the attention of the model itself
    policy = CausalPolicy(path, lora=lora())
    assert policy.model.training
    assert torch.equal(policy.make_reference().token_logps(BATCH), CausalPolicy(path).make_reference().token_logps(BATCH))


def test_scoring_leaves_the_policy_as_it_was(folder):
    policy = moved(CausalPolicy(folder, lora=lora()))
    before, trained = logps(policy), {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    policy.model.model.layers[0].eval()
    modes = [module.training for module in policy.modules()]
    policy.make_reference().token_logps(BATCH)
    assert [module.training for module in policy.modules()] == modes
    assert torch.equal(logps(policy), before)
    assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == trained
    policy(ROLLOUTS).token_logps.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for name, parameter in policy.named_parameters() if "lora_A" in name)


def test_the_adapter_comes_back_after_an_error(folder):
    policy = moved(CausalPolicy(folder, lora=lora()))
    before = logps(policy)
    with pytest.raises(IndexError):
        policy.make_reference().token_logps(as_batch(make_rollouts([[99]], [[[1]]], 0)))
    assert torch.equal(logps(policy), before)


def test_the_reference_can_be_sampled_from(folder):
    policy, plain = moved(CausalPolicy(folder, lora=lora())), CausalPolicy(folder)
    view = policy.make_reference().policy
    assert greedy(view) == greedy(plain) != greedy(policy)
    assert (view.pad_id, view.eos_ids, view.context_length, view.temperature) == (0, {1}, 64, 1.0)
    prompt = Prompt(id=0, content="ab")
    assert view.encode(prompt) == plain.encode(prompt)
    assert view.encode_response(prompt, "c") == plain.encode_response(prompt, "c")
    assert view.decode([3, 4, EOS]) == "ab"
    assert torch.equal(view.make_reference().token_logps(BATCH), logps(plain).where(ROLLOUTS.response_mask, 0.0))
    assert not view(ROLLOUTS).token_logps.requires_grad


def test_there_is_no_second_copy(folder):
    policy = CausalPolicy(folder, lora=lora())
    ours = {parameter.data_ptr() for parameter in policy.parameters()}
    assert {parameter.data_ptr() for parameter in policy.make_reference().policy.parameters()} == ours


# Checkpoints


def test_checkpoints_hold_the_adapter_only(folder):
    module = make_dar(folder)
    buffers = set(module.state_dict()) - {f"policy.{name}" for name in module.policy.state_dict()}
    module.policy = CausalPolicy(folder, lora=lora())
    adapter = {f"policy.{name}" for name, _ in module.policy.named_parameters() if "lora_" in name}
    assert set(module.state_dict()) == adapter | buffers


@pytest.mark.parametrize("kind", ["folder", "tied"])
def test_a_checkpoint_brings_the_policy_back_to_the_bit(kind, request):
    path = request.getfixturevalue(kind)
    policy, other = moved(CausalPolicy(path, lora=lora())), CausalPolicy(path, lora=lora())
    base = base_weights(other)
    state = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    names = list(state)
    other.load_state_dict(state)
    assert list(state) == names  # what was given is not written to
    assert torch.equal(logps(other), logps(policy))
    assert all(torch.equal(tensor, base[name]) for name, tensor in base_weights(other).items())


def damaged(state, kind):
    some = next(iter(state))
    if kind == "missing":
        return {name: tensor for name, tensor in state.items() if name != some}
    if kind == "unexpected":
        return state | {some.replace("lora_A", "lora_C"): state[some]}
    return state | {some: state[some][:2]}


@pytest.mark.parametrize(
    ("kind", "said"), [("missing", "Missing key"), ("unexpected", "also has 1 other weights"), ("rank", "size mismatch")]
)
def test_a_damaged_checkpoint_is_refused(folder, kind, said):
    policy = CausalPolicy(folder, lora=lora())
    with pytest.raises(RuntimeError, match=said):
        make_with(policy).load_state_dict(damaged(dict(make_with(policy).state_dict()), kind))


def make_with(policy):
    """A module that contains a policy, as a LightningModule does."""
    return nn.ModuleDict({"policy": policy})


def test_checkpoints_of_whole_weights_and_of_adapters_are_not_confused(folder):
    whole, adapted, fewer = (
        make_with(CausalPolicy(folder, **options)) for options in ({}, {"lora": lora()}, {"lora": lora(targets=["q_proj"])})
    )
    with pytest.raises(RuntimeError, match="of a run without `lora`, or with other `targets`"):
        adapted.load_state_dict(whole.state_dict())
    with pytest.raises(RuntimeError, match="of a run without `lora`, or with other `targets`"):
        fewer.load_state_dict(adapted.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        adapted.load_state_dict(fewer.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        whole.load_state_dict(adapted.state_dict())


# Saving


@pytest.mark.parametrize("kind", ["folder", "tied", "gpt2"])
def test_a_saved_policy_is_merged_and_writes_the_same_text(kind, request, tmp_path):
    path = request.getfixturevalue(kind)
    policy = moved(CausalPolicy(path, lora=lora()))
    before = {name: tensor.clone() for name, tensor in policy.named_parameters()}
    policy.save(str(tmp_path))
    merged = CausalPolicy(str(tmp_path))
    assert greedy(merged) == greedy(policy) != greedy(CausalPolicy(path))
    assert_close(logps(merged), logps(policy), atol=1e-4, rtol=0)
    assert {name for name, _ in merged.model.named_parameters()} == {name for name, _ in CausalPolicy(path).model.named_parameters()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.named_parameters())  # nothing was merged in place
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_reference_is_saved_without_the_adapter(folder, tmp_path):
    policy = moved(CausalPolicy(folder, lora=lora()))
    policy.make_reference().policy.save(str(tmp_path))
    assert torch.equal(logps(CausalPolicy(str(tmp_path))), logps(CausalPolicy(folder)))


# bfloat16


def test_in_bfloat16_the_adapter_stays_in_float32(folder, tmp_path):
    policy, plain = CausalPolicy(folder, dtype="bfloat16", lora=lora()), CausalPolicy(folder, dtype="bfloat16")
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in policy.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert torch.equal(logps(policy), logps(plain))
    assert torch.equal(moved(policy).make_reference().token_logps(BATCH), logps(plain).where(ROLLOUTS.response_mask, 0.0))
    policy(ROLLOUTS).token_logps.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in policy.parameters() if parameter.requires_grad)
    policy.save(str(tmp_path))
    merged = CausalPolicy(str(tmp_path), dtype="bfloat16")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert not torch.allclose(logps(plain), logps(policy), atol=0.5)
    assert_close(logps(merged), logps(policy), atol=0.25, rtol=0)


# Mistakes


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0.0}, {"alpha": float("inf")}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=f"lora needs rank >= 1.*{next(iter(options))} {next(iter(options.values()))}"):
        LoRA(**options)


@pytest.mark.parametrize("targets", ["q_proj", "", []])
def test_targets_are_a_list_or_all(targets):
    with pytest.raises(UserError, match=r"should be `all-linear` or a list of layer names"):
        LoRA(targets=targets)


def test_a_target_that_is_not_there_is_named(folder):
    with pytest.raises(UserError, match=r"names 'query', but LlamaForCausalLM has no such layer\. It has .*k_proj.*q_proj"):
        CausalPolicy(folder, lora=lora(targets=["q_proj", "query"]))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_tied_matrix_gets_no_adapter(tied, folder, target):
    with pytest.raises(UserError, match=f"names '{target}', but LlamaForCausalLM ties its head to its embeddings"):
        CausalPolicy(tied, lora=lora(targets=[target]))
    CausalPolicy(folder, lora=lora(targets=[target]))  # untied is fine


def test_offload_has_no_use_with_lora(folder):
    with pytest.raises(UserError, match=r"reference_offload has no use with lora"):
        CausalPolicy(folder, lora=lora(), reference_offload=True)


def test_a_head_of_its_own_is_merged_too(folder: str, tmp_path: Path):
    policy = moved(CausalPolicy(folder, lora=lora(targets=["lm_head", "embed_tokens"])))
    torch.manual_seed(4)
    with torch.no_grad():
        policy.model.model.embed_tokens.lora_embedding_A["default"].normal_(std=0.3)  # of an embedding, the first factor begins at zero
        policy.model.model.embed_tokens.lora_embedding_B["default"].normal_(std=0.3)
    policy.save(str(tmp_path))
    assert_close(logps(CausalPolicy(str(tmp_path))), logps(policy), atol=1e-4, rtol=0)
    assert not torch.allclose(logps(policy), logps(CausalPolicy(folder)), atol=0.1)
