"""Counts the spine: the lines of code that one epoch passes through, from the prompts to the optimizer step.

Docstrings, comments and blank lines don't count, nor does what a method calls unless it is listed. Someone who reads these
lines knows the wheel; ``python scripts/spine.py`` fails when they are more than ``LIMIT`` or when one is no longer there.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 150
SPINE = (
    ("lit_align/data/base.py", "AlignmentDataModule.train_dataloader"),
    ("lit_align/data/base.py", "AlignmentDataModule._rank_prompts"),
    ("lit_align/data/base.py", "AlignmentDataModule.draw"),
    ("lit_align/data/base.py", "AlignmentDataModule._loader"),
    ("lit_align/data/online.py", "OnlineDataModule.make_rollout"),
    ("lit_align/data/sampling.py", "SamplingDataModule.label"),
    ("lit_align/data/loader.py", "RolloutLoader.__iter__"),
    ("lit_align/data/loader.py", "schedule"),
    ("lit_align/algorithms/base.py", "AlignmentModule.prepare_rollout"),
    ("lit_align/algorithms/base.py", "AlignmentModule.training_step"),
    ("lit_align/algorithms/stepping.py", "SteppingModule.step_loss"),
    ("lit_align/algorithms/stepping.py", "SteppingModule.on_before_optimizer_step"),
    ("lit_align/algorithms/dar.py", "DAR.prepare"),
    ("lit_align/algorithms/dar.py", "DAR.objective"),
)

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def definition(tree: ast.Module, name: str) -> Definition | None:
    """The class, method or function of this qualified name, None if there is none."""
    found: ast.Module | Definition = tree
    for part in name.split("."):
        inside = [node for node in found.body if isinstance(node, Definition) and node.name == part]
        if not inside:
            return None
        found = inside[-1]  # as in Python, the last one holds
    return found if isinstance(found, Definition) else None


def docstring_lines(node: ast.AST) -> set[int]:
    """Numbers of the lines that are docstrings, of ``node`` and of everything defined in it."""
    found: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, Definition) and ast.get_docstring(inner, clean=False) is not None:
            found.update(range(inner.body[0].lineno, (inner.body[0].end_lineno or 0) + 1))
    return found


def lines_of_code(source: str, name: str) -> int | None:
    """How many lines of ``source`` are code of ``name``, decorators included; None if it isn't there."""
    node = definition(ast.parse(source), name)
    if node is None:
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return len((code - docstring_lines(node)) & set(range(first, (node.end_lineno or first) + 1)))


def report(root: Path = ROOT, spine: Sequence[tuple[str, str]] = SPINE, limit: int = LIMIT) -> tuple[list[str], bool]:
    """The lines to print, and whether every name is there and the total within ``limit``."""
    lines, total, missing = [], 0, []
    for file, name in spine:
        path = root / file
        count = lines_of_code(path.read_text(encoding="utf-8"), name) if path.is_file() else None
        lines.append(f"{'?' if count is None else count:>5}  {file}  {name}")
        total += count or 0
        if count is None:
            missing.append(f"{file} has no {name}: if it was renamed or moved, change SPINE in scripts/spine.py.")
    lines += [f"{total:>5}  of at most {limit}", *missing]
    if total > limit:
        lines.append(f"The spine has {total} lines of code, at most {limit} were agreed: move what isn't the wheel out of its methods.")
    return lines, not missing and total <= limit


def main() -> int:
    """Print the report; 0 if the spine holds."""
    lines, holds = report()
    print("\n".join(lines))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
