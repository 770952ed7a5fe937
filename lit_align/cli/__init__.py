"""The front door: help and errors here, a Trainer's subcommands in `lit_align.cli.trainer`, the rest where it belongs.

Nothing heavy is imported before it is needed.
"""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from lit_align import __version__

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
OWN_COMMANDS = ("check", "agree", "export", "judge", "mtbench", "plot", "completion")  # each a function in a module of its name
COMMANDS = (*TRAINER_COMMANDS, *OWN_COMMANDS[:-1], "quickstart", "completion")
HELP = """\
usage: lit-align COMMAND [--config FILE ...] [--KEY VALUE ...]

  fit          align a policy: sample, annotate, train, again
  validate     score the policy on held-out prompts
  test         the same, for the final number
  predict      write answers to held-out prompts as JSONL
  check        try everything that fit would do, once, on one micro-batch; takes the arguments of fit
  agree        how far a judge agrees with people: lit-align agree pairs.jsonl --human votes --ai gpt4
  export       write a run's policy as a Hugging Face folder: lit-align export runs/first
  judge        compare answers of runs, models, files, datasets: lit-align judge runs/a runs/b --config judge.yaml
  mtbench      have two-turn conversations graded from 1 to 10
  plot         draw score against the root of KL: lit-align plot runs/a runs/b
  quickstart   a whole run on an embedded world, in minutes on a laptop
  completion   print a script by which bash or zsh completes commands, options and values

Several --config files compose, later ones win:
  lit-align fit --config configs/algorithm/dar_anchored.yaml --config configs/experiment/local.yaml \\
    --config configs/annotator/function.yaml --run runs/first
What can be set, and to what: lit-align fit --help, or --print_config after the other arguments.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A user's mistake ends with a message and exit code 2, without a stack trace."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if arguments == ["--version"]:
        print(f"lit-align {__version__}")
        return
    command, *options = arguments
    if command not in COMMANDS:
        _refuse(f"{_no_command(command)}\nCommands: {', '.join(COMMANDS)}. What they do: lit-align --help")
    sys.path.insert(0, os.getcwd())  # a user's own annotator is a module in the folder where the command is given
    from argparse import ArgumentError

    from lit_align.types import UserError

    try:
        _run(command, options)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):  # the parser wraps what a constructor raises
            cause = cause.__cause__ or cause.__context__
        if cause is None and not isinstance(error, ArgumentError):
            raise
        _refuse(str(cause or error))


def _run(command: str, options: list[str]) -> None:
    if command in OWN_COMMANDS:
        return getattr(import_module(f"lit_align.cli.{command}"), command)(options)
    from lit_align.cli.trainer import run_trainer

    if command == "quickstart":
        from lit_align.quickstart.run import quickstart

        return quickstart(options, run_trainer)
    run_trainer([command, *options])


def _no_command(word: str) -> str:
    if word.startswith("-"):
        return f"The command comes first, then options, but {word!r} came."
    near = get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
    return f"There is no command {word!r}.{f' Did you mean {near[0]!r}?' if near else ''}"


def _refuse(message: str) -> None:
    print(f"lit-align: {message}", file=sys.stderr)
    sys.exit(2)
