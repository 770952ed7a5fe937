"""``lit-align completion``: a script by which a shell completes commands, options and their values."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lit_align.cli import COMMANDS, TRAINER_COMMANDS
from lit_align.cli.agree_options import agree_parser
from lit_align.cli.export import export_parser
from lit_align.cli.judge import judge_parser
from lit_align.cli.mtbench import mtbench_parser
from lit_align.cli.names import classes_in, options_of, parameters_of, public_name, subclasses
from lit_align.cli.plot import plot_parser
from lit_align.cli.trainer import AlignmentCLI, accept_final_classes, add_parts
from lit_align.quickstart.run import quickstart_parser
from lit_align.types import UserError

SHELLS = ("bash", "zsh")
DEPTH = 3  # model -> policy -> lora


def completion(arguments: Sequence[str]) -> None:
    """Print the script for a shell. It is static: completing starts no Python.

    Args:
        arguments: the shell's name; see ``--help``.

    Raises:
        UserError: if shtab, which writes the script, is not installed.
    """
    parser = completion_parser()
    shell = parser.parse_args(list(arguments)).shell
    try:
        import shtab  # pyright: ignore[reportMissingImports]  (an extra)
    except ModuleNotFoundError as error:
        raise UserError("The script is written by shtab, which is not installed here. Install it: pip install shtab") from error
    print(shtab.complete(_everything(shtab.FILE), shell=shell))


def completion_parser(add_help: bool = True) -> argparse.ArgumentParser:
    """What ``lit-align completion`` takes."""
    parser = argparse.ArgumentParser("lit-align completion", description="Print a completion script.", add_help=add_help)
    parser.add_argument("shell", choices=SHELLS, help="whose script to print")
    return parser


def _everything(file: Any) -> argparse.ArgumentParser:
    """Every command in one plain parser; ``file`` marks options whose value is a path.

    jsonargparse can have shtab write a script of its own parsers, but with the arguments of every class that Lightning and torch
    offer it has 72 MB.
    """
    accept_final_classes()
    root = argparse.ArgumentParser("lit-align")
    commands = root.add_subparsers()
    others = {
        "agree": agree_parser,
        "export": export_parser,
        "judge": judge_parser,
        "mtbench": mtbench_parser,
        "plot": plot_parser,
        "quickstart": quickstart_parser,
        "completion": completion_parser,
    }
    for name in COMMANDS:
        if name in others:
            commands.add_parser(name, help=name, parents=[others[name](add_help=False)])
            continue
        parser = commands.add_parser(name, help=name)
        for option, choices in _options(name if name in TRAINER_COMMANDS else "fit").items():
            added: Any = parser.add_argument(option, choices=choices or None, nargs="?" if option == "--print_config" else None)
            if option == "--config":
                added.complete = file
    return root


def _options(command: str) -> dict[str, list[str]]:
    """Option -> values to offer, none where anything may stand."""
    parser = LightningArgumentParser()
    add_parts(parser)
    parser.add_method_arguments(Trainer, command, skip={*AlignmentCLI.subcommands()[command]})
    found: dict[str, list[str]] = {"--config": [], "--print_config": ["skip_default"]}
    for action in parser._actions:
        annotation = getattr(action, "_typehint", action.type)
        for option in action.option_strings:
            if option.startswith("--") and option != "--help" and action.help != argparse.SUPPRESS and not option.endswith("+"):
                found[option] = _values(annotation)
                if option in ("--model", "--data"):
                    found |= dict(_inside(option, annotation, DEPTH))
    return found


def _inside(option: str, annotation: Any, depth: int) -> Iterator[tuple[str, list[str]]]:
    """Arguments of the classes that an option accepts, those of their parts included."""
    for base in classes_in(annotation) if depth else ():
        for cls in {base, *subclasses(base)} - {object}:
            for name, inner in parameters_of(cls).items():
                key = f"{option}.{name}" if base is cls and not subclasses(base) else f"{option}.init_args.{name}"
                yield key, _values(inner)
                if cls.__module__.startswith("lit_align."):  # torch's classes take all kinds of things
                    yield from _inside(key, inner, depth - 1)


def _values(annotation: Any) -> list[str]:
    names = [public_name(cls) for base in classes_in(annotation) for cls in subclasses(base)]
    return [*dict.fromkeys([*options_of(annotation), *names])]
