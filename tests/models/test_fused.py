"""The faster way says what the plain one says, of the weights as they are now."""

import pytest
import torch
from torch.testing import assert_close

from lit_align.models import CausalPolicy, fused, fused_weights
from lit_align.models.decoding import PaddedRows
from lit_align.models.fused import FusedRows, fits
from lit_align.models.lora import adapter_off
from tests.models.families import write_family
from tests.models.test_matrix import check_sampling, make_policy, sample
from tests.tiny import write_tiny

TOKENS = torch.tensor([[0, 0, 0, 2, 5], [3, 4, 5, 6, 7], [0, 0, 9, 8, 3]])
SHAPES = {
    "tied": {"tie_word_embeddings": True},
    "one key for two heads": {},
    "four heads, two keys": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "a key for each head": {"num_key_value_heads": 2},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 12},
    "scaled rotation": {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
}


def read(policy, way):
    """Logits of several steps, with rows repeated, dropped here and there and reordered, and several tokens at once at the end."""
    policy.eval()
    said, mask = [], TOKENS != 0
    with torch.no_grad():
        cache = way(policy.model)
        said.append(cache.read(TOKENS, mask))
        index = torch.tensor([0, 0, 1, 1, 2])
        for step in range(12):
            cache.reorder_cache(index)
            mask = torch.cat([mask[index], torch.ones(len(index), 1, dtype=torch.bool)], 1)
            said.append(cache.read(3 + (torch.arange(len(index)) + step).unsqueeze(-1) % 11, mask))
            rows = torch.arange(len(index))
            index = {2: rows[rows != 1], 5: rows.flip(0), 6: rows[:3], 8: rows[1:]}.get(step, rows)
        last = torch.tensor([[0, 5, 4], [6, 7, 8]])
        said.append(cache.read(last, torch.cat([mask[index], last != 0], 1)))
    return torch.cat(said)


def assert_equal(policy):
    assert fits(policy.model)
    assert policy.way is FusedRows
    assert_close(read(policy, FusedRows), read(policy, PaddedRows), atol=2e-5, rtol=0)


def randomise(policy):
    torch.manual_seed(3)
    for parameter in policy.parameters():
        parameter.data = torch.where((parameter == 0) | (parameter == 1), parameter + 0.3 * torch.randn_like(parameter), parameter)
    return policy


@pytest.mark.parametrize("short", [2, fused.SHORT])  # of which more than twice is read, or not
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_llama(tmp_path, monkeypatch, shape, short):
    monkeypatch.setattr(fused, "SHORT", short)
    assert_equal(randomise(CausalPolicy(write_tiny(tmp_path, **SHAPES[shape]))))


@pytest.mark.parametrize("shape", ["tied", "biases"])
def test_packed_matrices_say_the_same(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(fused_weights, "WIDE", 1)
    policy = randomise(CausalPolicy(write_tiny(tmp_path, **SHAPES[shape])))
    assert_equal(policy)
    product = fused_weights.Product.of(policy.model.get_output_embeddings())
    assert product.packed == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(fused_weights, "WIDE", product.columns + 1)
    assert not fused_weights.Product.of(policy.model.get_output_embeddings()).packed


def test_where_nothing_can_be_packed_products_are_plain(tmp_path, monkeypatch):
    def missing(weight, rows):
        raise AttributeError("no such operation")

    monkeypatch.setattr(fused_weights, "WIDE", 1)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing)
    policy = CausalPolicy(write_tiny(tmp_path))
    assert_equal(policy)
    assert not fused_weights.Product.of(policy.model.get_output_embeddings()).packed


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_other_families_of_the_same_modules(tmp_path, family):
    assert_equal(CausalPolicy(write_family(tmp_path, family)))


@pytest.mark.parametrize("shape", ["tied", "four heads, two keys", "biases", "wide heads"])
def test_a_rounded_copy_is_read_as_exactly_as_its_own_forward_reads_it(tmp_path, shape):
    policy = randomise(CausalPolicy(write_tiny(tmp_path, **SHAPES[shape])))
    with policy.inference():
        copy = policy.rounded()
    assert fits(copy.model)
    assert copy.way is FusedRows
    exact, plain, fast = read(policy, PaddedRows), read(copy, PaddedRows), read(copy, FusedRows)
    assert fast.dtype == torch.bfloat16
    assert 1e-3 < (fast - exact).abs().mean() < 1.5 * (plain - exact).abs().mean()


def test_in_bfloat16_the_plain_way_is_not_left_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_align.models.decoding.SAME", 1.0)  # as if rounding happened to be the same
    policy = CausalPolicy(write_tiny(tmp_path), dtype="bfloat16")
    assert fits(policy.model)
    assert policy.way is PaddedRows, "the probe can't tell rounding from another text"


def test_an_adapter_is_merged_into_the_copy_and_nowhere_else(tmp_path):
    policy = make_policy(tmp_path, "llama", "LoRA")
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    assert_equal(policy)
    adapted = read(policy, FusedRows)
    with adapter_off(policy):
        assert_close(read(policy, FusedRows), read(policy, PaddedRows), atol=2e-5, rtol=0)
        assert (read(policy, FusedRows) - adapted).abs().max() > 0.1
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())


def test_weights_are_those_of_the_last_step(tmp_path):
    policy = CausalPolicy(write_tiny(tmp_path), temperature=0.9)
    first = sample(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.05)
    policy(first).token_logps.where(first.response_mask, 0.0).sum().backward()
    optimizer.step()
    policy.zero_grad()
    assert policy.way is FusedRows
    second = sample(policy)
    check_sampling(policy, second)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.data.mul_(1.1)  # behind autograd's back
    check_sampling(policy, sample(policy))


def test_the_same_tokens_as_in_the_plain_way(tmp_path):
    policy = CausalPolicy(write_tiny(tmp_path), temperature=0.9)
    fast = sample(policy)
    policy.decoding = "PaddedRows"
    plain = sample(policy)
    assert torch.equal(fast.response_tokens, plain.response_tokens)
    assert_close(fast.sampling_logps, plain.sampling_logps, atol=2e-5, rtol=0)
    assert not torch.equal(fast.sampling_logps, plain.sampling_logps), "they are two ways"


def hooked(policy):
    policy.model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output)


def with_a_part(policy):
    policy.model.model.layers[1].mlp.gate_scale = torch.nn.Identity()


def with_a_parameter(policy):
    policy.model.model.layers[0].self_attn.sinks = torch.nn.Parameter(torch.zeros(2))


def forward_replaced(policy):
    policy.model.forward = policy.model.forward


def long_rotation(policy):
    policy.model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def unknown_rotation(policy):
    policy.model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4, "beta": 2.0}


def windowed(policy):
    policy.model.config.sliding_window = 5


def partly_in_bfloat16(policy):
    policy.model.lm_head.to(torch.bfloat16)


def in_half_precision(policy):
    policy.to(torch.float16)


def elsewhere(policy):
    policy.to("meta")


@pytest.mark.parametrize(
    "change",
    [
        hooked,
        with_a_part,
        with_a_parameter,
        forward_replaced,
        long_rotation,
        unknown_rotation,
        windowed,
        partly_in_bfloat16,
        in_half_precision,
        elsewhere,
    ],
)
def test_a_model_with_anything_else_is_not_recognised(tmp_path, change):
    policy = CausalPolicy(write_tiny(tmp_path))
    assert fits(policy.model)
    change(policy)
    assert not fits(policy.model)


def test_a_large_model_is_read_plainly(tmp_path, monkeypatch):
    policy = CausalPolicy(write_tiny(tmp_path))
    size = sum(p.numel() for p in policy.parameters())
    monkeypatch.setattr(fused, "LARGEST", size)
    assert fits(policy.model)
    monkeypatch.setattr(fused, "LARGEST", size - 1)
    assert not fits(policy.model)


def test_mixed_precision_is_left_to_the_model(tmp_path):
    policy = CausalPolicy(write_tiny(tmp_path)).eval()
    assert policy.way is FusedRows
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        _, cache = policy.next_token_logits(TOKENS, TOKENS != 0)
    assert type(cache) is PaddedRows
    with torch.no_grad():
        _, cache = policy.next_token_logits(TOKENS, TOKENS != 0)
    assert type(cache) is FusedRows


def test_a_model_that_only_looks_like_it_is_found_out_by_the_probe(tmp_path):
    """Granite is of the same modules, and multiplies in between."""
    policy = CausalPolicy(write_family(tmp_path, "granite"), temperature=0.9)
    assert fits(policy.model)
    assert policy.way is PaddedRows
    check_sampling(policy, sample(policy))
