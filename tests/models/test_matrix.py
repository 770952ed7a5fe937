"""Families that keep positions, masks and memories in different ways say the same of a text: sampled, trained on, and read alone.

A plain single row, without padding, mask, positions or cache, is the truth: of every sampled token, of its log-prob, and of the
gradient. A family that does not agree with it has to be refused, by a message that names its class.
"""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_align.generation import CacheSampler
from lit_align.generation.noise import gumbel, row_keys
from lit_align.models import CausalPolicy, LoRA
from lit_align.models.reading import CHUNKED, PICKED
from lit_align.models.reading import LAYOUTS as ALL
from lit_align.types import EncodedPrompt, Prompt, Rollouts, Stream, UserError
from tests.models.families import FAMILIES, LAYOUTS, REFUSED, TARGETS, WAYS, write_family

STREAM, TEMPERATURE, K = Stream(0, "train", 0), 0.9, 2
PROMPTS = [(2, 5), (7,), (3, 4, 5, 6, 7, 8, 9, 10, 3)]
OPTIONS = ("whole", "checkpointed", "LoRA", "LoRA, checkpointed", "eager")
VARIED = ("llama", "gpt2", "gemma2", "mistral, a window", "mamba2")  # those that all options are tried with in the fast tests


def make_policy(folder, family, option="whole"):
    lora = LoRA(rank=2, alpha=4.0, targets=TARGETS.get(family, "all-linear")) if "LoRA" in option else None
    path = write_family(folder, family)
    attention = "eager" if option == "eager" else None
    policy = CausalPolicy(
        path, temperature=TEMPERATURE, lora=lora, gradient_checkpointing="checkpointed" in option, attn_implementation=attention
    )
    torch.manual_seed(2)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:  # begins at 0, where an adapter changes nothing
            torch.nn.init.normal_(parameter, std=0.2)
    return policy


def sample(policy: CausalPolicy, prompts=PROMPTS, length=12) -> Rollouts:
    encoded = [EncodedPrompt(Prompt(id=i, content=""), tokens) for i, tokens in enumerate(prompts)]
    with policy.inference():
        return CacheSampler(length).sample(policy, encoded, K, STREAM)


def alone(policy: CausalPolicy, rollouts: Rollouts, i: int, k: int) -> tuple[Tensor, Tensor]:
    """Logits of one response, ``[T, V]``, read after its prompt as a plain row, and its tokens ``[T]``."""
    prompt, response = (x[mask] for x, mask in rows_of(rollouts, i, k))
    row = torch.cat([prompt, response]).unsqueeze(0)
    return policy.model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1].float() / TEMPERATURE, response


def rows_of(rollouts, i, k):
    return (rollouts.prompt_tokens[i], rollouts.prompt_mask[i]), (rollouts.response_tokens[i, k], rollouts.response_mask[i, k])


def gradients(policy: CausalPolicy) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return found


def check_sampling(policy: CausalPolicy, rollouts: Rollouts) -> None:
    """Every token is the one that its noise picks from the plain row's logits, unless the best two tie to rounding error in one row."""
    keys = row_keys(STREAM, torch.arange(len(rollouts.prompts)), rollouts.occurrences, K)
    policy.eval()
    ties = 0
    for i, k in product(range(len(rollouts.prompts)), range(K)):
        with torch.no_grad():
            logits, response = alone(policy, rollouts, i, k)
        noise = torch.cat([gumbel(keys[i, k].view(1), step, logits.shape[-1]) for step in range(len(logits))])
        perturbed = logits + noise
        drawn = perturbed.gather(-1, response.unsqueeze(-1)).squeeze(-1)
        margins = perturbed.max(-1).values - drawn
        assert float(margins.max()) < 1e-4, f"prompt {i}, response {k}, token {int(margins.argmax())} is not the one that its noise picks"
        ties += bool(margins.any())
        expected = logits.log_softmax(-1).gather(-1, response.unsqueeze(-1)).squeeze(-1)
        assert_close(rollouts.sampling_logps[i, k][: len(response)], expected, atol=1e-4, rtol=0)
    assert ties <= 1


def check_training(policy: CausalPolicy, rollouts: Rollouts, layouts: tuple[str, ...]) -> None:
    """Log-probs and gradient of one weighted loss, in train mode and each of the layouts, against plain rows in eval mode."""
    weights = torch.linspace(0.5, 1.5, rollouts.response_mask.numel()).view(rollouts.response_mask.shape)
    policy.eval()
    said, loss = {}, torch.zeros(())
    for i, k in product(range(len(rollouts.prompts)), range(K)):
        logits, response = alone(policy, rollouts, i, k)
        said[i, k] = logits.log_softmax(-1).gather(-1, response.unsqueeze(-1)).squeeze(-1)
        loss = loss + (weights[i, k][: len(response)] * said[i, k]).sum()
    loss.backward()
    expected = gradients(policy)
    size = torch.cat([x.flatten() for x in expected.values()]).norm()
    assert float(size) > 1e-2
    policy.train()
    for layout in layouts:
        policy.layouts = (layout, PICKED)
        trained = policy(rollouts).token_logps
        for (i, k), logps in said.items():
            assert_close(trained[i, k][: len(logps)], logps, atol=1e-4, rtol=0)
        assert not trained[~rollouts.response_mask].any()
        (weights * trained).where(rollouts.response_mask, 0.0).sum().backward()
        found = gradients(policy)
        assert found.keys() == expected.keys()
        gap = torch.cat([(found[name] - x).flatten() for name, x in expected.items()]).norm()
        assert float(gap / size) < 1e-4


def check(folder, family, option):
    policy = make_policy(folder, family, option)
    rollouts = sample(policy)
    if option == "whole":  # checkpointing hangs hooks into a model, which is then read plainly
        assert policy.way.__name__ == WAYS.get(family, "PaddedRows")
    lengths = rollouts.response_mask.sum(-1).flatten()
    assert len(lengths.unique()) > 1, "rows end at different steps, so that some are dropped on the way"
    check_sampling(policy, rollouts)
    # Checkpointed models drop the cache and say nothing: the probe has to find that out.
    layouts = tuple(name for name in LAYOUTS.get(family, tuple(ALL)) if name != "prefix" or "checkpointed" not in option)
    policy.choose_layouts()
    assert policy.layouts == (*layouts, PICKED, CHUNKED)
    check_training(policy, rollouts, layouts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_the_same_sampled_trained_on_and_alone(tmp_path, family):
    check(tmp_path, family, "whole")


@pytest.mark.parametrize(("family", "option"), [(f, o) for f in VARIED for o in OPTIONS if o != "whole"])
def test_adapters_checkpointing_and_attention_change_nothing(tmp_path, family, option):
    check(tmp_path, family, option)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "option"), [(f, o) for f in FAMILIES if f not in VARIED for o in OPTIONS if o != "whole"])
def test_adapters_checkpointing_and_attention_change_nothing_in_any_family(tmp_path, family, option):
    check(tmp_path, family, option)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_nothing_serves_is_refused_by_name(tmp_path, family):
    with pytest.raises(UserError, match=REFUSED[family]):
        make_policy(tmp_path, family)
