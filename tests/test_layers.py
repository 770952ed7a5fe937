"""Who may import whom. The table is the architecture: a new file or folder has to find its place in it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = {"functional", "types", "models", "metering", "storage"}
GROUPS = {"generation", "annotators", "data", "algorithms", "evaluation"}

# Layer -> what of ours it may import besides itself. The layer "" is lit_align/__init__.py.
MAY_IMPORT: dict[str, set[str]] = {
    "": set(),
    "functional": set(),
    "types": set(),
    "metering": set(),
    "storage": {"types"},
    "models": {"functional", "types"},
    **dict.fromkeys(GROUPS, CORE),
    "quickstart": CORE | GROUPS,
    "cli": CORE | GROUPS | {"", "quickstart"},
    "__main__": {"cli"},
    "callbacks": CORE | GROUPS | {""},
}

# What reads texts, in training and sampling; a family of models is recognised by what it is made of, and by trying it.
ENGINE = [
    *(f"models/{name}.py" for name in ("layouts", "trees", "reading", "head", "probe", "windows", "shortage")),
    *(f"models/{name}.py" for name in ("decoding", "fused", "fused_weights", "static", "faster")),
    *(path.relative_to(ROOT / "lit_align").as_posix() for path in sorted((ROOT / "lit_align/generation").glob("*.py"))),
]
FAMILY = re.compile(
    r"llama|gemma|mi[sx]tral|qwen|mamba|bamba|jamba|falcon|bloom|granite|cohere|deepseek|olmo|rwkv|(?<![a-z])(?:gpt|phi|opt|mpt|glm|lfm)(?![a-z])",
    re.IGNORECASE,
)


def module_name(path: Path, root: Path) -> str:
    """``lit_align/data/base.py`` is ``lit_align.data.base``, ``lit_align/data/__init__.py`` is ``lit_align.data``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str | None:
    """Which layer a module, or a name in it, belongs to; None if it isn't ours."""
    package, *inside = module.split(".")
    if package == "callbacks":
        return "callbacks"
    if package != "lit_align":
        return None
    return inside[0] if inside and inside[0] not in {"__version__", "__doc__"} else ""


def imported(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything a file imports, wherever in it the import stands."""
    module = module_name(path, root)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def complaint(importer: str, name: str) -> str | None:
    """Why this layer may not import this name, None if it may."""
    target = layer_of(name)
    if target is None:
        package = name.partition(".")[0]
        if importer == "functional" and package != "torch" and package not in sys.stdlib_module_names:
            return f"functional may import torch and the standard library only, not {package}"
        return None
    if target != importer and target not in MAY_IMPORT[importer]:
        allowed = ", ".join(sorted(filter(None, MAY_IMPORT[importer]))) or "nothing of ours"
        return f"{importer or 'lit_align/__init__.py'} may not import {target or 'lit_align'} (allowed: {allowed})"
    return None


def violations(root: Path) -> list[str]:
    """Everything under ``root`` that breaks the rule, as ``file:line: reason``."""
    found = []
    for path in sorted(path for package in ("lit_align", "callbacks") for path in (root / package).rglob("*.py")):
        importer = layer_of(module_name(path, root))
        where = path.relative_to(root).as_posix()
        if importer is None or importer not in MAY_IMPORT:
            found.append(f"{where}: {importer} is no layer: give it a place in tests/test_layers.py, or move it into one that has")
            continue
        found += [f"{where}:{line}: {reason}" for line, name in imported(path, root) if (reason := complaint(importer, name))]
    return found


def test_every_import_follows_the_dependency_rule() -> None:
    found = violations(ROOT)
    assert not found, "\n".join(found)


def test_the_rule_is_about_files_that_exist() -> None:
    modules = {module_name(path, ROOT) for path in (ROOT / "lit_align").rglob("*.py")}
    assert {f"lit_align.{layer}" for layer in CORE | GROUPS} | {"lit_align"} <= modules


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import lit_align; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert loaded == ["lit_align"]


@pytest.mark.parametrize("file", ENGINE)
def test_no_family_of_models_is_named_in_the_engine(file: str) -> None:
    source = (ROOT / "lit_align" / file).read_text(encoding="utf-8")
    rotation = '"llama3"'  # transformers' name of a way to rotate, whoever does so
    assert source.count(rotation) == (file == "models/fused.py")
    assert FAMILY.findall(source.replace(rotation, "")) == []


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "a Mixtral", "Qwen2", "GPT-2", "gpt_neox", "opt", "Phi3"])
def test_a_family_is_found(name: str) -> None:
    assert FAMILY.search(f"of {name}'s layers")
    assert not FAMILY.search("the options that an optimizer adopts, and their philosophy")


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("lit_align/__init__.py", "from lit_align.types import Prompt", "may not import types"),
        ("lit_align/functional/dar.py", "import numpy.linalg", "not numpy"),
        ("lit_align/functional/dar.py", "from lit_align.types import Prompt", "may not import types"),
        ("lit_align/types.py", "from lit_align import functional", "may not import functional"),
        ("lit_align/models/policy.py", "import lit_align.generation.sampler", "may not import generation"),
        ("lit_align/models/policy.py", "from ..data import base", "may not import data"),
        ("lit_align/data/__init__.py", "from ..algorithms.dar import DAR", "may not import algorithms"),
        ("lit_align/data/online.py", "def late():\n    from lit_align.annotators import Rule", "may not import annotators"),
        ("lit_align/algorithms/dar.py", "from .. import evaluation", "may not import evaluation"),
        ("lit_align/evaluation/report.py", "import lit_align.quickstart", "may not import quickstart"),
        ("lit_align/quickstart/world.py", "from lit_align.cli import main", "may not import cli"),
        ("lit_align/annotators/judge.py", "import callbacks", "may not import callbacks"),
        ("lit_align/cli.py", "from callbacks import KLMonitor", "may not import callbacks"),
        ("lit_align/cli/fit.py", "import callbacks.kl_monitor", "may not import callbacks"),
        ("callbacks/kl_monitor.py", "from lit_align.quickstart import world", "may not import quickstart"),
        ("lit_align/utils.py", "", "is no layer"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, file: str, line: str, reason: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f'"""Synthetic."""\n{line}\n', encoding="utf-8")
    [found] = violations(tmp_path)
    assert found.startswith(file)
    assert reason in found


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("lit_align/functional/dar.py", "import math\nfrom torch import Tensor\nfrom lit_align.functional.logprobs import token_logps"),
        ("lit_align/functional/__init__.py", "from .dar import dar_weights"),
        ("lit_align/types.py", "import torch\nfrom lightning.pytorch import Callback"),
        ("lit_align/models/policy.py", "from lit_align import functional, types"),
        ("lit_align/data/online.py", "from lit_align.types import Prompt\nfrom . import base\nfrom .base import AlignmentDataModule"),
        ("lit_align/cli/fit.py", "from lit_align import __version__, quickstart\nimport lit_align.data"),
        ("lit_align/__main__.py", "from lit_align.cli import main"),
        ("callbacks/kl_monitor.py", "from lit_align.types import RolloutCallback"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f'"""Synthetic."""\n{line}\n', encoding="utf-8")
    assert violations(tmp_path) == []
