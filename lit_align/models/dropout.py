"""Dropout, where a policy is compared with what it says without."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def switch_off_dropout(model: nn.Module) -> None:
    """Set every probability of dropout in ``model`` to 0, in place; the config that it is saved with stays as it was.

    Hugging Face's models keep them in ``nn.Dropout`` or, of attention and of whole layers, as a number of the module.
    """
    for module, name, _ in _probabilities(model):
        setattr(module, name, 0.0)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """The same for a while; every probability comes back."""
    before = _probabilities(model)
    switch_off_dropout(model)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _probabilities(model: nn.Module) -> list[tuple[nn.Module, str, float]]:
    """Where they are, and what."""
    found: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        named = {name: value for name, value in vars(module).items() if "dropout" in name or name == "layerdrop"}
        if isinstance(module, nn.Dropout):
            named["p"] = module.p
        found += [(module, name, value) for name, value in named.items() if isinstance(value, float)]
    return found
