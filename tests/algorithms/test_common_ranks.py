"""Two processes take the steps of one, with every algorithm: what it measures is global, whichever rank a prompt is on."""

import math
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy

from lit_align.data import MixedDataModule
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import Annotation, Annotator, Prompt, Rollouts
from tests.algorithms.cases import CASES
from tests.pairs import ListPairs
from tests.tiny import PROMPTS, make_data, write_tiny
from tests.wheel.harness import fit, patchy


@final
class Judge(Annotator):
    """Scores, not of everything, and for whoever reads them preferences of every two responses that have one."""

    def __init__(self, prefers: bool, demonstrates: bool) -> None:
        self.prefers, self.demonstrates = prefers, demonstrates

    def annotate(self, rollouts: Rollouts) -> Annotation:
        scores = torch.tensor([unevenly(prompt, texts) for prompt, texts in zip(rollouts.prompts, rollouts.texts, strict=True)])
        scores = scores.where(scores.isnan(), 1.0) if self.demonstrates else scores
        apart = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).sigmoid()
        preferences = apart.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool), math.nan)
        return Annotation(scores=scores.nan_to_num(), valid=~scores.isnan(), preferences=preferences if self.prefers else None)


def unevenly(prompt: Prompt, texts: Sequence[str]) -> list[float]:
    """Long prompts spread scores three times as far, so that no rank's statistics are the other's."""
    return [(3.0 if len(prompt.content) > 2 else 1.0) * score for score in patchy(prompt, texts)]


def moved(policy: CausalPolicy) -> CausalPolicy:
    """The same some nats from the reference, or statistics of the divergence would be 0 on both ranks."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return policy


def mixed(judge: Annotator, micro: int) -> MixedDataModule:
    """Rows of all sources."""
    rows = ListPairs([(prompt, ["ab", "ja d"], [1.0, 0.0]) for prompt in PROMPTS])
    chances = {"relabel": 0.2, "fresh_self": 0.3, "fresh_annotated": 0.3}
    sampler = CacheSampler(max_new_tokens=8)
    return MixedDataModule(rows, sampler, judge, prompts_per_rollout=8, micro_batch_prompts=micro, max_response_tokens=10, **chances)


def trained(name: str, model: str, folder: Path, ranks: int) -> dict[str, Any]:
    """Two rollouts of one optimizer step each, from a policy that has left its reference: the weights, and what was logged."""
    case, trainer = CASES[name], {"max_epochs": 2}
    judge, micro = Judge(case.judged, case.demonstrated), 8 // ranks
    if ranks > 1:
        trainer |= {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": ranks}
    module = case.module(moved(CausalPolicy(model)), lr=0.03)
    root = folder / f"{name.replace(' ', '-')}-{ranks}"
    data = mixed(judge, micro) if case.sources else make_data(annotator=judge, micro_batch_prompts=micro)
    result = fit(root, model, module=module, trainer=trainer, data=data)
    return {
        "weights": torch.cat([p.detach().flatten() for p in module.policy.parameters()]),
        "metrics": result.recorder.metrics,
        "valid": int(result.recorder.batches[0].valid.sum()),
    }


def one_rank(rank: int, model: str, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.save({name: trained(name, model, folder, 2) for name in CASES}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def model(folder: Path) -> str:
    return write_tiny(folder / "model")


@pytest.fixture(scope="module")
def both(model: str, folder: Path) -> list[dict[str, Any]]:
    """What each rank ended with; started once for all cases."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_rank, (model, folder, port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_steps_of_one(name: str, both: list[dict[str, Any]], model: str, folder: Path) -> None:
    alone, (first, second) = trained(name, model, folder, 1), (rank[name] for rank in both)
    assert torch.equal(first["weights"], second["weights"])
    start = torch.cat([p.detach().flatten() for p in moved(CausalPolicy(model)).parameters()])
    distance = float((alone["weights"] - start).norm())
    assert distance > 1e-3
    assert float((alone["weights"] - first["weights"]).norm()) < 1e-3 * distance
    for ours, others, one in zip(first["metrics"], second["metrics"], alone["metrics"], strict=True):
        assert ours == others
        assert ours == pytest.approx(one, rel=1e-3, abs=1e-3)


def test_the_ranks_differ(both: list[dict[str, Any]]) -> None:
    """Or a mean of their means would be right."""
    assert both[0]["grpo"]["valid"] != both[1]["grpo"]["valid"]
