"""A judge, its price and a sampler for commands that train nothing, from the config files that a run would have them from."""

import json
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, final

import yaml
from jsonargparse import ArgumentParser

import lit_align.annotators
import lit_align.generation  # noqa: F401  (short names in YAML are those of imported classes)
from lit_align.cli.mistakes import explained_in
from lit_align.cli.settings import Setting, read_settings
from lit_align.cli.trainer import accept_final_classes
from lit_align.data import Price
from lit_align.data.spend import Prices
from lit_align.types import Annotator, Sampler, UserError

WHERE = ("data", "init_args")
PARTS = {"annotator": Annotator, "sampler": Sampler, "prices": dict[str, Price]}


@final
@dataclass(frozen=True, slots=True)
class Parts:
    """Who judges, who samples where the configs say so, and what models cost."""

    judge: Annotator
    sampler: Sampler | None
    prices: Prices


def read_parts(configs: Sequence[str]) -> Parts:
    """``annotator``, ``sampler`` and ``prices`` of ``data.init_args``; later files win, as in a run. What else a file sets is for a run.

    Raises:
        UserError: if a file does not exist, names no class that there is, or none sets an annotator.
    """
    accept_final_classes()
    files = [read_settings(config) for config in configs]
    sources = [_of_setting(file) for file in files]
    given = {name for source in sources for name in _inside(source)}
    if "annotator" not in given:
        named = ", ".join(configs) or "none was given"
        near = [word for file in files for word in get_close_matches("annotator", _names(file), n=1)]
        meant = f" Is {near[0]!r} meant to be it? Did you mean 'annotator'?" if near else ""
        raise UserError(
            f"Expected a judge, data.init_args.annotator, in a config file ({named}).{meant} Add a --config that sets one, such as "
            "configs/annotator/scoring_judge.yaml."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    for name in given:
        parser.add_argument(f"--{'.'.join((*WHERE, name))}", type=PARTS[name], required=True)
    try:
        settings = parser.parse_args([f"--config={json.dumps(_of_value(config))}" for config in configs])
    except ArgumentError as error:
        raise explained_in(parser, sources, str(error)) from None
    found = parser.instantiate(settings).data.init_args
    return Parts(found.annotator, found.get("sampler"), found.get("prices", {}))


def _of_setting(source: Setting) -> Setting:
    """The parts alone, with their places."""
    return Setting({WHERE[0]: Setting({WHERE[1]: Setting(_inside(source), source.place)}, source.place)}, source.place)


def _inside(source: Setting) -> dict[str, Setting]:
    """The parts that a file sets."""
    return {name: part for name, part in _names(source).items() if name in PARTS}


def _names(source: Setting) -> dict[str, Setting]:
    """Everything that a file sets beside them."""
    for key in WHERE:
        source = source.value.get(key, Setting({}, source.place)) if isinstance(source.value, dict) else source
    return source.value if isinstance(source.value, dict) else {}


def _of_value(config: str) -> dict[str, Any]:
    """The parts alone, with their types."""
    value = yaml.safe_load(config if config.lstrip().startswith("{") else Path(config).read_text(encoding="utf-8"))
    for key in WHERE:
        value = (value or {}).get(key)
    return {WHERE[0]: {WHERE[1]: {name: part for name, part in (value or {}).items() if name in PARTS}}}
