"""Which setting the parser stumbled over: its dotted key, the nearest name that is valid, and where it stands."""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, final, get_args, get_origin

from jsonargparse import ArgumentParser

from lit_align.cli.names import Named, classes_in, described, options_of, parameters_of, public_name, resolved
from lit_align.cli.settings import COMMAND_LINE, Setting, did_you_mean, read_settings, settings_of
from lit_align.types import UserError

SHOWN = 3
LONGEST_LIST = 240
OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")


def explained(parser: ArgumentParser, arguments: Sequence[str], complaint: str) -> UserError:
    """The error to show instead of the parser's ``complaint`` about ``arguments``, those of a subcommand."""
    try:
        sources = list(settings_of(arguments))
    except UserError as error:
        return error
    return explained_in(parser, sources, complaint, _strays(arguments) if "unrecognized" in complaint else ())


def explained_in(parser: ArgumentParser, sources: Sequence[Setting], complaint: str, strays: Iterable[str] = ()) -> UserError:
    """The same of settings that have been read; ``strays`` are messages about words that belong to none."""
    search = _Search(parser, sources)
    found = [*search.mistakes(), *strays]
    if not found:
        found = search.gaps(complaint) or [_shortened(complaint)]
    return UserError("\n".join([*dict.fromkeys(found)][:SHOWN]))


def refuse_linked(arguments: Sequence[str], links: Mapping[str, str]) -> None:
    """Refuse a setting that another one sets: the parser would ignore it without a word.

    Args:
        arguments: of a subcommand.
        links: dotted key that is set -> key that sets it.

    Raises:
        UserError: that says which one to set.
    """
    for source in settings_of(arguments):
        for target, origin in links.items():
            for keys in (target.split("."), [key for key in target.split(".") if key != "init_args"]):
                for setting in _inside(source, keys):
                    raise UserError(
                        f"{'.'.join(keys)} ({setting.place}) is set by {origin}: what you give it would be ignored.\n"
                        f"Remove it, and set {origin}: {_text(setting)} (--{origin}={_text(setting)})."
                    )


@final
class _Search:
    """Walks through every source with what the parser knows at each key.

    A class stays in force for later files that set its arguments only.
    """

    def __init__(self, parser: ArgumentParser, sources: Sequence[Setting]) -> None:
        self.sources = sources
        self.keys: dict[str, Any] = {}  # dotted key -> annotation; None accepts anything
        for action in parser._actions:
            plain = action.type if isinstance(action.type, type) else None
            self.keys[action.dest] = getattr(action, "_typehint", plain)
        self.classes: dict[str, Callable[..., Any]] = {}  # dotted key -> the class in force
        self.first_classes: dict[str, Callable[..., Any]] = {}  # for a file that sets arguments before another one names the class
        self.nameless: list[str] = []

    def mistakes(self) -> Iterator[str]:
        """One message each."""
        for source in self.sources:
            list(self._group(source, ""))  # for the classes
        self.classes, self.nameless = {}, []
        for source in self.sources:
            yield from self._group(source, "")

    def gaps(self, complaint: str) -> list[str]:
        """Where a class, or an argument that a class can't do without, is not set."""
        if self.nameless:
            return self.nameless
        lacking = re.search(r"class_path '([^']+)':\s+the following arguments are required: (.+)", complaint)
        if lacking is None:
            return []
        key = next((key for key, cls in self.classes.items() if lacking[1] in (public_name(cls), cls.__name__)), "")
        argument = f"{key and key + '.'}init_args.{lacking[2].split(',')[0]}"
        files = files_that_set(argument, self.sources)
        known = f" that does:\n  {', '.join(files)}" if files else " that does."
        return [
            f"{key or lacking[1]} ({lacking[1]}) can't do without {lacking[2]}, which nothing sets.\n"
            f"Set {argument}, or add a --config{known}"
        ]

    def _group(self, setting: Setting, prefix: str) -> Iterator[str]:
        inside = _opened(setting)
        if not isinstance(inside.value, dict):
            yield f"{prefix.rstrip('.')} ({setting.place}) should have keys of its own, got {_text(setting)!r}."
            return
        names = {key[len(prefix) :].split(".")[0] for key in self.keys if key.startswith(prefix)}
        for name, value in inside.value.items():
            key = prefix + name
            if name not in names:
                yield _unknown_key(key, name, value.place, names, "", self._elsewhere(name))
            elif (annotation := self.keys.get(key)) is not None:
                yield from self._typed(value, annotation, key)
            elif any(other.startswith(key + ".") for other in self.keys):
                yield from self._group(value, key + ".")

    def _typed(self, setting: Setting, annotation: Any, key: str) -> Iterator[str]:
        bases = classes_in(annotation)
        if isinstance(setting.value, list) and bases:
            for number, item in enumerate(setting.value):
                yield from self._typed(item, annotation, f"{key}[{number}]")
        elif bases and isinstance(setting.value, dict) and (held := _held_by_name(annotation)) is not None:
            for name, item in setting.value.items():
                yield from self._typed(item, held, f"{key}.{name}")
        elif bases and isinstance(setting.value, dict):
            yield from self._class(setting, bases, key)
        elif bases and isinstance(setting.value, str):
            inside = _opened(setting)
            if isinstance(inside.value, dict):
                yield from self._class(inside, bases, key)
            elif isinstance(found := resolved(setting.value, bases), Named):
                self._remember(key, found.value)
            elif not _accepts(annotation, setting):
                yield from self._refused(setting, annotation, found, key)
        elif not _accepts(annotation, setting):
            yield from self._refused(setting, annotation, None, key)

    def _class(self, setting: Setting, bases: Sequence[type], key: str) -> Iterator[str]:
        assert isinstance(setting.value, dict)
        path = setting.value.get("class_path")
        if path is not None:
            found = resolved(_text(path), bases)
            if not isinstance(found, Named):
                yield f"{key}.class_path ({path.place}): there is no {_text(path)!r}.{found}"
                return
            self._remember(key, found.value)
        elif key not in self.classes and len(bases) == 1 and is_dataclass(bases[0]) and not inspect.isabstract(bases[0]):
            self._remember(key, bases[0])  # plain settings need no class_path
        known = self.classes | {k: v for k, v in self.first_classes.items() if k not in self.classes}
        last = f"{key}[{self._last(key)}]"
        cls = known.get(key) or known.get(last)
        if key not in self.classes and last not in self.classes:
            named_later = " It is named by a later one: change their order." if cls is not None else ""
            self.nameless.append(
                f"{key} ({setting.place}): arguments of a class that is not named yet. Give the --config that names it by class_path (an "
                f"algorithm's names model and data) before this one.{named_later}"
            )
        parameters = parameters_of(cls) if cls is not None else {}
        named = f" {public_name(cls)}" if cls is not None else ""
        for name, value in setting.value.items():
            if name == "init_args" and isinstance(value.value, dict):
                for argument, inner in value.value.items():
                    if cls is not None and argument not in parameters:
                        yield _unknown_key(f"{key}.init_args.{argument}", argument, inner.place, parameters, named)
                    elif cls is not None:
                        yield from self._argument(inner, parameters[argument], f"{key}.init_args.{argument}")
            elif name not in OF_A_CLASS:
                if cls is not None and name in parameters:  # --model.beta for --model.init_args.beta
                    yield from self._argument(value, parameters[name], f"{key}.init_args.{name}")
                elif cls is not None or path is None:
                    yield _unknown_key(f"{key}.{name}", name, value.place, [*OF_A_CLASS, *parameters], named)

    def _argument(self, setting: Setting, annotation: Any, key: str) -> Iterator[str]:
        if annotation is not inspect.Parameter.empty:
            yield from self._typed(setting, annotation, key)

    def _remember(self, key: str, cls: Callable[..., Any]) -> None:
        self.classes[key] = cls
        self.first_classes.setdefault(key, cls)

    def _refused(self, setting: Setting, annotation: Any, hint: str | None, key: str) -> Iterator[str]:
        text = _text(setting)
        if hint is not None and "." in text:
            yield f"{key} ({setting.place}): there is no {text!r}.{hint}"
        else:
            hint = did_you_mean(text, options_of(annotation)) or hint or ""
            yield f"{key} ({setting.place}): expected {described(annotation)}, got {text!r}.{hint}"

    def _last(self, key: str) -> int:
        """The list item that the command line means when it names none."""
        return max(
            (int(k[len(key) + 1 : -1]) for k in self.classes if k.startswith(key + "[") and k[len(key) + 1 : -1].isdigit()), default=0
        )

    def _elsewhere(self, name: str) -> list[str]:
        """Full keys that end in ``name``."""
        groups = [key for key in self.keys if key.endswith("." + name)]
        return groups + [f"{key}.init_args.{name}" for key, cls in self.classes.items() if name in parameters_of(cls)]


def _held_by_name(annotation: Any) -> Any:
    """What a mapping holds whose names are the user's own; None if the annotation is of no mapping."""
    for option in get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]:
        if get_origin(option) in (dict, Mapping):
            return get_args(option)[1]
    return None


def _accepts(annotation: Any, setting: Setting) -> bool:
    text = _text(setting)
    if setting.place == COMMAND_LINE and text in ("", "null"):
        return True
    return _parses_anew(annotation, text) if classes_in(annotation) else _parses(annotation, text)


def _parses_anew(annotation: Any, text: str) -> bool:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=annotation)
    try:
        parser.parse_args([f"--x={text}"])
    except Exception:  # a class or function is imported, and may fail in any way
        return False
    return True


_parses = cache(_parses_anew)


def _opened(setting: Setting) -> Setting:
    """A nested file's settings, where the value names one."""
    if isinstance(setting.value, str) and setting.value.endswith((".yaml", ".yml")):
        return read_settings(setting.value)
    return Setting({}, setting.place) if setting.value is None else setting


def _unknown_key(key: str, name: str, place: str, names: Iterable[str], of: str, elsewhere: Sequence[str] = ()) -> str:
    hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(name, names)
    if not hint:
        known = ", ".join(sorted(names))
        hint = f"\nThere are: {known}" if len(known) <= LONGEST_LIST else f"\nThere are: {known[:LONGEST_LIST].rpartition(',')[0]}, ..."
    return f"Unknown key {key!r}{of and f' of{of}'} ({place}).{hint}"


def _strays(arguments: Sequence[str]) -> Iterator[str]:
    """Words that belong to no option."""
    previous = ""
    for argument in arguments:
        if not argument.startswith("-") and (not previous.startswith("-") or "=" in previous):
            yield f"Unexpected {argument!r} on the command line: an option is --key=value, a file is --config FILE."
        previous = argument


def files_that_set(key: str, sources: Iterable[Setting]) -> list[str]:
    """Config files in the folders beside those of ``sources`` that set ``key``: of these, the ones that set least else."""
    folders = {Path(source.place).parent.parent for source in sources if source.place != COMMAND_LINE}
    found: dict[str, int] = {}  # file -> how many of a run's parts it speaks of
    for path in sorted({path for folder in folders for path in folder.glob("*/*.yaml")}):
        with suppress(UserError):
            settings = read_settings(str(path))
            if isinstance(settings.value, dict) and any(_inside(settings, key.split("."))):
                found[str(path)] = len(settings.value)
    return [path for path, parts in found.items() if parts == min(found.values())]


def _inside(setting: Setting, keys: Sequence[str]) -> Iterator[Setting]:
    """What is set at ``keys``, in every entry of a list on the way."""
    if isinstance(setting.value, list):
        for item in setting.value:
            yield from _inside(item, keys)
    elif not keys:
        yield from [setting] if setting.value is not None else []
    elif isinstance(setting.value, dict) and keys[0] in setting.value:
        yield from _inside(setting.value[keys[0]], keys[1:])


def _text(setting: Setting, inside: bool = False) -> str:
    """As one would write it on the command line."""
    match setting.value:
        case None:
            return "null"
        case dict(pairs):
            return "{" + ", ".join(f"{key}: {_text(value, True)}" for key, value in pairs.items()) + "}"
        case list(items):
            return "[" + ", ".join(_text(item, True) for item in items) + "]"
        case text:
            return json.dumps(text) if inside and set(text) & set(",:[]{}#\"'") else text


def _shortened(complaint: str) -> str:
    """The parser's own words, at most eight lines."""
    lines = [line[:160] for line in complaint.splitlines() if line.strip()]
    return "\n".join(lines[:8] + (["..."] if len(lines) > 8 else []))
