"""Prompts from one file of yours: JSONL, at once or as a stream, and Parquet."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import final

from lit_align.data.columns import Row
from lit_align.data.messages import shown
from lit_align.data.sources.rows import RowPrompts, checked
from lit_align.types import IndexedPrompts, Prompt, PromptStream, UserError


@final
@dataclass(eq=False, repr=False)
class JsonlPrompts(RowPrompts, IndexedPrompts):
    """One JSON object per line.

    A row's number is the number of its line, from 0. Blank lines are skipped but counted, so that no other line changes
    its number where one is blanked out. Every line is checked at construction. The further arguments are those of
    :class:`RowPrompts`; the default name is the file's, without folder and suffix.

    Args:
        path: the file, UTF-8; a relative path starts at the current folder, and ``$VARIABLES`` are expanded.

    Raises:
        UserError: if the file is missing or empty, or a line is malformed or no prompt.
    """

    path: str

    def __post_init__(self) -> None:
        file = _existing_file(self.path)
        self.describe(self.path, file.stem)
        self._rows = list(islice(_lines(file, self.path), self.max_prompts))
        checked(self, self.where)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Prompt:
        """Prompt number ``index``."""
        return self.prompt(*self._rows[index])


@final
@dataclass(eq=False, repr=False)
class JsonlStream(RowPrompts, PromptStream):
    """A JSONL file that is read as the run goes: nothing of it stays in memory. Its prompts are those of :class:`JsonlPrompts`.

    Args:
        path: see :class:`JsonlPrompts`.
        shuffle_buffer: how many prompts to read, shuffle and give out at a time; 0 leaves them in order.

    Raises:
        UserError: if the file is missing or empty, or its first line is no prompt; for a later line when it is read.
    """

    path: str
    shuffle_buffer: int = 0

    def __post_init__(self) -> None:
        self._file = _existing_file(self.path)
        self.describe(self.path, self._file.stem)
        checked(self, self.where, first_only=True)

    def read(self, start: int = 0) -> Iterator[Prompt]:
        """One reading from prompt number ``start`` on."""
        return (self.prompt(number, row) for number, row in islice(_lines(self._file, self.path), start, self.max_prompts))


@final
@dataclass(eq=False, repr=False)
class ParquetPrompts(RowPrompts, IndexedPrompts):
    """The rows of one Parquet file, numbered from 0. Every row is checked at construction. The further arguments are those of
    :class:`RowPrompts`; the default name is the file's, without folder and suffix.

    Args:
        path: the file; a relative path starts at the current folder, and ``$VARIABLES`` are expanded.

    Raises:
        UserError: if the file is missing, empty or not Parquet, or a row is no prompt.
    """

    path: str

    def __post_init__(self) -> None:
        from pyarrow import ArrowException, parquet

        file = _existing_file(self.path)
        self.describe(self.path, file.stem)
        try:
            table = parquet.read_table(file)
        except (ArrowException, OSError) as error:
            raise UserError(f"{self.path}: expected a Parquet file, but it can't be read: {error}. Write it again as Parquet.") from error
        self._table = table.slice(0, self.max_prompts)
        checked(self, self.where)

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> Prompt:
        """Prompt number ``index``."""
        number = range(len(self))[index]
        return self.prompt(number, self._table.slice(number, 1).to_pylist()[0])


def _existing_file(path: str) -> Path:
    file = Path(os.path.expandvars(path)).expanduser()
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "nothing"
        raise UserError(f"Expected a file at {path}, found {kind} there (the current folder is {Path.cwd()}). Check the path.")
    return file


def _lines(file: Path, path: str) -> Iterator[tuple[int, Row]]:
    """Number and fields of every line that is not blank."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            if line.strip():
                yield number, _parsed(line, path, number)


def _parsed(line: bytes, path: str, number: int) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8"))
    except ValueError as error:  # also what a wrong encoding raises
        raise UserError(
            f"{path}, line {number + 1}: expected one JSON object in UTF-8, but {error}. Correct or delete the line."
        ) from error
    if not isinstance(row, dict):
        raise UserError(
            f'{path}, line {number + 1}: expected a JSON object such as {{"prompt": "..."}}, got {shown(row)}. Correct or delete the line.'
        )
    return row
