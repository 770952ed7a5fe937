"""Two processes log what one does, both the same, and stop together."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.callbacks import EarlyStopping

from callbacks import JudgeEvaluation, KLMonitor, SampleTable, Throughput, WeightClipping
from lit_align.annotators import FunctionAnnotator
from lit_align.data import ListPrompts
from tests.callbacks.doubles import fit
from tests.tiny import PROMPTS, make_data, vowels

WATCHED = ("weights/", "kl/", "judge/", "reward/zero", "train/gradient_norm")


def run(root: Path, model: str, ceiling: float, ranks: int = 1) -> dict[str, Any]:
    judge = JudgeEvaluation(FunctionAnnotator(vowels), ListPrompts(PROMPTS[:7]), every_n_rollouts=1)  # 4 and 3 for two ranks
    stopper = EarlyStopping("judge/win_rate", mode="max", patience=9, check_on_train_epoch_end=True)
    trainer, curves = fit(
        root,
        model,
        [KLMonitor(ceiling), WeightClipping(), SampleTable(), Throughput(), judge, stopper],
        data=make_data(micro_batch_prompts=4 // ranks),
        max_epochs=4,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
    )
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(WATCHED)}
    return {"step": trainer.global_step, "metrics": metrics, "curves": curves}


def one_rank(rank: int, folder: str, model: str, ceiling: float, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    found = run(Path(folder) / "two", model, ceiling, ranks=2)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_log_what_one_process_does(tmp_path, model):
    free = run(tmp_path / "free", model, 1e6)["curves"]["kl/reference"]
    assert free[0] < free[1] < free[2]
    ceiling = (free[1] + free[2]) / 2
    alone = run(tmp_path / "one", model, ceiling)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(one_rank, (str(tmp_path), model, ceiling, port), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["step"] == second["step"] == alone["step"] == 4
    assert first["metrics"] == second["metrics"]
    assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-3, abs=1e-4)
    assert {"weights/effective_sample_size", "weights/largest_share", "kl/reference_standard_error", "judge/win_rate_low"} <= set(
        first["metrics"]
    )
    speeds = [{name: curve for name, curve in found["curves"].items() if name.startswith("throughput/")} for found in (first, alone)]
    assert speeds[0].keys() == speeds[1].keys()
    assert all(0 < value < 1e9 for curve in speeds[0].values() for value in curve.values())
    assert {p.name for p in (tmp_path / "two" / "samples").iterdir()} == {
        f"rollout-{i:06d}{r}.jsonl" for i in range(3) for r in ("", "-rank-1")
    }
