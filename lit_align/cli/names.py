"""What a dotted path or a type names: the class, its arguments, the values it accepts, the nearest thing there is."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal, final, get_args, get_origin

from jsonargparse._parameter_resolvers import get_signature_parameters

from lit_align.cli.settings import did_you_mean


@final
class Named:
    """What a path names: a class, or a function that makes an object."""

    def __init__(self, value: Callable[..., Any]) -> None:
        self.value = value


def resolved(path: str, bases: Sequence[type]) -> "Named | str":
    """What ``path`` names: a dotted path, or the short name of a class that is imported. Else, the nearest name as a hint."""
    known = {cls.__name__: cls for base in bases for cls in (base, *subclasses(base))}
    if "." not in path:
        return Named(known[path]) if path in known else did_you_mean(path, known)
    module, _, name = path.rpartition(".")
    try:
        parent = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            return _failed(module, error)
        above, _, last = error.name.rpartition(".")
        if not above and not (near := get_close_matches(last, {cls.__module__.split(".")[0] for cls in known.values()}, n=1)):
            return f"\nThere is no module {last}: it should be {last}.py in the current folder, {Path.cwd()}, or be installed."
        siblings = [m.name for m in iter_modules(import_module(above).__path__ if above else None)]
        near = did_you_mean(last, siblings).removeprefix(" Did you mean '").removesuffix("'?")
        return (
            f" Did you mean '{'.'.join([*filter(None, [above]), near]) + path[len(error.name) :]}'?"
            if near
            else did_you_mean(path, [public_name(cls) for cls in known.values()])
        )
    except Exception as error:  # a user's module may fail in any way
        return _failed(module, error)
    value = getattr(parent, name, None)
    if callable(value):
        return Named(value)
    names = [n for n, v in vars(parent).items() if callable(v) and not n.startswith("_")]
    fitting = [n for n in names if isinstance(v := getattr(parent, n), type) and any(_is_kind(v, base) for base in bases)]
    hint = did_you_mean(name, fitting) or did_you_mean(name, names)
    return hint.replace("mean '", f"mean '{module}.")


def _failed(module: str, error: Exception) -> str:
    return f"\nImporting {module} failed with {type(error).__name__}: {error}"


def _is_kind(cls: type, base: type) -> bool:
    try:
        return issubclass(cls, base)
    except TypeError:
        return False


def subclasses(base: type) -> list[type]:
    """Every class that is imported and inherits from ``base``; none of ``object`` and ``type``, from which too much does."""
    direct = [] if base in (type, object) else base.__subclasses__()
    return [*direct, *(cls for child in direct for cls in subclasses(child))]


def public_name(value: Callable[..., Any]) -> str:
    """The shortest path that names it."""
    name, parts = getattr(value, "__qualname__", type(value).__qualname__), value.__module__.split(".")
    for end in range(1, len(parts)):
        module = ".".join(parts[:end])
        if getattr(import_module(module), name, None) is value:
            return f"{module}.{name}"
    return f"{value.__module__}.{name}"


@cache
def parameters_of(cls: Callable[..., Any]) -> dict[str, Any]:
    """Name -> annotation of every argument."""
    found = get_signature_parameters(cls, "__init__" if isinstance(cls, type) else None)
    return {p.name: p.annotation for p in found}


def classes_in(annotation: Any) -> list[type]:
    """Classes whose objects, or whose subclasses' objects, an annotation accepts."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return []
    if origin is not None and isinstance(origin, type) and issubclass(origin, Callable):  # pyright: ignore[reportArgumentType]
        return classes_in(arguments[-1]) or [object] if arguments else [object]
    if origin is not None:
        return [cls for argument in arguments for cls in classes_in(argument)]
    plain = not isinstance(annotation, type) or annotation in (int, float, str, bool, complex, type(None), bytes, dict, list, tuple, Any)
    return [] if plain or annotation.__module__ in ("pathlib", "datetime") else [annotation]


def options_of(annotation: Any) -> list[str]:
    """Values that an annotation lists."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if annotation is bool:
        return ["true", "false"]
    return [option for argument in get_args(annotation) for option in options_of(argument)]


def described(annotation: Any) -> str:
    """An annotation in words."""
    if options := options_of(annotation):
        others = [a for a in get_args(annotation) if get_origin(annotation) is not Literal and not options_of(a) and a is not type(None)]
        return "one of " + ", ".join([*dict.fromkeys(options), *(described(a) for a in others)])
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    if arguments := [a for a in get_args(annotation) if get_origin(annotation) not in (list, dict, tuple)]:
        origin = get_origin(annotation)
        if isinstance(origin, type) and issubclass(origin, Callable):  # pyright: ignore[reportArgumentType]
            return "a function or a class, as a dotted path"
        return " or ".join(described(a) for a in arguments)
    return str(annotation).replace("typing.", "")
