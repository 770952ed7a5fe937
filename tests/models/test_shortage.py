"""Running out of memory is an error, whatever was being tried: it chooses no layout and no way of sampling."""

import pytest
import torch
from transformers import LlamaForCausalLM, MistralForCausalLM

from lit_align.models import CausalPolicy, fused, fused_weights, static
from lit_align.models.shortage import out_of_memory
from tests.models.families import FAMILIES, LLAMA, write_family
from tests.models.test_matrix import sample
from tests.tiny import write_tiny


def allocate():
    """More than any address has bits for."""
    torch.empty(1 << 60, dtype=torch.uint8)


def raised(error):
    raise error


WAYS_TO_FAIL = {
    "GPU": lambda: raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    "driver": lambda: raised(RuntimeError("CUDA error: out of memory")),
    "library": lambda: raised(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    "CPU": allocate,
    "Python": lambda: raised(MemoryError()),
}


@pytest.fixture(params=["GPU", "CPU"])
def fail(request):
    return WAYS_TO_FAIL[request.param]


@pytest.mark.parametrize("name", WAYS_TO_FAIL)
def test_it_is_told_from_other_errors(name):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        WAYS_TO_FAIL[name]()
    assert out_of_memory(caught.value)
    other = RuntimeError("the end of the recording fails too")
    assert not out_of_memory(other)
    other.__context__ = caught.value
    assert out_of_memory(other)
    assert not out_of_memory(ValueError("a text about being out of memory"))


@pytest.fixture
def policy(tmp_path):
    return CausalPolicy(write_tiny(tmp_path))


@pytest.fixture
def windowed(tmp_path, monkeypatch, fail):
    """A model whose window is too long for a probe's texts, and of which there is no memory for a copy."""

    class Unique(MistralForCausalLM):
        def __init__(self, config):
            fail()

    monkeypatch.setitem(FAMILIES, "windowed", ("mistral", LLAMA | {"max_position_embeddings": 99, "sliding_window": 60}))
    policy = CausalPolicy(write_family(tmp_path, "windowed"))
    policy.model.__class__ = Unique
    return policy


def test_in_a_step_of_sampling(policy, fail):
    class Hungry(LlamaForCausalLM):
        def forward(self, input_ids=None, position_ids=None, past_key_values=None, **options):
            if input_ids.shape[1] == 1:
                fail()
            return super().forward(input_ids=input_ids, position_ids=position_ids, past_key_values=past_key_values, **options)

    policy.model.__class__ = Hungry
    with pytest.raises(RuntimeError, match="allocate"):
        _ = policy.way
    assert policy.decoding == ""


def test_in_a_layout(policy, fail):
    class Hungry(LlamaForCausalLM):
        def forward(self, attention_mask=None, **options):
            if attention_mask is not None and attention_mask.dim() == 4:
                fail()
            return super().forward(attention_mask=attention_mask, **options)

    policy.model.__class__ = Hungry
    with pytest.raises(RuntimeError, match="allocate"):
        policy.choose_layouts()
    assert policy.layouts == ()


def test_for_a_copy_to_sample_from(windowed):
    with pytest.raises(RuntimeError, match="allocate"):
        _ = windowed.way
    assert windowed.decoding == ""


def test_for_a_copy_to_train(windowed):
    with pytest.raises(RuntimeError, match="allocate"):
        windowed.choose_layouts()
    assert windowed.layouts == ()


def test_for_packed_matrices(policy, monkeypatch, fail):
    monkeypatch.setattr(fused_weights, "WIDE", 1)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: fail())
    with pytest.raises(RuntimeError, match="allocate"):
        _ = policy.way


@pytest.mark.parametrize(("ended", "said"), [(True, "allocate"), (False, "the end of the recording")])
def test_while_a_step_is_recorded(policy, monkeypatch, fail, ended, said):
    """While the model is tried and in a run; also where the recording then can't be ended."""
    monkeypatch.setattr(static, "DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(static, "_UNRECORDED", type(static._UNRECORDED)())
    monkeypatch.setattr(fused, "LARGEST", 0)
    assert policy.way is static.StaticRows

    def record(step, device):
        try:
            fail()
        finally:
            if not ended:
                raise RuntimeError("the end of the recording fails too")

    with monkeypatch.context() as short:
        short.setattr(static, "run_and_record", record)
        with pytest.raises(RuntimeError, match=said):
            sample(policy)
        other = CausalPolicy(policy.path)
        with pytest.raises(RuntimeError, match=said):
            _ = other.way
    assert static.fits(policy.model)
    assert other.way is static.StaticRows, "it says nothing of the model"
