"""Sampling noise against an independent implementation in big integers, and against the distributions it should have."""

import hashlib
import math

import pytest
import torch
from torch.testing import assert_close

from lit_align.generation.noise import gumbel, row_keys
from lit_align.types import Stream

WORD = 1 << 64
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
STREAM = Stream(seed=3, name="train", rollout=5)
IDS = [0, 1, 2**63 - 1, -(2**63), -1, 2318810854768876553]
OCCURRENCES = [0, 0, 7, 1, 2**40, 3]


def splitmix(x):
    """The next output of splitmix64 from state ``x``, in Python integers."""
    z = (x + GOLDEN) % WORD
    z = ((z ^ (z >> 30)) * FIRST) % WORD
    z = ((z ^ (z >> 27)) * SECOND) % WORD
    return z ^ (z >> 31)


def state_before(z):
    """Whose output is ``z``: every step of splitmix64 can be undone."""

    def undo(y, shift):
        x = y
        for _ in range(64 // shift):
            x = y ^ (x >> shift)
        return x

    z = undo(z, 31) * pow(SECOND, -1, WORD) % WORD
    z = undo(z, 27) * pow(FIRST, -1, WORD) % WORD
    return (undo(z, 30) - GOLDEN) % WORD


def unsigned(tensor):
    return [value % WORD for value in tensor.flatten().tolist()]


def signed(value):
    return value - WORD if value >= WORD // 2 else value


def many_keys(count, stream=STREAM):
    ids = torch.arange(count // 4)
    return row_keys(stream, ids, torch.zeros_like(ids), 4).flatten()


def test_the_independent_splitmix_is_the_published_one():
    assert [splitmix(i * GOLDEN % WORD) for i in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert all(splitmix(state_before(z)) == z for z in (0, 1, WORD - 1, 0x123456789ABCDEF0))


def test_keys_are_a_chain_of_splitmix_over_stream_prompt_occurrence_and_response():
    start = int.from_bytes(hashlib.blake2b(b"3/train/5", digest_size=8).digest(), "big")
    expected = []
    for prompt_id, occurrence in zip(IDS, OCCURRENCES, strict=True):
        key = splitmix((splitmix((prompt_id + start) % WORD) + occurrence) % WORD)
        expected += [splitmix((key + k) % WORD) for k in range(3)]
    keys = row_keys(STREAM, torch.tensor(IDS), torch.tensor(OCCURRENCES), 3)
    assert keys.shape == (6, 3)
    assert unsigned(keys) == expected


@pytest.mark.parametrize("step", [0, 1, 4095])
def test_noise_is_the_gumbel_of_the_upper_31_bits(step):
    keys = many_keys(32)
    expected = []
    for key in unsigned(keys):
        row = splitmix((key + step) % WORD)
        uniforms = [((splitmix((row + token) % WORD) >> 33) + 0.5) / 2**31 for token in range(20)]
        expected.append([-math.log(-math.log1p(-u)) for u in uniforms])
    noise = gumbel(keys, step, 20)
    assert noise.dtype == torch.float32
    assert_close(noise, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("bits", [0, 1, WORD - 1, WORD - (1 << 38), WORD - (1 << 40)])
def test_the_ends_of_the_hash_are_finite_noise(bits):
    """At the upper end float32 would round to u = 1, whose noise is -inf: even a certain token would lose."""
    step, token = 11, 3
    key = (state_before((state_before(bits) - token) % WORD) - step) % WORD
    noise = gumbel(torch.tensor([signed(key)]), step, 4)[0, token]
    assert noise.isfinite()
    u = min(((bits >> 33) + 0.5) / 2**31, 1 - 2**-24)
    assert_close(noise.double(), torch.tensor(-math.log(-math.log1p(-u)), dtype=torch.float64), atol=0.1, rtol=0)


def test_a_change_of_any_part_of_the_key_is_another_key():
    streams = [Stream(seed, name, rollout) for seed in (0, 1) for name in ("train", "eval") for rollout in range(4)]
    ids, occurrences = (grid.flatten() for grid in torch.meshgrid(torch.arange(50), torch.arange(3), indexing="ij"))
    keys = torch.cat([row_keys(stream, ids, occurrences, 8).flatten() for stream in streams])
    assert len(keys.unique()) == len(keys) == 16 * 150 * 8


def test_a_key_does_not_depend_on_who_else_is_asked_for():
    ids, occurrences = torch.tensor(IDS), torch.tensor(OCCURRENCES)
    keys = row_keys(STREAM, ids, occurrences, 4)
    assert torch.equal(row_keys(STREAM, ids.flip(0), occurrences.flip(0), 4), keys.flip(0))
    assert torch.equal(row_keys(STREAM, ids[2:3], occurrences[2:3], 2), keys[2:3, :2])
    noise = gumbel(keys.flatten(), 9, 50)
    assert torch.equal(gumbel(keys.flatten()[5:6], 9, 50)[0], noise[5])
    assert torch.equal(gumbel(keys.flatten(), 9, 13), noise[:, :13])


def test_steps_and_rows_have_unrelated_noise():
    keys = many_keys(4000)
    noise = [gumbel(keys, 0, 8), gumbel(keys, 1, 8), gumbel(many_keys(4000, Stream(3, "train", 6)), 0, 8)]
    columns = torch.cat(noise, 1).T  # [24, 4000]
    correlation = torch.corrcoef(columns) - torch.eye(24)
    assert correlation.abs().max() < 5 / math.sqrt(4000)


def test_noise_ignores_the_global_generator_and_leaves_it_alone():
    keys = many_keys(8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = gumbel(keys, 0, 10)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(gumbel(many_keys(8), 0, 10), one)


def test_noise_has_the_moments_of_a_gumbel():
    noise = gumbel(many_keys(200_000), 0, 5).double()
    assert noise.isfinite().all()
    count = noise.numel()
    assert abs(noise.mean() - 0.5772156649) < 5 * 1.2825 / math.sqrt(count)
    assert abs(noise.var() - math.pi**2 / 6) < 5 * 3.46 / math.sqrt(count)  # sd of a squared deviation: 1.6449 sqrt(5.4 - 1)
    assert abs((noise < 0).double().mean() - math.exp(-1)) < 5 * 0.48 / math.sqrt(count)


def test_the_largest_perturbed_logit_is_a_draw_from_the_softmax():
    logits = torch.tensor([3.0, 2.0, 1.5, 0.0, 0.0, -1.0, -2.0, -4.0, -math.inf])
    draws = 200_000
    drawn = (logits + gumbel(many_keys(draws), 2, 9)).argmax(-1)
    counts, expected = drawn.bincount(minlength=9).double(), logits.double().softmax(-1) * draws
    assert counts[8] == 0
    chi_square = ((counts - expected).square() / expected)[:8].sum()
    assert chi_square < 24.3  # 7 degrees of freedom: exceeded once in a thousand; the seed is fixed
