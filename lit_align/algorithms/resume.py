"""Where a resumed epoch goes on."""

from typing import Any


def rewind(loop: dict[str, Any], accumulate: int) -> None:
    """Point the state of Lightning's fit loop at the micro-batch that follows the last optimizer step."""
    steps = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["current"]["completed"]
    progress, position = loop["epoch_loop.batch_progress"], steps * accumulate
    if any(progress["current"][name] != position for name in ("ready", "started", "processed")):
        for name, count in progress["current"].items():
            progress["total"][name] += position - count
            progress["current"][name] = position
        progress["is_last_batch"] = False
    loop["state_dict"]["combined_loader"] = [{"position": position}]
