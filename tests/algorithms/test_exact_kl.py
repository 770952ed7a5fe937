"""The divergence of the next token that a training step can ask for: of the right tokens, in the right direction, with its gradient."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import SAIL, MovingAverage
from lit_align.algorithms.exact_kl import ROWS, read_with_kl
from lit_align.models import CausalPolicy, LoRA
from lit_align.types import KL, AlignmentBatch, Policy
from tests.models.batches import as_batch, make_rollouts
from tests.tiny import adamw, write_tiny
from tests.wheel.harness import differing, fit
from tests.wheel.test_mixed import mixed

PROMPTS = [[2, 4], [2, 5, 6, 7], [2], [2, 9], [2, 8, 8], [2, 3]]
RESPONSES = [[[4, 5, 1], [6]], [[7, 1], []], [[3, 3, 3, 3, 1], [9, 1]], [[5, 1], [6, 7]], [[1], [12, 11]], [[10, 4, 1], [4]]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def moved(policy: Policy, size: float = 0.1) -> Policy:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p += size * torch.randn(p.shape, generator=generator)
    return policy


def batch() -> AlignmentBatch:
    assert len(PROMPTS) > ROWS
    return as_batch(make_rollouts(PROMPTS, RESPONSES, 0, extra=(1, 2)))


def plain_kl(ours: Any, theirs: Any, prompt: list[int], response: list[int], direction: KL, temperature: float) -> torch.Tensor:
    """Of one row without padding, position or mask: at every token of the response."""
    rows = torch.tensor([[*prompt, *response]])
    tables = [model(input_ids=rows).logits[0, len(prompt) - 1 : -1] / temperature for model in (ours, theirs)]
    one, other = (table.log_softmax(-1) for table in (tables if direction == "policy_reference" else tables[::-1]))
    return (one.exp() * (one - other)).sum(-1)


@pytest.mark.parametrize("direction", ["reference_policy", "policy_reference"])
def test_it_is_that_of_single_rows_at_the_token_that_comes_next(direction: KL, tiny: str) -> None:
    policy = moved(CausalPolicy(tiny, temperature=1.3))
    assert isinstance(policy, CausalPolicy)
    reference, together = policy.make_reference(), batch()
    output = read_with_kl(policy, reference, together, direction)
    assert_close(output.token_logps, policy(together).token_logps)
    assert output.kl is not None
    for i, prompt in enumerate(PROMPTS):
        for k, response in enumerate(RESPONSES[i]):
            expected = plain_kl(policy.model, reference.policy.model, prompt, response, direction, 1.3)  # pyright: ignore[reportAttributeAccessIssue]
            assert_close(output.kl[i, k, : len(response)], expected, atol=1e-5, rtol=1e-4)
            assert output.kl[i, k, len(response) :].abs().sum() == 0
    assert output.kl.max() > 0.01
    weight = next(policy.parameters())
    (ours,) = torch.autograd.grad(output.kl.sum(), weight)
    rows = [
        plain_kl(policy.model, reference.policy.model, p, r, direction, 1.3).sum()  # pyright: ignore[reportAttributeAccessIssue]
        for p, group in zip(PROMPTS, RESPONSES, strict=True)
        for r in group
    ]
    (theirs,) = torch.autograd.grad(torch.stack(rows).sum(), weight)
    assert theirs.abs().max() > 1e-2
    assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"reference_offload": True}, {"lora": LoRA(rank=2, alpha=4.0)}])
def test_every_kind_of_reference_has_a_vocabulary(options: dict[str, Any], tiny: str) -> None:
    """Whose entry at the token that was said is that token's log-prob, and which adds up to 1."""
    policy = moved(CausalPolicy(tiny, **options))
    reference, together = policy.make_reference(), batch()
    table = reference.vocabulary_logps(together)
    assert not table.requires_grad
    said = table.gather(-1, together.response_tokens.unsqueeze(-1)).squeeze(-1)
    assert torch.equal(said.where(together.response_mask, 0.0), reference.token_logps(together))
    assert_close(table.exp().sum(-1)[together.response_mask], torch.ones(int(together.response_mask.sum())))
    same = read_with_kl(reference.policy, reference, together, "reference_policy").kl
    assert same is not None
    assert same.abs().max() < 1e-6


@pytest.mark.parametrize("anchor", [{}, {"anchor": MovingAverage(0.5)}])
def test_a_price_in_a_run_holds_the_policy_back(anchor: dict[str, Any], tiny: str, tmp_path: Path) -> None:
    """And says how far it has gone; the step of a responses' subset reads as much."""
    ends, trainer = [], {"max_epochs": 4, "accumulate_grad_batches": 4}
    for price in (0.0, 3.0):
        module = SAIL(CausalPolicy(tiny), reference_kl=price, optimizer=adamw(), **anchor)
        result = fit(tmp_path / f"{price}", tiny, module=module, data=mixed(), trainer=trainer)
        ends.append(result)
    assert "kl/from_reference" not in ends[0].recorder.metrics[-1]
    assert ends[1].recorder.metrics[-1]["kl/from_reference"] > 0
    assert differing(ends[0].state, ends[1].state)
    together, reference = batch(), ends[0].module.initial_reference()
    gone = [read_with_kl(end.module.policy, reference, together, "reference_policy").kl for end in ends]
    assert gone[0] is not None
    assert gone[1] is not None
    assert gone[1].sum() < 0.7 * gone[0].sum()


def test_what_is_not_used_is_not_read(tiny: str) -> None:
    module = SAIL(moved(CausalPolicy(tiny)), reference_kl=1.0)
    module._reference = module.policy.make_reference()
    together = batch()
    together = replace(together, valid=together.valid & (torch.arange(6) % 2 == 0).unsqueeze(-1))
    output, whole = module._read(together), read_with_kl(module.policy, module.reference, together, "reference_policy")
    assert output.kl is not None
    assert whole.kl is not None
    assert_close(output.kl[::2], whole.kl[::2])
    assert output.kl[1::2].abs().sum() == 0


def test_two_more_vocabularies_are_kept_for_every_response_token_and_no_third(tiny: str) -> None:
    """Beside what the policy's own forward keeps, the backward pass finds what both say of response tokens, and nothing between."""
    policy = moved(CausalPolicy(tiny))
    reference, together = policy.make_reference(), batch()

    def kept(read: Callable[[], object]) -> int:
        """Numbers in tensors as wide as the vocabulary that the graph holds."""
        seen: dict[int, torch.UntypedStorage] = {}  # held, so that no two have one address

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.shape[-1] == 14 and tensor.is_floating_point():
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            read()
        return sum(storage.nbytes() for storage in seen.values()) // torch.float32.itemsize

    more = kept(lambda: read_with_kl(policy, reference, together, "reference_policy")) - kept(lambda: policy(together, vocabulary=True))
    assert more == 2 * 14 * int(together.response_mask.sum())
