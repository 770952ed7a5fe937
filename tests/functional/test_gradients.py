"""The norm of a gradient is the same number, however it lies on the ranks."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lit_align.functional import global_sum, squared_norm_share

GRADIENTS = [torch.arange(15.0).reshape(5, 3) - 4, torch.tensor([0.5, -2.0]), torch.tensor(3.0)]
SQUARED = sum(float(gradient.square().sum()) for gradient in GRADIENTS)


def test_alone_it_is_the_sum_of_squares():
    assert squared_norm_share(GRADIENTS).item() == pytest.approx(SQUARED, rel=1e-6)
    assert squared_norm_share(iter(GRADIENTS)).item() == pytest.approx(SQUARED, rel=1e-6)
    assert squared_norm_share([]).item() == 0.0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_bad_entry_shows(bad):
    assert not squared_norm_share([*GRADIENTS, torch.tensor([1.0, bad])]).isfinite()


def test_a_bfloat16_gradient_is_summed_in_float32():
    share = squared_norm_share([torch.full((1000,), 1.0, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)])
    assert share.dtype == torch.float32
    assert share.item() == pytest.approx(1001.0, rel=1e-6)


def one_rank(rank: int, folder: str) -> None:
    """Whole, cut and copied gradients on two ranks; 5 rows are cut into 3 and 2."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    big, small, number = GRADIENTS
    held = {
        "copied": GRADIENTS,
        "cut": [distribute_tensor(big, mesh, [Shard(0)]), distribute_tensor(small, mesh, [Shard(0)]), number],
        "replicated": [distribute_tensor(big, mesh, [Replicate()]), distribute_tensor(small, mesh, [Shard(0)]), number],
        "bad on the second": [torch.tensor(math.inf if rank else 1.0)],
    }
    torch.save({name: global_sum(squared_norm_share(gradients)) for name, gradients in held.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_agree_with_one_process(tmp_path: Path):
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert {name: value.item() for name, value in one.items()} == {name: value.item() for name, value in two.items()}
    for name in ("copied", "cut", "replicated"):
        assert one[name].item() == pytest.approx(SQUARED, rel=1e-6), name
    assert one["bad on the second"].isinf()
