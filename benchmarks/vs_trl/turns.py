"""Two training loops in one process, one optimizer step each in turn, timed.

Each loop runs in a thread of its own and calls ``end_of_turn`` where a step is over; there it stands still until the other has taken
one. What is timed is everything between two such calls: rollout, labels, forwards, the optimizer, the loop itself and its callbacks.
"""

import time
from collections.abc import Callable, Mapping
from threading import Semaphore, Thread
from typing import final

import torch

from benchmarks.vs_trl.summary import Turn

EndOfTurn = Callable[[int, int], bool]
"""Takes prompt tokens and response tokens of the step that ends, and says whether to go on."""
Loop = Callable[[EndOfTurn], None]


@final
class Relay:
    """Lets one of several threads run at a time, in a fixed order.

    Args:
        sides: their names.
        turns: how many are timed of each side.
        warm_up: how many are taken before.
        limit: seconds of wall time after which no new round begins.
    """

    def __init__(self, sides: list[str], turns: int, warm_up: int, limit: float) -> None:
        self.turns: dict[str, list[Turn]] = {side: [] for side in sides}
        self.errors: list[BaseException] = []
        self._gates, self._alive = {side: Semaphore(0) for side in sides}, list(sides)
        self._wanted, self._warm_up = turns + warm_up, warm_up
        self._end, self._over = time.monotonic() + limit, False
        self._random = {side: torch.get_rng_state() for side in sides}  # each side draws as if it were alone

    def run(self, loops: Mapping[str, Loop], threads: int) -> dict[str, list[Turn]]:
        """Run all loops to their ends; the turns of each side, without the warm-up.

        Raises:
            BaseException: what a loop raised; the others are ended first.
        """
        workers = [Thread(target=self._work, args=(side, loop, threads), daemon=True) for side, loop in loops.items()]
        for worker in workers:
            worker.start()
        self._gates[self._alive[0]].release()
        for worker in workers:
            worker.join()
        if self.errors:
            raise self.errors[0]
        complete = min(len(turns) for turns in self.turns.values())
        return {side: turns[self._warm_up : complete] for side, turns in self.turns.items()}

    def _work(self, side: str, loop: Loop, threads: int) -> None:
        self._gates[side].acquire()
        torch.set_num_threads(threads)  # a setting of each thread
        self._resume(side)
        try:
            loop(lambda prompt_tokens, response_tokens: self._end_of_turn(side, prompt_tokens, response_tokens))
        except BaseException as error:
            self.errors.append(error)
            self._over = True
        following = self._following(side)
        self._alive.remove(side)
        if following != side:
            self._gates[following].release()

    def _end_of_turn(self, side: str, prompt_tokens: int, response_tokens: int) -> bool:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.turns[side].append(Turn(wall, cpu, prompt_tokens, response_tokens))
        if side == self._alive[-1] and time.monotonic() > self._end:
            self._over = True
        self._random[side] = torch.get_rng_state()
        self._gates[self._following(side)].release()
        self._gates[side].acquire()
        self._resume(side)
        return not self._over and len(self.turns[side]) < self._wanted

    def _resume(self, side: str) -> None:
        torch.set_rng_state(self._random[side])
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _following(self, side: str) -> str:
        return self._alive[(self._alive.index(side) + 1) % len(self._alive)]
