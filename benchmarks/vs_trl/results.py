"""The file of results: a line for each case as it ends, and which of them need not be measured again."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import lit_align
from benchmarks.vs_trl.plan import Planned

Result = dict[str, Any]
"""A line of the file: numbers, or what is ``missing`` where there are none."""


def latest(file: Path) -> dict[str, Result]:
    """The last line of each case, by its name."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    return {line["name"]: line for line in lines}


def append(file: Path, result: Result) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as results:
        results.write(json.dumps(result) + "\n")


@cache
def code_hash(folder: Path = Path(lit_align.__file__).parent) -> str:
    """The beginning of the SHA-256 of all sources of lit_align, names and contents."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        found.update(f"{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def asked(line: Planned) -> dict[str, int]:
    """What a result remembers of the plan it was measured by. A case that ran out of time has fewer steps, and would again."""
    return {"steps": line.steps, "memory": int(line.memory)}


def answers(result: Mapping[str, Any] | None, line: Planned, code: str, weights: str) -> bool:
    """Whether ``result`` is of today's ``code`` and ``weights``, and of no less than is planned."""
    if result is None or "missing" in result:
        return False
    before = result.get("asked", {})
    enough = all(before.get(name, 0) >= wanted for name, wanted in asked(line).items())
    return enough and (result.get("code"), result["weights"]) == (code, weights)
