"""What a user has set, and where: config files and the command line as trees that remember their lines."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml

from lit_align.types import UserError


@dataclass(frozen=True, slots=True)
class Setting:
    """A value with the place of its key: a scalar is its text (None is null), a list or a mapping has settings inside."""

    value: "str | list[Setting] | dict[str, Setting] | None"
    place: str


def settings_of(arguments: Sequence[str]) -> Iterator[Setting]:
    """One tree per config file and per option, in the order in which later ones win.

    Raises:
        UserError: if a file does not exist or is no YAML mapping.
    """
    rest = list(arguments)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("-"):
            continue
        if not equals:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else ""
        if name in ("-c", "--config"):
            yield from [] if text == "null" else [read_settings(text)]
        elif name.startswith("--"):
            yield _nested(name[2:].removesuffix("+").split("."), text)


def read_settings(path: str) -> Setting:
    """A config file, or settings given in its place as ``{key: value}``.

    Raises:
        UserError: if it does not exist or is no YAML mapping.
    """
    file, inline = Path(path), path.lstrip().startswith("{")
    if not inline and not file.is_file():
        names = [str(p) for p in file.parent.glob("*.yaml")]
        raise UserError(f"There is no config file {path} (the current folder is {Path.cwd()}).{did_you_mean(path, names)}")
    try:
        root = yaml.compose(path if inline else file.read_text(encoding="utf-8"), yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: this is not YAML: {error.problem}. Look at indentation, colons and brackets there.") from error
    if root is None:
        return Setting({}, path)
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: expected settings as `key: value`, got {str(root.value)[:60]!r}.")
    return _read(root, COMMAND_LINE if inline else path, path)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`` Did you mean 'x'?``, or nothing."""
    near = get_close_matches(name, sorted(set(names)), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _read(node: yaml.Node, path: str, place: str) -> Setting:
    match node:
        case yaml.MappingNode():
            return Setting({key.value: _read(value, path, _line(key, path)) for key, value in node.value}, place)
        case yaml.SequenceNode():
            return Setting([_read(item, path, _line(item, path)) for item in node.value], place)
    return Setting(None if node.tag == "tag:yaml.org,2002:null" else node.value, place)


def _line(node: yaml.Node, path: str) -> str:
    return f"{path}, line {node.start_mark.line + 1}" if path != COMMAND_LINE else path


def _nested(keys: Sequence[str], text: str) -> Setting:
    try:
        setting = _read(yaml.compose(text, yaml.SafeLoader) or yaml.ScalarNode("tag:yaml.org,2002:str", ""), COMMAND_LINE, COMMAND_LINE)
    except yaml.YAMLError:
        setting = Setting(text, COMMAND_LINE)
    for key in reversed(keys):
        setting = Setting({key: setting}, COMMAND_LINE)
    return setting


COMMAND_LINE = "the command line"
