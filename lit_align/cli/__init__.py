"""The front door: help and errors here, a Trainer's subcommands in `lit_align.cli.trainer`, the rest where it belongs.

Nothing heavy is imported before it is needed.
"""

import os
import sys
from collections.abc import Sequence

from lit_align import __version__

HELP = """\
usage: lit-align COMMAND [--config FILE ...] [--KEY VALUE ...]

  fit          align a policy: sample, annotate, train, again
  validate     score the policy on held-out prompts
  test         the same, for the final number
  predict      write answers to held-out prompts as JSONL
  quickstart   a whole run on an embedded world, in minutes on a laptop

Several --config files compose, later ones win:
  lit-align fit --config configs/algorithm/dar_anchored.yaml --config configs/experiment/local.yaml --run runs/first
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
    sys.path.insert(0, os.getcwd())  # a user's own annotator is a module in the folder where the command is given
    from lit_align.cli.trainer import run_trainer
    from lit_align.types import UserError

    try:
        if arguments[0] == "quickstart":
            from lit_align.quickstart.run import quickstart

            quickstart(arguments[1:], run_trainer)
        else:
            run_trainer(arguments)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):  # the parser wraps what a constructor raises
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        print(f"lit-align: {cause}", file=sys.stderr)
        sys.exit(2)
