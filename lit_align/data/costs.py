"""What the labels of a run cost: its ledger and its budget, for all ranks together."""

from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_align.data.budget import Budget, Use
from lit_align.data.journal import LabelJournal
from lit_align.data.ledger import Ledger
from lit_align.data.spend import Prices, Spend
from lit_align.functional.distributed import global_sum
from lit_align.types import Stream, UserError


@final
class Costs:
    """Watches what is spent while fitting. Every rank makes one, and calls the same methods.

    Args:
        trainer: whose folder gets ``ledger/``, and which is ended where the budget is.
        journal: the labels of the run.
        prices: of models.
        budget: None is no limit.

    Attributes:
        ledger: the meter of this rank.

    Raises:
        UserError: if there is a budget of money, and no price.
    """

    def __init__(self, trainer: Any, journal: LabelJournal, prices: Prices, budget: Budget | None) -> None:
        if budget is not None and budget.money is not None and not prices:
            raise UserError(
                "budget.money needs prices, and there are none. Set data.init_args.prices, money per million tokens, for the model that is "
                "asked for labels: {MODEL: {prompt: ..., completion: ...}}; or limit labels or tokens instead."
            )
        self._trainer, self._journal, self._budget = trainer, journal, budget
        self._folder, self._device = Path(trainer.default_root_dir) / "ledger", trainer.strategy.root_device
        money_matters = budget is not None and budget.money is not None
        self.ledger = Ledger(self._folder, trainer.global_rank, trainer.world_size, prices, money_matters)

    def admit(self, stream: Stream, labels: int) -> Ledger:
        """The meter of a rollout of at most ``labels`` on all ranks together, if the budget has room for those of them that are not in the
        journal yet.

        Raises:
            StopIteration: if it has none and rollouts were trained on: Lightning's way to end a fit where it is.
            UserError: if it has none for the first rollout of this fit, or it is one of money and a model that was asked has no price.
        """
        self.ledger.rollout = stream.rollout
        if self._budget is not None:
            spend = self.ledger.spend().everyones(self._device)
            if self._budget.money is not None and spend.unpriced:
                raise UserError(
                    f"budget.money needs to know what was spent, but of {spend.calls:.0f} calls {spend.unpriced:.0f} were of models that "
                    f"have no price. Set data.init_args.prices of all models in {self._folder} (column model), or limit labels or tokens."
                )
            used = Use(self.labels_used(), spend.tokens, spend.money)
            shortage = self._budget.shortage(used, labels - self._journal.labels_read_of(stream))
            if shortage is not None:
                self._end(f"Rollout {stream.rollout} is not started: {shortage}.")
        return self.ledger

    def report(self, rollout: int) -> tuple[Spend, dict[str, float]]:
        """What a rollout has cost on all ranks, and its metrics: none if nobody asked a meter. They are a line of ``ledger/cost.jsonl``."""
        spend = self.ledger.report(self._device, rollout, labels_used=self.labels_used())
        return spend, spend.metrics() if spend.happened else {}

    def labels_used(self) -> int:
        """Labels asked for since the run began, on all ranks."""
        written = torch.tensor(self._journal.labels_written, device=self._device)
        return self._journal.labels_used - self._journal.labels_written + int(global_sum(written))

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    def _end(self, why: str) -> None:
        if self._trainer.train_dataloader is None:  # nothing was trained on since the fit began
            raise UserError(f"{why} Raise data.init_args.budget to go on.")
        rank_zero_info(f"{why} The run ends here. Raise data.init_args.budget and resume to go on (--ckpt_path last).")
        self._trainer.should_stop = True  # tells whoever looks why it ended; by itself it would wait for trainer.min_epochs
        raise StopIteration(why)
