"""What vLLM is asked for. It is a double: that the real one takes these arguments is written in its documentation, and not run here."""

import os
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_align.generation import EngineSampler, VLLMEngine, vllm_engine
from lit_align.models import CausalPolicy
from lit_align.types import EncodedPrompt, Prompt, Stream, UserError
from tests.tiny import write_tiny


@dataclass
class Double:
    """Writes token 5 as often as its seed says, then the end if there is room."""

    settings: dict[str, Any]
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    asked: list[tuple[list[int], Any]] = field(default_factory=list)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.calls.append(method)
        (name,) = kwargs
        assert name == "weights_iterator"
        self.weights = {name: weight.clone() for name, weight in kwargs["weights_iterator"]}

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")

    def generate(self, prompts: list[dict[str, Any]], params: list[Any], use_tqdm: bool) -> list[Any]:
        self.asked = [(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, params, strict=True)]
        return [SimpleNamespace(outputs=[self.write(one)]) for one in params]

    def write(self, one: Any) -> Any:
        tokens = ([5] * (one.seed % 4) + [one.stop_token_ids[0]])[: one.max_tokens]
        logps = [{token: SimpleNamespace(logprob=-0.5 * token)} for token in tokens]
        return SimpleNamespace(token_ids=tuple(tokens), logprobs=logps, finish_reason="length" if tokens[-1] == 5 else "stop")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Double]:
    """Every engine that was started."""
    started: list[Double] = []

    def start(**settings: Any) -> Double:
        started.append(Double(settings))
        return started[-1]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=start, SamplingParams=SimpleNamespace))  # pyright: ignore[reportArgumentType]
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    return started


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CausalPolicy:
    return CausalPolicy(write_tiny(tmp_path_factory.mktemp("model")), temperature=0.7).eval()


def test_what_it_is_asked_for(made: list[Double], policy: CausalPolicy) -> None:
    engine = VLLMEngine("my-model", 0.4, {"dtype": "bfloat16", "max_model_len": 64})
    sampler = EngineSampler(engine, max_new_tokens=3)
    prompts = [EncodedPrompt(Prompt(id=i, content=""), tokens) for i, tokens in enumerate([(2, 5), (7,)])]
    with policy.inference():
        found = sampler.sample(policy, prompts, 4, Stream(0, "train", 0))
        sampler.sample(policy, prompts, 4, Stream(0, "train", 1))
    (vllm,) = made
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    own = {"seed": 0, "logprobs_mode": "processed_logprobs", "generation_config": "vllm"}
    assert vllm.settings == {"model": "my-model", "gpu_memory_utilization": 0.4, "dtype": "bfloat16", "max_model_len": 64} | own
    assert vllm.calls == ["reload_weights", "reset_prefix_cache"] * 2
    assert {name: weight.tolist() for name, weight in vllm.weights.items()} == {n: w.tolist() for n, w in policy.model.named_parameters()}
    assert [tokens for tokens, _ in vllm.asked] == [[2, 5]] * 4 + [[7]] * 4
    first = dict(vars(vllm.asked[0][1]))
    assert first.pop("seed") >= 0
    expected = {"temperature": 0.7, "max_tokens": 3, "logprobs": 0, "stop_token_ids": [1], "ignore_eos": True, "detokenize": False}
    assert first == expected
    seeds = [one.seed for _, one in vllm.asked]
    assert len(set(seeds)) == 8
    assert found.engine_logps is not None
    assert torch.equal(found.engine_logps, (-0.5 * found.response_tokens).where(found.response_mask, 0.0))
    assert torch.equal(found.finished, (found.response_tokens == 1).any(-1))
    assert 0 < found.finished.sum() < 8


def test_it_lets_go_and_starts_again(made: list[Double], policy: CausalPolicy) -> None:
    engine = VLLMEngine("my-model")
    for version in (0, 1):
        engine.synchronise(version, policy.weights())
        engine.close()
        assert engine.version is None
    assert len(made) == 2


def test_without_vllm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, policy: CausalPolicy) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"pip install 'lit-align\[vllm\]'"):
        VLLMEngine("my-model").synchronise(0, policy.weights())


def test_several_processes_are_refused(made: list[Double], monkeypatch: pytest.MonkeyPatch, policy: CausalPolicy) -> None:
    monkeypatch.setattr(vllm_engine, "world_size", lambda: 2)
    with pytest.raises(UserError, match="one training process, but 2 train"):
        VLLMEngine("my-model").synchronise(0, policy.weights())


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_share_of_the_memory_is_one(share: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        VLLMEngine("my-model", share)


def test_what_it_sets_itself_can_not_be_set_again() -> None:
    with pytest.raises(UserError, match="sets logprobs_mode, seed of"):
        VLLMEngine("my-model", options={"seed": 3, "logprobs_mode": "raw_logprobs"})
