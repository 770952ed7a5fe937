"""One case: agreement first, then both loops in turns, then the memory of each."""

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.vs_trl import floor, memory, ours, theirs
from benchmarks.vs_trl.agreement import check, moved
from benchmarks.vs_trl.case import Case
from benchmarks.vs_trl.floor import Machine, Size, floor_seconds
from benchmarks.vs_trl.summary import Spread, Turn, ratios, tokens_per_second
from benchmarks.vs_trl.turns import Relay
from benchmarks.vs_trl.world import make_world, weights_hash

WARM_UP, STEPS_ALONE = 1, 2  # the first step loads the reference and builds the loops

Result = dict[str, Any]
"""A line of the file of results."""


def measure(case: Case, texts: Sequence[str], steps: int, limit: float, peaks: bool) -> Result:
    """``steps`` rounds, or as many as begin within ``limit`` seconds; ``peaks`` measures memory too.

    Raises:
        Disagreement: if the two sides don't compute the same.
    """
    load, date = os.getloadavg(), datetime.now(UTC)
    torch.set_num_threads(case.threads)
    world, machine = make_world(case, texts), floor.measure(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shifted = theirs.Peer(case, world, root / "check", 1, model=moved(theirs.load(world)))
        agreement = check(case, world, root / "replay", shifted)
        del shifted
        policy, peer = ours.make_policy(case, world), theirs.Peer(case, world, root / "theirs", steps + WARM_UP)
        size, parameters = floor.size_of(policy.model), sum(p.numel() for p in policy.parameters())
        module, data = ours.make_module(case, policy), ours.make_data(case, world)
        relay = Relay(["trl", "ours"], steps, WARM_UP, limit)
        turns = relay.run(
            {
                "trl": peer.run,
                "ours": lambda end: ours.fit(module, data, root / "ours", steps + WARM_UP, [ours.Hand(end)]),
            },
            case.threads,
        )
    check_lengths(case, turns)
    return {
        "date": date.isoformat(timespec="minutes"),
        "case": asdict(case),
        "name": case.name,
        "parameters": parameters,
        "weights": weights_hash(world.model),
        "load": load[0],
        "agreement": agreement,
        "machine": asdict(machine),
        "n": len(turns["ours"]),
        "ratio": {clock: asdict(Spread.of(ratios(turns["trl"], turns["ours"], clock))) for clock in ("cpu", "wall")},
        "sides": {side: side_summary(case, size, machine, taken) for side, taken in turns.items()},
        "memory": memory.peaks(case) if peaks else {},
    }


def side_summary(case: Case, size: Size, machine: Machine, turns: Sequence[Turn]) -> dict[str, float]:
    """Medians of one side: seconds of a step, response tokens and how many of them a second, multiples of the floor."""
    return {
        "cpu": median(turn.cpu for turn in turns),
        "wall": median(turn.wall for turn in turns),
        "tokens": median(turn.response_tokens for turn in turns),
        "tokens_per_second": tokens_per_second(turns),
        "floors": median(turn.cpu / floor_seconds(case, size, turn, machine) for turn in turns),
    }


def check_lengths(case: Case, turns: dict[str, list[Turn]]) -> None:
    """Where lengths are forced, they must have been; there must be turns at all."""
    if not turns["ours"]:
        raise TimeoutError("no round ended in time")
    if case.forced and case.online:
        wanted = case.prompts * case.k * case.response_tokens
        short = {turn.response_tokens for taken in turns.values() for turn in taken} - {wanted}
        assert not short, f"forced lengths should give {wanted} tokens, got {short}"


def alone(case: Case, texts: Sequence[str], side: str) -> float:
    """MiB by which memory rises when one side takes two steps; called in a process of its own."""
    world, relay = make_world(case, texts), Relay([side], STEPS_ALONE, 0, math.inf)
    with tempfile.TemporaryDirectory() as folder:
        if side == "trl":
            model, before = theirs.load(world), memory.set_back()
            peer = theirs.Peer(case, world, Path(folder), STEPS_ALONE, model)
            relay.run({side: peer.run}, case.threads)
        else:
            module, before = ours.make_module(case, ours.make_policy(case, world)), memory.set_back()
            data = ours.make_data(case, world)
            relay.run({side: lambda end: ours.fit(module, data, Path(folder), STEPS_ALONE, [ours.Hand(end)])}, case.threads)
    return memory.peak() - before
