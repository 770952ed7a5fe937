"""The weights that an engine is sent are those that the policy would save."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig

from lit_align.models import CausalPolicy, LoRA
from lit_align.types import Policy, UserError
from tests.test_types import Stub
from tests.tiny import write_tiny


def saved(policy: Policy, folder: Path) -> dict[str, torch.Tensor]:
    policy.save(str(folder))
    return load_file(folder / "model.safetensors")


def moved(policy: CausalPolicy) -> CausalPolicy:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []


@pytest.mark.parametrize(
    "options", [{}, {"lora": LoRA(rank=2)}, {"lora": LoRA(rank=2, targets=["q_proj"])}, {"lora": LoRA(rank=2), "dtype": "bfloat16"}]
)
@pytest.mark.parametrize("tied", [False, True])
def test_they_are_those_of_the_saved_folder(options: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    policy = moved(CausalPolicy(write_tiny(tmp_path / "model", tie_word_embeddings=tied), **options))
    before = {name: value.clone() for name, value in policy.named_parameters()}
    found = dict(policy.weights())
    assert not any(weight.requires_grad for weight in found.values())
    assert_same(found, saved(policy, tmp_path / "saved"))
    assert_same(dict(policy.named_parameters()), before)
    changed = dict(CausalPolicy(str(tmp_path / "model"), dtype=options.get("dtype", "float32")).weights())
    assert any(not torch.equal(found[name], weight) for name, weight in changed.items()), "the adapter is in them"


def test_those_of_the_reference_are_without_the_adapter(tmp_path: Path) -> None:
    policy = moved(CausalPolicy(write_tiny(tmp_path / "model"), lora=LoRA(rank=2)))
    assert_same(dict(policy.make_reference().policy.weights()), load_file(tmp_path / "model" / "model.safetensors"))
    assert any(
        not layer.disable_adapters for layer in policy.modules() if type(layer).__name__ == "Linear" and "lora" in type(layer).__module__
    )


def test_experts_that_are_one_tensor_in_memory_are_sent_as_the_files_have_them(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    config = MixtralConfig(
        vocab_size=14, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=2, bos_token_id=2, eos_token_id=1, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    policy = CausalPolicy(folder)
    found, expected = dict(policy.weights()), saved(policy, tmp_path / "saved")
    assert found.keys() != dict(policy.model.named_parameters()).keys()
    assert_same(found, expected)


def test_a_policy_that_gives_none_says_what_to_sample_with() -> None:
    with pytest.raises(UserError, match=r"Stub gives its weights to no engine.*CacheSampler"):
        Stub().weights()
