"""One case: agreement first, then both loops in turns, then the memory of each."""

import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from benchmarks.vs_trl import floor, memory, ours
from benchmarks.vs_trl.agreement import check, moved
from benchmarks.vs_trl.case import Case
from benchmarks.vs_trl.floor import Machine, Size, floor_seconds
from benchmarks.vs_trl.parts import Clock, Watch, loop_share, profile
from benchmarks.vs_trl.plan import Planned
from benchmarks.vs_trl.results import Result, asked, code_hash
from benchmarks.vs_trl.summary import Spread, Turn, median_between, ratios, tokens_per_second
from benchmarks.vs_trl.turns import Loop, Relay
from benchmarks.vs_trl.world import World, make_world, weights_hash

WARM_UP, STEPS_ALONE = 1, 2  # the first step loads the reference and builds the loops


def measure(line: Planned, texts: Sequence[str], limit: float) -> Result:
    """As many rounds as are planned, or as begin within ``limit`` seconds; each process that measures memory has as long.

    Raises:
        Disagreement: if TRL and lit_align don't compute the same.
        TimeoutError: if no round ended in time.
    """
    case = line.case
    torch.set_num_threads(case.threads)
    world, clocks = make_world(case, texts), dict[str, Clock]()
    load, date, start = os.getloadavg(), datetime.now(UTC), time.monotonic()
    machine = floor.measure(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        root, steps = Path(folder), line.steps + WARM_UP
        agreement, loops = {}, dict[str, Loop]()
        for side in case.sides:
            if side == "trl":
                agreement = agree(case, world, root)
                loops[side] = peer_loop(case, world, root / side, steps)
            else:
                clocks[side] = Clock()
                own = case if side == "ours" else replace(case, algorithm=side)
                loops[side] = own_loop(own, world, root / side, steps, clocks[side])
        relay = Relay(list(case.sides), line.steps, WARM_UP, limit - (time.monotonic() - start))
        turns = relay.run(loops, case.threads)
    check_lengths(case, turns)
    model = ours.make_policy(case, world).model
    size = floor.size_of(model)
    first, second = (turns[side] for side in case.sides)
    parts = {side: clock.turns[WARM_UP : WARM_UP + len(first)] for side, clock in clocks.items()}
    return {
        "date": date.isoformat(timespec="minutes"),
        "case": asdict(case),
        "name": case.name,
        "asked": asked(line),
        "code": code_hash(),
        "parameters": model.num_parameters(),
        "weights": weights_hash(world.model),
        "load": load[0],
        "agreement": agreement,
        "machine": asdict(machine),
        "n": len(first),
        "between": median_between(ratios(first, second, "cpu")),
        "ratio": {clock: asdict(Spread.of(ratios(first, second, clock))) for clock in ("cpu", "wall")},
        "sides": {side: side_summary(case, size, machine, taken) for side, taken in turns.items()},
        "parts": {side: profile(taken) for side, taken in parts.items()},
        "loop": {side: asdict(loop_share(taken)) for side, taken in parts.items()},
        "memory": memory.peaks(case, limit) if line.memory else {},
    }


def agree(case: Case, world: World, root: Path) -> dict[str, float]:
    """Distances between what the two sides compute.

    Raises:
        Disagreement: if they are too large.
    """
    from benchmarks.vs_trl import theirs

    return check(case, world, root / "replay", theirs.Peer(case, world, root / "check", 1, model=moved(theirs.load(world))))


def peer_loop(case: Case, world: World, root: Path, steps: int) -> Loop:
    """TRL's."""
    from benchmarks.vs_trl import theirs

    return theirs.Peer(case, world, root, steps).run


def own_loop(case: Case, world: World, root: Path, steps: int, clock: Clock) -> Loop:
    """lit_align's, with a clock around its parts."""
    module, data = ours.make_module(case, ours.make_policy(case, world)), ours.make_data(case, world)
    watch = Watch(clock, module, data)
    return lambda end: ours.fit(module, data, root, steps, [watch, ours.Hand(clock.around(end))])


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
    if not all(turns.values()):
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
            from benchmarks.vs_trl import theirs

            model, before = theirs.load(world), memory.set_back()
            peer = theirs.Peer(case, world, Path(folder), STEPS_ALONE, model)
            relay.run({side: peer.run}, case.threads)
        else:
            module, before = ours.make_module(case, ours.make_policy(case, world)), memory.set_back()
            data = ours.make_data(case, world)
            relay.run({side: lambda end: ours.fit(module, data, Path(folder), STEPS_ALONE, [ours.Hand(end)])}, case.threads)
    return memory.peak() - before
