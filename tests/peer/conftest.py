from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_align.algorithms import AlignmentModule
from lit_align.models import CausalPolicy
from tests.peer.ours import Run, make_policy, train
from tests.tiny import write_tiny

collect_ignore = ["theirs.py"]  # looked through for doctests it would be imported, TRL or not
Distance = Callable[[dict[str, Tensor], dict[str, Tensor]], float]


@pytest.fixture(scope="session")
def trl() -> Any:
    """Imported only where a test of this folder runs: it takes seconds."""
    return pytest.importorskip("trl", reason="TRL is not installed: run `make test-peer`, or install the extra `peer`")


@pytest.fixture(scope="session")
def theirs(trl: Any) -> Any:
    """`tests.peer.theirs`, which imports TRL."""
    return import_module("tests.peer.theirs")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("tiny"), context=512, initializer_range=0.15)


@pytest.fixture
def ours(tmp_path: Path, model: str) -> Callable[..., Run]:
    """Train an algorithm, made from a policy, on a rollout of its own; each in a new folder."""
    numbers = count()

    def run(algorithm: Callable[[CausalPolicy], AlignmentModule], folder: str = model, **options: Any) -> Run:
        return train(tmp_path / f"ours{next(numbers)}", algorithm(make_policy(folder)), **options)

    return run


@pytest.fixture
def peer(tmp_path: Path, model: str, theirs: Any) -> Callable[..., Any]:
    """The same rollout for TRL."""
    return lambda run, folder=model, **options: theirs.Peer(tmp_path / "theirs", folder, run, **options)


@pytest.fixture(scope="session")
def distance() -> Distance:
    """Of two gradients, relative to the length of the second."""

    def relative(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        assert one.keys() == other.keys()
        a, b = (torch.cat([gradient[name].flatten() for name in sorted(one)]).double() for gradient in (one, other))
        return float((a - b).norm() / b.norm())

    return relative
