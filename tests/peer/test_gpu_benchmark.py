"""The script for a GPU runs TRL's trainers too, with a toy on the CPU."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from benchmarks.gpu import command
from benchmarks.gpu.case import SHAPES, TOY, Algorithm, write_model

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_a_loop_of_trl_is_timed(algorithm: Algorithm, lora: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl", reason="TRL is not installed: run `make test-peer`, or install the extra `peer`")
    monkeypatch.setitem(SHAPES, "toy", replace(SHAPES["toy"], lora=lora))
    device = torch.device("cpu")
    write_model(tmp_path, TOY.shape, TOY.prompt_tokens + TOY.tokens, device, torch.bfloat16)
    line = command.peer(algorithm, TOY, tmp_path, 60.0, device, 16 * (8 + 8))
    assert line["n"] == 2
    assert line["rollout_tokens_per_second"] == pytest.approx(16 * 8 / line["rollout_seconds"])
    assert line["training_tokens_per_second"] == pytest.approx(16 * 16 / line["training_seconds"])
