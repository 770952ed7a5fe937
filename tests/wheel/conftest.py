from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_with_dropout(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("dropout"), dropout=0.2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a run."""
    return tmp_path / "run"
