"""Judges at work for commands that train nothing: every call in a ledger beside the output, and what they cost in words."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from lit_align.data.ledger import Ledger
from lit_align.data.spend import Prices
from lit_align.metering import metered
from lit_align.types import Annotator

LEDGER = "ledger"


@contextmanager
def asking(judges: Sequence[Annotator], output: Path, prices: Prices) -> Iterator[None]:
    """Wake these judges. What they ask inside is kept, with its answer, in ``output/ledger``, where the same command finds it if it was
    interrupted; in the end it prints what all of it has cost. Nothing is written or printed where nobody may charge.

    Args:
        judges: may be one twice.
        output: a folder, made if something is asked.
        prices: of models.

    Raises:
        UserError: if the ledger is no such file.
    """
    everyone = {id(judge): judge for judge in judges}.values()
    ledger = Ledger(output / LEDGER, 0, 1, prices)
    try:
        for judge in everyone:
            judge.setup(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        with metered(ledger):
            yield
    finally:
        for judge in everyone:
            judge.close()
        spend = ledger.report(torch.device("cpu"))
        ledger.close()
        if spend.happened:
            print(f"Cost of all calls in {output / LEDGER}: {spend.sentence}.")
