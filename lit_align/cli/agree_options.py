"""What ``lit-align agree`` takes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lit_align.cli.labelled import RESPONSES
from lit_align.cli.labels import Labels
from lit_align.types import UserError

YAML = (".yaml", ".yml")


def agree_options(arguments: Sequence[str]) -> argparse.Namespace:
    """What was given.

    Raises:
        UserError: if it contradicts itself.
    """
    options = agree_parser().parse_args(list(arguments))
    if (options.ai is None) == (not options.config):
        raise UserError("Expected one judge: --ai COLUMN for verdicts that the file has, or --config FILE for an annotator to ask.")
    if options.ai_swapped is not None and options.ai is None:
        raise UserError("--ai_swapped is the second column of a judge in --ai; an annotator is asked in both orders if it compares.")
    columns = [column for column in (options.ai, options.against) if column is not None and not column.endswith(YAML)]
    if columns and options.human is None:
        raise UserError(f"The labels of {columns[0]!r} are compared with people's: name the column of those with --human.")
    return options


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
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/agreed"),
        metavar="FOLDER",
        help="where calls that may cost are kept, and the numbers; runs/agreed if not given",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there, as PNG")
    return parser
