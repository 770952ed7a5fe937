"""``lit-align agree``: how far people and a judge agree about labelled pairs."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from rich.console import Console
from rich.progress import track
from transformers.utils import logging as transformers_logging

from lit_align.cli.agree_options import YAML, agree_options
from lit_align.cli.agree_table import comparison_lines, report_lines
from lit_align.cli.asking import LEDGER, asking
from lit_align.cli.labelled import LabelledFile
from lit_align.cli.labels import Labels
from lit_align.cli.parts import read_parts
from lit_align.cli.runs import refuse_existing
from lit_align.evaluation.agreement import (
    AgreementReport,
    LabelledPairs,
    PairVerdicts,
    agreement,
    agreement_by_subset,
    agreement_picture,
    compare,
    judge_pairs,
)
from lit_align.types import UserError


def agree(arguments: Sequence[str]) -> None:
    """Print how far a judge agrees with people, and where ``--against`` names another, which of them does more.

    Args:
        arguments: the file, its columns, and the judge or its labels; see ``--help``.

    Raises:
        UserError: if a file, a column or a label is not what it should be, no pair has both labels, or a judge is asked and the output's
            folder has what an earlier one was paid for.
    """
    options = agree_options(arguments)
    task = _Task(options)
    judge = task.labelled(options.ai, options.ai_swapped) if options.ai else task.asked(options.config)
    found: dict[str, Any] = {"data": options.data, "human": options.human} | task.report(judge)
    if options.against is not None:
        rival = task.asked([options.against]) if options.against.endswith(YAML) else task.labelled(options.against, None)
        compared = compare(judge.pairs, rival.pairs, seed=options.seed)
        found |= {"against": task.report(rival), "comparison": asdict(compared)}
        print("\n".join(comparison_lines(judge.name, rival.name, compared)))
    paid = task.asks and (options.output / LEDGER).exists()
    for file in ([options.output / "agreement.json"] if paid else []) + ([] if options.json is None else [options.json]):
        _write(file).write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    if options.plot is not None:
        reports = {"all": found["report"], **found["subsets"]}
        picture = agreement_picture({key: AgreementReport.from_json(one) for key, one in reports.items()})
        picture.save(_write(options.plot), format="PNG")


@final
class _Judge(NamedTuple):
    """How the output calls it, exactly which one it is, and the pairs with its verdicts."""

    name: str
    identity: str
    pairs: LabelledPairs


@final
class _Task:
    """The labelled file, and how to put a judge's verdicts beside its labels."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.asks = options, False  # whether an annotator was asked
        self.labels = Labels(*(tuple(getattr(options, name)) for name in ("first", "second", "tie", "none")))
        self.file = LabelledFile(options.data, options.prompt_field, options.messages_field, options.max_pairs)
        self.subsets = self.file.subsets(options.subset) if options.subset else ()
        if options.human is None:
            self.votes, self.responses = self.file.preferred()
        else:
            self.votes, self.responses = self.file.votes(options.human, self.labels), self.file.responses(options.responses)

    def labelled(self, column: str, swapped: str | None) -> _Judge:
        """The judge whose verdicts are in these columns."""
        return self._judge(column, column, self.file.verdicts(column, swapped, self.labels, soft=self.options.soft))

    def asked(self, files: Sequence[str]) -> _Judge:
        """The annotator of these config files, which is asked about the pairs that people labelled and no other."""
        transformers_logging.disable_progress_bar()
        if self.responses is None:
            raise UserError(
                f"{self.options.data}: an annotator reads the two responses, but no columns with usual names hold them. Name them with "
                f"--responses. There are: {self.file.columns()}."
            )
        refuse_existing(self.options.output, LEDGER)
        parts = read_parts(files)
        annotator, self.asks = parts.judge, True
        index = self.votes.any(-1).nonzero().flatten().tolist()
        with asking([annotator], self.options.output, parts.prices):
            said = judge_pairs(
                annotator,
                [self.file.prompts[i] for i in index],
                [self.responses[i] for i in index],
                progress=_progress,
            )
        orders = None if said.orders is None else _spread(said.orders, index, len(self.votes))
        everything = PairVerdicts(_spread(said.values, index, len(self.votes)), orders, said.soft)
        return self._judge(files[-1], annotator.identity or type(annotator).__name__, everything)

    def report(self, judge: _Judge) -> dict[str, Any]:
        """Print what is to be said about one judge; the same for JSON."""
        whole, parts = agreement(judge.pairs, seed=self.options.seed), agreement_by_subset(judge.pairs, seed=self.options.seed)
        print("\n".join(report_lines(judge.name, whole, parts, self.options.subset)))
        return {"ai": judge.identity, "report": whole.as_json(), "subsets": {key: part.as_json() for key, part in parts.items()}}

    def _judge(self, name: str, identity: str, said: PairVerdicts) -> _Judge:
        pairs = LabelledPairs(
            prompts=self.file.prompt_numbers,
            votes=self.votes,
            verdicts=said.values,
            orders=said.orders,
            lengths=None if self.responses is None else torch.tensor([[len(one), len(other)] for one, other in self.responses]),
            soft=said.soft,
            subsets=self.subsets,
        )
        if not ((pairs.human >= 0) & (pairs.ai >= 0)).any():
            raise UserError(f"{self.options.data}: of {len(self.votes)} pairs, none has both a label of people and a verdict of {name}.")
        return _Judge(name, identity, pairs)


def _spread(values: torch.Tensor, index: Sequence[int], size: int) -> torch.Tensor:
    """``values`` at these rows of ``size``, NaN elsewhere."""
    whole = torch.full((size, *values.shape[1:]), torch.nan, dtype=values.dtype)
    whole[list(index)] = values
    return whole


def _progress(chunks: Sequence[range]) -> Iterable[range]:
    """A bar, for someone who watches."""
    return track(chunks, "Asking", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def _write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
