"""``lit-align agree``: how far people and a judge agree about labelled pairs."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from rich.console import Console
from rich.progress import track
from transformers.utils import logging as transformers_logging

from lit_align.annotators import RewardModelAnnotator
from lit_align.cli.agree_table import comparison_lines, report_lines
from lit_align.cli.annotators import load_annotator
from lit_align.cli.labelled import RESPONSES, LabelledFile, Labels
from lit_align.evaluation.agreement import (
    AgreementReport,
    LabelledPairs,
    Verdicts,
    agreement,
    agreement_by_subset,
    agreement_picture,
    compare,
    judge_pairs,
)
from lit_align.types import UserError

YAML = (".yaml", ".yml")


def agree(arguments: Sequence[str]) -> None:
    """Print how far a judge agrees with people, and where ``--against`` names another, which of them does more.

    Args:
        arguments: the file, its columns, and the judge or its labels; see ``--help``.

    Raises:
        UserError: if a file, a column or a label is not what it should be, or no pair has both labels.
    """
    options = agree_parser().parse_args(list(arguments))
    _check(options)
    task = _Task(options)
    name, pairs = task.judged(options.ai, options.config, options.ai_swapped)
    found: dict[str, Any] = {"data": options.data, "human": options.human} | task.report(name, pairs)
    if options.against is not None:
        by_file = options.against.endswith(YAML)
        rival, others = task.judged(None if by_file else options.against, [options.against] if by_file else [], None)
        compared = compare(pairs, others, seed=options.seed)
        found |= {"against": task.report(rival, others), "comparison": asdict(compared)}
        print("\n".join(comparison_lines(name, rival, compared)))
    if options.json is not None:
        _write(options.json).write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    if options.plot is not None:
        reports = {"all": found["report"], **found["subsets"]}
        picture = agreement_picture({key: AgreementReport.from_json(one) for key, one in reports.items()})
        picture.save(_write(options.plot), format="PNG")


def agree_parser(add_help: bool = True) -> argparse.ArgumentParser:
    """What ``lit-align agree`` takes."""
    usual = Labels()
    parser = argparse.ArgumentParser(
        "lit-align agree", description="Say how far a judge agrees with people about pairs of responses.", add_help=add_help
    )
    parser.add_argument("data", help="labelled pairs, JSONL or Parquet: one row per pair")
    parser.add_argument("--human", metavar="COLUMN", help="people's label, or a list of their votes; without it, chosen and rejected")
    parser.add_argument("--ai", metavar="COLUMN", help="the judge's label in the file, or a list of two: in both orders")
    parser.add_argument("--ai_swapped", metavar="COLUMN", help="its label with the second response shown first")
    parser.add_argument("--soft", action="store_true", help="the judge's labels are probabilities that the first response is better")
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML of an annotator to ask instead")
    parser.add_argument("--against", metavar="FILE|COLUMN", help="another judge, to be compared with the first pair by pair")
    parser.add_argument("--prompt_field", metavar="COLUMN", help="the prompt; found by itself if it has a usual name")
    parser.add_argument("--messages_field", metavar="COLUMN", help="the prompt as messages")
    parser.add_argument(
        "--responses",
        nargs=2,
        metavar="COLUMN",
        help=f"the two texts; found by themselves if they are {', '.join(map(' and '.join, RESPONSES))}",
    )
    parser.add_argument("--subset", metavar="COLUMN", help="report each value of it by itself too")
    for option, meaning in (("first", "the first is better"), ("second", "the second is"), ("tie", "neither is"), ("none", "no verdict")):
        known = getattr(usual, option)
        parser.add_argument(
            f"--{option}",
            nargs="+",
            default=known,
            metavar="LABEL",
            help=f"labels for: {meaning}; {', '.join(known) or 'null'} if not given",
        )
    parser.add_argument("--max_pairs", type=int, help="the first so many rows only")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap behind the intervals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there, as PNG")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse what contradicts itself."""
    if (options.ai is None) == (not options.config):
        raise UserError("Expected one judge: --ai COLUMN for verdicts that the file has, or --config FILE for an annotator to ask.")
    if options.ai_swapped is not None and options.ai is None:
        raise UserError("--ai_swapped is the second column of a judge in --ai; an annotator is asked in both orders if it compares.")
    columns = [column for column in (options.ai, options.against) if column is not None and not column.endswith(YAML)]
    if columns and options.human is None:
        raise UserError(f"The labels of {columns[0]!r} are compared with people's: name the column of those with --human.")


@final
class _Task:
    """The labelled file, and how to put a judge's verdicts beside its labels."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.labels = Labels(*(tuple(getattr(options, name)) for name in ("first", "second", "tie", "none")))
        self.file = LabelledFile(options.data, options.prompt_field, options.messages_field, options.max_pairs)
        self.subsets = self.file.subsets(options.subset) if options.subset else ()
        if options.human is None:
            self.votes, self.responses = self.file.preferred()
        else:
            self.votes, self.responses = self.file.votes(options.human, self.labels), self.file.responses(options.responses)

    def judged(self, column: str | None, files: Sequence[str], swapped: str | None) -> tuple[str, LabelledPairs]:
        """A judge's name, and the pairs with its verdicts."""
        name, said = (column, self.file.verdicts(column, swapped, self.labels, soft=self.options.soft)) if column else self._asked(files)
        lengths = None if self.responses is None else torch.tensor([[len(one), len(other)] for one, other in self.responses])
        pairs = LabelledPairs(
            prompts=self.file.prompt_numbers,
            votes=self.votes,
            verdicts=said.values,
            orders=said.orders,
            lengths=lengths,
            soft=said.soft,
            subsets=self.subsets,
        )
        if not ((pairs.human >= 0) & (pairs.ai >= 0)).any():
            raise UserError(f"{self.options.data}: of {len(self.votes)} pairs, none has both a label of people and a verdict of {name}.")
        return name, pairs

    def report(self, name: str, pairs: LabelledPairs) -> dict[str, Any]:
        """Print what is to be said about one judge; the same for JSON."""
        whole, parts = agreement(pairs, seed=self.options.seed), agreement_by_subset(pairs, seed=self.options.seed)
        print("\n".join(report_lines(name, whole, parts, self.options.subset)))
        return {"ai": name, "report": whole.as_json(), "subsets": {key: part.as_json() for key, part in parts.items()}}

    def _asked(self, files: Sequence[str]) -> tuple[str, Verdicts]:
        """An annotator's name and its verdicts about the pairs that people labelled; NaN for the others, which it is not asked about."""
        transformers_logging.disable_progress_bar()
        if self.responses is None:
            raise UserError(
                f"{self.options.data}: an annotator reads the two responses, but no columns with usual names hold them. Name them with "
                f"--responses. There are: {self.file.columns()}."
            )
        annotator = load_annotator(files)
        index = self.votes.any(-1).nonzero().flatten().tolist()
        annotator.setup(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            said = judge_pairs(
                annotator,
                [self.file.prompts[i] for i in index],
                [self.responses[i] for i in index],
                log_odds=isinstance(annotator, RewardModelAnnotator),
                progress=_progress,
            )
        finally:
            annotator.close()
        return f"{annotator.identity or type(annotator).__name__}", Verdicts(
            _spread(said.values, index, len(self.votes)),
            None if said.orders is None else _spread(said.orders, index, len(self.votes)),
            said.soft,
        )


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
