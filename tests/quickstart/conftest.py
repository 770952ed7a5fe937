"""What every telling of the story needs undone."""

import logging
from collections.abc import Iterator

import pytest

LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


@pytest.fixture(autouse=True)
def undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The quickstart settles a process down; this one has other tests."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("COLUMNS", "200")  # a table as wide as it wants
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
