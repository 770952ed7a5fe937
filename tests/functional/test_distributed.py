"""Sums, means and spreads over ranks equal those over all rows in one process."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

from lit_align.functional import global_mean, global_std, global_sum

VALUES = torch.tensor([[3.0, math.nan, math.nan, 5.0], [2.5, -4.0, 8.0, math.inf], [math.nan] * 4])
VALID = VALUES.isfinite()
KEPT = VALUES[VALID]
SHARES = (slice(0, 1), slice(1, 3))  # unequal: averaging the means of ranks would be wrong


@pytest.mark.parametrize(
    "value", [torch.tensor(2.5), torch.tensor([[1, 2], [3, 4]]), torch.zeros(0), torch.tensor([1.5], dtype=torch.float64)]
)
def test_alone_the_sum_is_the_value(value):
    total = global_sum(value)
    assert torch.equal(total, value)
    assert total.dtype == value.dtype
    assert total.data_ptr() != value.data_ptr() or value.numel() == 0


def test_the_sum_is_a_new_tensor_without_gradient():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    total = global_sum(value)
    assert not total.requires_grad
    total += 10
    assert value.tolist() == [1.0, 2.0]


def test_bools_are_counted():
    assert global_sum(torch.tensor(True)).dtype == torch.int64


def test_alone_mean_and_spread_are_those_of_the_valid_entries():
    assert_close(global_mean(VALUES, VALID), KEPT.mean())
    assert_close(global_std(VALUES, VALID), KEPT.std(correction=0))


def test_without_a_valid_entry_both_are_zero():
    assert global_mean(VALUES[2:], VALID[2:]).item() == global_std(VALUES[2:], VALID[2:]).item() == 0.0


def test_results_are_float32_unless_the_values_are_float64():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.int64, torch.float32), (torch.float64, torch.float64)):
        values, valid = torch.tensor([1, 2], dtype=dtype), torch.tensor([True, True])
        assert global_mean(values, valid).dtype == global_std(values, valid).dtype == expected
        assert (global_mean(values, valid).item(), global_std(values, valid).item()) == (1.5, 0.5)


def test_no_gradient_flows():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    valid = torch.tensor([True, True])
    assert not global_mean(values, valid).requires_grad
    assert not global_std(values, valid).requires_grad


@pytest.mark.parametrize("value", [0.1, -1e6, 12345.678])
def test_equal_values_have_exactly_no_spread(value):
    assert global_std(torch.full((7, 3), value), torch.ones(7, 3, dtype=torch.bool)).item() == 0.0


def test_a_small_spread_around_a_large_mean_survives():
    values = 1e7 + torch.tensor([0.0, 1e-3, 2e-3, 3e-3], dtype=torch.float64)
    assert global_std(values, torch.ones(4, dtype=torch.bool)).item() == pytest.approx(1e-3 * math.sqrt(1.25), rel=1e-5)


@pytest.mark.parametrize("function", [global_mean, global_std])
def test_a_mask_of_another_shape_is_refused(function):
    with pytest.raises(ValueError, match=r"\(3, 4\), got \(4,\)"):
        function(VALUES, VALID[0])


def one_rank(rank: int, folder: str) -> None:
    """What each process writes down: sums, means and spreads of its own share."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    reductions = 0
    all_reduce = dist.all_reduce

    def counted(*args):
        nonlocal reductions
        reductions += 1
        return all_reduce(*args)

    dist.all_reduce = counted
    values, valid = VALUES[SHARES[rank]], VALID[SHARES[rank]]
    mine = torch.tensor([float(rank + 1), 10.0], requires_grad=True)
    transposed = torch.arange(6).reshape(2, 3).T  # not contiguous
    before = {
        "sum": global_sum(mine),
        "flag": global_sum(torch.tensor(rank == 1)),
        "transposed": global_sum(transposed),
        "mean": global_mean(values, valid),
    }
    earlier = reductions
    results = before | {
        "std": global_std(values, valid),
        "reductions": torch.tensor(reductions - earlier),
        "constant": global_std(torch.full((3 + rank,), 0.1), torch.ones(3 + rank, dtype=torch.bool)),
        "nobody": global_std(values, torch.zeros_like(valid)),
        "rank 1 only": global_mean(torch.full((2,), float(rank)), torch.full((2,), rank == 1)),
        "mine": mine.detach(),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_agree_with_one_process(tmp_path: Path):
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in ranks[0].keys() - {"mine"}:
        assert torch.equal(ranks[0][name], ranks[1][name]), name
    results = ranks[0]
    assert results["sum"].tolist() == [3.0, 20.0]
    assert results["flag"].item() == 1
    assert results["transposed"].tolist() == [[0, 6], [2, 8], [4, 10]]
    assert_close(results["mean"], KEPT.mean())
    assert_close(results["std"], KEPT.std(correction=0))
    assert results["reductions"].item() == 1
    assert results["constant"].item() == results["nobody"].item() == 0.0
    assert results["rank 1 only"].item() == 1.0
    assert [rank["mine"].tolist() for rank in ranks] == [[1.0, 10.0], [2.0, 10.0]]  # the arguments are not changed
