"""Dynamic sampling: a prompt whose responses all score the same makes way for the next one. https://arxiv.org/abs/2503.14476"""

from collections.abc import Callable, Sequence

import torch

from lit_align.functional.advantages import has_spread
from lit_align.functional.distributed import global_sum
from lit_align.types import Annotation, EncodedPrompt


def groups_with_spread(
    annotation: Annotation,
    rows: Sequence[int],
    total: int,
    budget: int,
    draw: Callable[[int], list[EncodedPrompt]],
    label: Callable[[list[EncodedPrompt]], Annotation],
    device: torch.device,
) -> tuple[list[int], dict[str, float]]:
    """Which groups to train on, after a search for ones with spread.

    Every row of the rollout without spread gets the next prompt of the reading, in the order of the rows, and so on in rounds until
    all have spread or ``budget`` is spent; a row that found none keeps the prompt that it began with. A row's prompts are
    answered by the rank that the row belongs to, so that nothing but who is still searching travels between ranks, all leave
    the search together, and which prompts are drawn and kept does not depend on how many ranks there are.

    Args:
        annotation: of this rank's rows, on the CPU.
        rows: their numbers in the rollout of all ranks.
        total: rows of that rollout.
        budget: prompts that may be drawn on top, on all ranks together; positive.
        draw: so many next prompts, the same on every rank.
        label: answers and annotates prompts of this rank.
        device: of the process group.

    Returns:
        For each of this rank's rows the number of its group among all that were labelled here, those of ``annotation`` first and then
        those of each call of ``label``; and the rollout metrics of the search.
    """
    kept, labelled, drawn = list(range(len(rows))), len(rows), 0
    searching = _everyones(
        [row for row, ok in zip(rows, has_spread(annotation.scores, annotation.valid), strict=True) if not ok], total, device
    )
    while trying := searching[: budget - drawn]:
        prompts = dict(zip(trying, draw(len(trying)), strict=True))
        drawn += len(trying)
        mine = [row for row in trying if row in rows]
        found = []
        if mine:
            answer = label([prompts[row] for row in mine])
            for group, (row, ok) in enumerate(zip(mine, has_spread(answer.scores, answer.valid), strict=True), start=labelled):
                if ok:
                    kept[rows.index(row)] = group
                    found.append(row)
            labelled += len(mine)
        settled = set(_everyones(found, total, device))
        searching = [row for row in searching if row not in settled]
    return kept, {"rollout/extra_prompts": drawn, "rollout/without_spread": len(searching)}


def _everyones(rows: list[int], total: int, device: torch.device) -> list[int]:
    """Row numbers of all ranks, in order."""
    marked = torch.zeros(total, dtype=torch.long)
    marked[rows] = 1
    return global_sum(marked.to(device)).nonzero().flatten().tolist()
