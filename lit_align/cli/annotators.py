"""An annotator by itself, as a file of ``configs/annotator/`` describes it for a run."""

from argparse import ArgumentError
from collections.abc import Sequence

from jsonargparse import ArgumentParser

import lit_align.annotators  # noqa: F401  (short names in YAML are those of imported classes)
from lit_align.cli.mistakes import explained
from lit_align.cli.trainer import accept_final_classes
from lit_align.types import Annotator, UserError

KEY = "data.init_args.annotator"


def load_annotator(files: Sequence[str]) -> Annotator:
    """The annotator that these config files name, later ones winning; not set up yet.

    Args:
        files: each sets ``data.init_args.annotator`` and nothing else.

    Raises:
        UserError: if a file is missing, no YAML or sets something else, or no annotator comes of them.
    """
    accept_final_classes()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument(f"--{KEY}", type=Annotator)
    arguments = [f"--config={file}" for file in files]
    try:
        config = parser.parse_args(arguments)
    except ArgumentError as error:
        raise explained(parser, arguments, str(error)) from None
    annotator = parser.instantiate(config).data.init_args.annotator
    if annotator is None:
        raise UserError(f"{', '.join(files)}: expected an annotator at {KEY}, as the files in configs/annotator/ have it, but found none.")
    return annotator
