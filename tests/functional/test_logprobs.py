"""Log-probabilities: what counts, what does not, and in which precision."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import logprobs, response_logps, token_logps
from lit_align.functional.logprobs import full_precision


def logits_and_tokens(vocabulary: int = 7, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 5, vocabulary, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(vocabulary, (2, 3, 5), generator=generator)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_token_logps_are_the_log_of_the_probability_of_each_token(temperature):
    logits, tokens = logits_and_tokens()
    actual = token_logps(logits, tokens, temperature)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        row = [math.exp(h / temperature) for h in logits[tuple(index)].tolist()]
        assert actual[tuple(index)].item() == pytest.approx(math.log(row[tokens[tuple(index)]] / sum(row)), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_token_probabilities_of_a_row_sum_to_one(temperature):
    logits, _ = logits_and_tokens()
    every_token = [token_logps(logits, torch.full(logits.shape[:-1], v), temperature).exp() for v in range(logits.shape[-1])]
    assert_close(sum(every_token), torch.ones(2, 3, 5, dtype=torch.float64))


def test_gradient_of_a_token_logp_is_what_was_drawn_minus_what_was_expected():
    logits = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    token_logps(logits, torch.tensor([1]), temperature=2.0).sum().backward()
    drawn = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    assert_close(logits.grad, (drawn - (logits / 2).softmax(-1).detach()) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_some_rows_at_a_time_give_what_all_at_once_do(dtype, monkeypatch):
    """30 rows, 4 at a time: values and gradients, which are there for a second backward pass too."""
    monkeypatch.setattr(logprobs, "CHUNK", 4 * 7)
    monkeypatch.setattr(logprobs, "FEWEST", 1)
    logits, tokens = logits_and_tokens(dtype=dtype)
    logits[..., 3] = -math.inf
    tokens[tokens == 3] = 2
    logits.requires_grad_()
    weights = torch.linspace(-1, 2, tokens.numel(), dtype=torch.float64).view(tokens.shape)
    plain = (full_precision(logits) / 0.7).log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    (expected,) = torch.autograd.grad((plain * weights).sum(), logits)
    found = token_logps(logits, tokens, 0.7)
    assert torch.equal(found, plain)
    for _ in range(2):
        (gradient,) = torch.autograd.grad((found * weights).sum(), logits, retain_graph=True)
        assert gradient.dtype == dtype
        assert_close(gradient, expected, atol=1e-2 if dtype == torch.bfloat16 else 1e-12, rtol=0)


@pytest.mark.parametrize(("rows", "width"), [(5, 1 << 21), (200, 8192), (0, 8)])
def test_rows_are_taken_so_that_a_cache_holds_them(rows, width):
    """But not one by one, however wide they are."""
    parts = [part.stop - part.start for part in logprobs._parts(torch.empty(rows, width, device="meta"))]
    assert parts == {5: [64], 200: [128, 128], 0: []}[rows]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_logits_are_normalised_in_float32(dtype):
    logits, tokens = logits_and_tokens(vocabulary=500, dtype=dtype)
    actual = token_logps(logits, tokens, temperature=0.7)
    assert actual.dtype == torch.float32
    assert_close(actual.double(), token_logps(logits.double(), tokens, temperature=0.7), atol=1e-5, rtol=0)


def test_float64_stays_float64():
    assert token_logps(*logits_and_tokens()).dtype == torch.float64
    assert response_logps(torch.zeros(2, dtype=torch.float64), torch.tensor([True, False])).dtype == torch.float64


def test_large_logits_and_impossible_tokens_are_safe():
    logits = torch.tensor([[1e4, -1e4, -math.inf], [-1e4, -1e4, -math.inf]])
    assert token_logps(logits, torch.tensor([0, 1])).tolist() == pytest.approx([0.0, -math.log(2)])
    assert token_logps(logits[:1], torch.tensor([2])).item() == -math.inf


def test_equal_models_give_equal_bits():
    logits, tokens = logits_and_tokens(dtype=torch.float32)
    assert torch.equal(token_logps(logits, tokens, 0.9), token_logps(logits.clone(), tokens.clone(), 0.9))


def test_misaligned_tokens_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 5, 7\).*\(2, 3, 4\)"):
        token_logps(logits_and_tokens()[0], logits_and_tokens()[1][..., 1:])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_without_log_probabilities_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        token_logps(*logits_and_tokens(), temperature=temperature)


def test_a_response_is_the_sum_of_its_tokens_up_to_eos():
    eos = pad = 0
    logits, _ = logits_and_tokens()
    tokens = torch.tensor([3, 5, eos, pad, pad])
    mask = torch.tensor([True, True, True, False, False])  # EOS counts once, also where it is the padding token
    logps = logits[0, 0].log_softmax(-1)
    expected = logps[0, 3] + logps[1, 5] + logps[2, eos]
    assert_close(response_logps(token_logps(logits[0, 0], tokens), mask), expected)


def test_more_padding_on_either_side_changes_nothing():
    logps = torch.tensor([[-1.0, -2.5, -0.25], [-3.0, -4.0, -5.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    padded, padded_mask = (torch.nn.functional.pad(x, (2, 4), value=value) for x, value in ((logps, -9.0), (mask, False)))
    assert response_logps(logps, mask).tolist() == response_logps(padded, padded_mask).tolist() == [-3.5, -12.0]


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_what_is_masked_enters_neither_value_nor_gradient(rubbish):
    logps = torch.tensor([-1.0, rubbish, -2.0], requires_grad=True)
    total = response_logps(logps, torch.tensor([True, False, True]))
    total.backward()
    assert total.item() == -3.0
    assert logps.grad is not None
    assert logps.grad.tolist() == [1.0, 0.0, 1.0]


def test_bfloat16_token_logps_are_summed_in_float32():
    logps = torch.full((1000,), -1.0, dtype=torch.bfloat16)  # a bfloat16 sum cannot count beyond 256
    total = response_logps(logps, torch.ones(1000, dtype=torch.bool))
    assert total.dtype == torch.float32
    assert total.item() == -1000.0


def test_an_empty_response_has_probability_one():
    assert response_logps(torch.full((2, 3), math.nan), torch.zeros(2, 3, dtype=torch.bool)).tolist() == [0.0, 0.0]
