"""Iterative data smoothing: labels that follow what the model has come to believe."""

from collections.abc import Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_align.functional.distributed import world_size
from lit_align.functional.reward_model import smoothed_labels


@final
class SmoothedLabels(nn.Module):
    """The label of every pair that was ever trained on, by its prompt's id; equal on all ranks, and in ``state_dict``.

    A pair begins with the label that the data give it. Each time it comes round again its label moves: see `smoothed_labels`.

    Args:
        rate: how far, from 0 to 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._labels: dict[int, Tensor] = {}  # [K, K] each, on the CPU

    def __len__(self) -> int:
        return len(self._labels)

    def moved(self, prompt_ids: Tensor, pairs: Tensor, margins: Tensor) -> Tensor:
        """Labels to train on now, ``[B, K, K]``, NaN where there is no pair. A collective: every rank calls it once per rollout.

        Args:
            prompt_ids: ``[B]``.
            pairs: labels as the data give them, NaN where there is no pair, ``[B, K, K]``.
            margins: of the model as it is now, ``[B, K, K]``.
        """
        ids = prompt_ids.tolist()
        known = _stacked([self._labels.get(i, torch.full((0, 0), torch.nan)) for i in ids], pairs.shape[-1]).to(pairs)
        labels = smoothed_labels(known, margins, rate=self.rate)
        labels = labels.where(~known.isnan(), pairs).where(~pairs.isnan(), torch.nan)
        everyone = [dict(zip(ids, labels.float().cpu().unbind(), strict=True))]
        if world_size() > 1:
            everyone *= world_size()
            dist.all_gather_object(everyone, everyone[dist.get_rank()])
        for found in everyone:
            self._labels |= found
        return labels

    def get_extra_state(self) -> dict[str, Tensor]:
        """Ids ``[N]`` and labels ``[N, K, K]``."""
        labels = list(self._labels.values())
        stacked = _stacked(labels, max((len(label) for label in labels), default=0))
        return {"ids": torch.tensor(list(self._labels), dtype=torch.long), "labels": stacked}

    def set_extra_state(self, state: Any) -> None:
        """Take them back."""
        self._labels = dict(zip(state["ids"].tolist(), state["labels"].cpu().unbind(), strict=True))


def _stacked(labels: Sequence[Tensor], k: int) -> Tensor:
    """``[N, K, K]``: a rollout is as wide as its longest list, and beyond a prompt's own there are no pairs."""
    stacked = torch.full((len(labels), k, k), torch.nan)
    for row, label in zip(stacked, labels, strict=True):
        size = min(len(label), k)
        row[:size, :size] = label[:size, :size]
    return stacked
