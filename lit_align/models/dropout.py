"""Dropout, where an algorithm compares a policy with what it said without."""

from torch import nn


def switch_off_dropout(model: nn.Module) -> None:
    """Set every probability of dropout in ``model`` to 0, in place; the config that it is saved with stays as it was.

    Hugging Face's models keep them in ``nn.Dropout`` or, of attention, as a number of the module.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
