"""What an engine is asked for, what is made of its answers, and when it is sent weights."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_align.generation import EngineSampler, Written
from lit_align.models import CausalPolicy
from lit_align.types import EncodedPrompt, Policy, Prompt, Rollouts, Stream, UserError
from tests.engines import PolicyEngine
from tests.tiny import write_tiny

PROMPTS = [EncodedPrompt(Prompt(id=10 + i, content=""), tokens) for i, tokens in enumerate([(2, 5), (7,), (3, 4, 5, 6), (2, 2, 11)])]
TRAIN = Stream(seed=0, name="train", rollout=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def policy(model: str) -> CausalPolicy:
    return CausalPolicy(model, temperature=0.8).eval()


def sample(sampler: EngineSampler, policy: Policy, prompts: Any = PROMPTS, stream: Stream = TRAIN) -> Rollouts:
    with policy.inference():
        return sampler.sample(policy, prompts, 3, stream)


def test_rollouts_are_what_the_engine_wrote_and_the_policy_reads_the_same(model: str, policy: CausalPolicy) -> None:
    found = sample(EngineSampler(PolicyEngine(model), max_new_tokens=8), policy)
    mask = found.response_mask
    assert found.response_tokens.shape == found.sampling_logps.shape == (4, 3, mask.sum(-1).max())
    assert found.prompt_mask.sum(-1).tolist() == [2, 1, 4, 3]
    assert found.prompt_tokens[1].tolist() == [0, 0, 0, 7]
    with torch.no_grad():
        said = policy(found).token_logps
    assert torch.equal(found.sampling_logps, found.engine_logps)
    assert_close(found.engine_logps, said.where(mask, 0.0), atol=1e-5, rtol=0)
    assert (found.engine_logps.where(~mask, 0.0) == 0).all()
    assert (found.policy_version, found.engine_staleness, found.max_engine_factor) == (2, 0, 2.0)
    assert found.finished.any()
    assert [policy.decode(tokens[keep].tolist()) for tokens, keep in zip(found.response_tokens[0], mask[0], strict=True)] == [
        *found.texts[0]
    ]


def test_a_response_depends_on_its_seed_alone(model: str, policy: CausalPolicy) -> None:
    sampler = EngineSampler(PolicyEngine(model), max_new_tokens=8)
    whole, last = sample(sampler, policy), sample(sampler, policy, PROMPTS[2:])
    assert whole.texts[2:] == last.texts
    assert sample(sampler, policy, stream=Stream(1, "train", 2)).texts != whole.texts
    again = sample(sampler, policy, [EncodedPrompt(p.prompt, p.tokens, occurrence=1) for p in PROMPTS])
    assert again.texts != whole.texts
    assert all(0 <= seed < 2**63 for seed in sampler.engine.seeds)  # pyright: ignore[reportAttributeAccessIssue]


def test_stop_strings_cut_what_the_engine_wrote_on(model: str, policy: CausalPolicy) -> None:
    plain = sample(EngineSampler(PolicyEngine(model), max_new_tokens=12), policy)
    cut = sample(EngineSampler(PolicyEngine(model), max_new_tokens=12, stop=["a"]), policy)
    stopped = 0
    for i, texts in enumerate(plain.texts):
        for k, text in enumerate(texts):
            assert cut.texts[i][k] == text.split("a")[0]
            if "a" in text:
                length = int(cut.response_mask[i, k].sum())
                assert length == plain.response_tokens[i, k].tolist().index(3) + 1, "the token that completes it is the response's"
                assert cut.finished[i, k]
                assert torch.equal(cut.engine_logps[i, k, :length], plain.engine_logps[i, k, :length])
                stopped += 1
    assert 0 < stopped < 12


def versions(model: str, policies: list[Policy], streams: list[Stream], every: int) -> list[bool]:
    """Whether each call was one before which weights were sent."""
    engine = PolicyEngine(model)
    sampler, sent = EngineSampler(engine, max_new_tokens=1, synchronise_every=every), []
    for policy, stream in zip(policies, streams, strict=True):
        before = engine.loads
        sample(sampler, policy, PROMPTS[:1], stream)
        sent.append(engine.loads > before)
    return sent


def test_weights_are_sent_when_they_are_due(model: str, policy: CausalPolicy) -> None:
    train = [Stream(0, "train", rollout) for rollout in (0, 0, 1, 2, 3, 3, 0)]
    assert versions(model, [policy] * 7, train, every=1) == [True, False, True, True, True, False, True]
    assert versions(model, [policy] * 7, train, every=3) == [True, False, False, False, True, False, True], "0 after 3 is another run"
    assert versions(model, [policy] * 3, [Stream(0, "eval", 0)] * 3, every=3) == [True] * 3, "nobody says whether it has changed"
    other = CausalPolicy(model)
    assert versions(model, [policy, other, other], train[:3], every=3) == [True, True, False]


def test_a_new_run_and_a_failure_send_them_again(model: str, policy: CausalPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PolicyEngine(model)
    sampler = EngineSampler(engine, max_new_tokens=1)
    sample(sampler, policy)
    sampler.setup()
    sample(sampler, policy)
    assert engine.loads == 2

    def fails(weights: Iterator[tuple[str, Tensor]]) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "load", fails)
        with pytest.raises(RuntimeError, match="no memory"):
            sample(sampler, policy, stream=Stream(0, "train", 3))
    assert engine.version is None
    sample(sampler, policy, stream=Stream(0, "train", 2))
    assert (engine.loads, engine.version) == (3, 2)
    sampler.close()
    assert engine.closed == 1


GOOD = Written([3, 1], [-1.0, -2.0], True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([[GOOD] * 3] * 3, r"3 responses to each of 4 prompts, got \[3, 3, 3\]"),
        ([[GOOD] * 2] * 4, r"got \[2, 2, 2, 2\]"),
        ([[GOOD, GOOD, Written([], [], True)]] * 4, "got 0 tokens"),
        ([[GOOD, GOOD, Written([3], [], True)]] * 4, r"got 1 tokens with the log-probs \[\]"),
        ([[GOOD, GOOD, Written([3], [float("nan")], True)]] * 4, "a finite log-prob of each"),
        ([[GOOD, GOOD, Written([3] * 9, [-1.0] * 9, True)]] * 4, "1 to 8 tokens"),
    ],
)
def test_an_answer_that_is_none_is_refused(
    answer: Any, said: str, model: str, policy: CausalPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PolicyEngine, "generate", lambda *_, **__: answer)
    with pytest.raises(UserError, match=rf"PolicyEngine\.generate should return .*{said}"):
        sample(EngineSampler(PolicyEngine(model), max_new_tokens=8), policy)


def test_weights_that_are_spread_over_ranks_are_refused(model: str, policy: CausalPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalPolicy, "weights", lambda _: iter([("model.norm.weight", torch.zeros(0))]))
    with pytest.raises(UserError, match=r"model\.norm\.weight is spread over ranks"):
        sample(EngineSampler(PolicyEngine(model)), policy)


@pytest.mark.parametrize("options", [{"synchronise_every": 0}, {"max_factor": 0.0}, {"max_factor": float("nan")}, {"stop": [""]}])
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], model: str) -> None:
    with pytest.raises(UserError):
        EngineSampler(PolicyEngine(model), **options)
