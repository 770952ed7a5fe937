"""Where the processor time of one of lit_align's steps goes: clocks around a few calls, in the very steps that are compared.

What is in none of these calls is what Lightning, the data module and the algorithm's own bookkeeping cost.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.vs_trl.summary import Spread
from benchmarks.vs_trl.turns import EndOfTurn
from lit_align.algorithms import AlignmentModule
from lit_align.data import OnlineDataModule
from lit_align.data.base import AlignmentDataModule

PARTS = ("sampling", "labels", "reference", "forward", "backward", "optimizer")
LOOP = "loop and data"


@final
class Clock:
    """Processor seconds by part and turn. While a part runs inside another, the other's time stands still: no second counts twice, and
    all parts together are the turn.

    Attributes:
        turns: seconds of each part, of each turn that has ended.
    """

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        self.turns: list[dict[str, float]] = []
        self._now, self._open = now, [LOOP]
        self._begin()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time is that of ``part``."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self._charge()
            self._open.append(part)
            try:
                return call(*arguments, **options)
            finally:
                self._charge()
                self._open.pop()

        return wrapped

    def around(self, end_of_turn: EndOfTurn) -> EndOfTurn:
        """The same function, before which a turn ends and after which the next one begins; the first one begins now."""

        def wrapped(prompt_tokens: int, response_tokens: int) -> bool:
            self._charge()
            self.turns.append(dict(self._spent))
            going = end_of_turn(prompt_tokens, response_tokens)
            self._begin()
            return going

        self._begin()
        return wrapped

    def _begin(self) -> None:
        self._spent, self._since = defaultdict[str, float](float), self._now()

    def _charge(self) -> None:
        now = self._now()
        self._spent[self._open[-1]] += now - self._since
        self._since = now


@final
class Watch(Callback):
    """Puts a clock around what a step can't do without. The reference and the optimizer are there once training starts, which is in the
    first turn; that one does not count."""

    def __init__(self, clock: Clock, module: AlignmentModule, data: AlignmentDataModule) -> None:
        self._clock = clock
        self._wrap("forward", module.policy, "forward")
        self._wrap("backward", module, "backward")
        self._wrap("optimizer", module, "clip_gradients")
        if isinstance(data, OnlineDataModule):
            self._wrap("sampling", data.sampler, "sample")
            self._wrap("labels", data.annotator, "annotate")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, AlignmentModule)
        if pl_module.needs.reference:
            self._wrap("reference", pl_module.reference, "token_logps")
        (optimizer,) = trainer.optimizers
        step = optimizer.step  # runs the whole training step as its closure
        stepped = self._clock.timed("optimizer", lambda closure: step(closure=self._clock.timed(LOOP, closure)))
        setattr(optimizer, "step", stepped)  # noqa: B010
        self._wrap("optimizer", optimizer, "zero_grad")

    def _wrap(self, part: str, owner: Any, name: str) -> None:
        setattr(owner, name, self._clock.timed(part, getattr(owner, name)))


def profile(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean seconds of each part that took any.

    >>> profile([{"forward": 1.0, "loop and data": 0.25}, {"forward": 2.0, "loop and data": 0.75}])
    {'forward': 1.5, 'loop and data': 0.5}
    """
    return {part: mean(turn.get(part, 0.0) for turn in turns) for part in (*PARTS, LOOP) if any(part in turn for turn in turns)}


def loop_share(turns: Sequence[Mapping[str, float]]) -> Spread:
    """What Lightning and the data plane take of a turn.

    >>> loop_share([{"forward": 3.0, "loop and data": 1.0}])
    Spread(median=0.25, low=0.25, high=0.25)
    """
    return Spread.of([turn[LOOP] / sum(turn.values()) for turn in turns])
