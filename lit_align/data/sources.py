"""Where prompts come from: a JSONL file, a Parquet file, a ``datasets`` dataset, or a list."""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from lit_align.types import Message, Prompt, PromptSource, UserError

Row = Mapping[str, Any]


def prompt_id(name: str, row: int) -> int:
    """A number in ``[0, 2**63)`` that is the same on every machine: a blake2b hash of the dataset's name and the row's number.

    >>> prompt_id("poems", 0) == prompt_id("poems", 0), prompt_id("poems", 0) == prompt_id("poems", 1)
    (True, False)
    """
    digest = hashlib.blake2b(json.dumps([name, row]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class RowPrompts(PromptSource):
    """Prompts made of the rows of a table; a subclass says where the rows are.

    The content is the conversation in ``messages_field`` where a row has one, else what is in ``prompt_field``: a text, or
    itself a conversation. A conversation is a list of ``{"role": ..., "content": ...}`` that does not end with the
    assistant's turn; further texts in a message are kept for the chat template. A field that is null counts as missing.
    Every field that is neither the content nor the reference goes to ``meta``.

    Args:
        where: the source, as an error names it.
        name: half of every prompt's id. Two sources of one run need two names, or their rows share noise and labels.
        prompt_field, messages_field: where the content is; None never looks there.
        reference_field: where the reference answer is, a text or null; None if there is none.
    """

    def __init__(self, where: str, name: str, prompt_field: str | None, messages_field: str | None, reference_field: str | None) -> None:
        self.where = where
        self.name = name
        self.prompt_field = prompt_field
        self.messages_field = messages_field
        self.reference_field = reference_field

    @abstractmethod
    def row(self, index: int) -> tuple[int, Row]:
        """Number in the source before any filter, and fields, of prompt number ``index``, ``0 <= index < len(self)``."""

    @final
    def __getitem__(self, index: int) -> Prompt:
        """Prompt number ``index``.

        Raises:
            UserError: if the row has no content, or a field has the wrong type.
        """
        number, row = self.row(range(len(self))[index])
        where = f"{self.where}, row {number} (counted from 0)"
        used, content = self._content(row, where)
        meta = {field: value for field, value in row.items() if field not in (used, self.reference_field)}
        return Prompt(prompt_id(self.name, number), content, self._reference(row, where), meta)

    def _content(self, row: Row, where: str) -> tuple[str, str | tuple[Message, ...]]:
        """The field that holds the content, and the content."""
        for field in (self.messages_field, self.prompt_field):
            value = None if field is None else row.get(field)
            if field is None or value is None:
                continue
            if isinstance(value, str) and field == self.prompt_field:
                return field, value
            return field, _conversation(value, f"{where}, field {field!r}", text_allowed=field == self.prompt_field)
        raise UserError(
            f"{where}: expected a text in {self.prompt_field!r} or a list of messages in {self.messages_field!r}, "
            f"but found {_listed(row)}. Set prompt_field or messages_field to the field that holds the prompt."
        )

    def _reference(self, row: Row, where: str) -> str | None:
        if self.reference_field is None:
            return None
        if self.reference_field not in row:
            raise UserError(
                f"{where}: expected the reference answer in {self.reference_field!r}, but found {_listed(row)}. "
                "Set reference_field to the field that holds it, or to null if there is none."
            )
        reference = row[self.reference_field]
        if reference is not None and not isinstance(reference, str):
            raise UserError(
                f"{where}, field {self.reference_field!r}: expected a text or null, got {_shown(reference)}. "
                "Write it as a text, or leave reference_field out: the value is then in the prompt's meta."
            )
        return reference


@final
class JsonlPrompts(RowPrompts):
    """One JSON object per line.

    A row's number is the number of its line, from 0. Blank lines are skipped but counted, so that no other line changes
    its number where one is blanked out. Every line is checked at construction.

    Args:
        path: the file, UTF-8; a relative path starts at the current folder, and ``$VARIABLES`` are expanded.
        prompt_field, messages_field, reference_field: see :class:`RowPrompts`.
        name: half of every prompt's id; the file's name without folder and suffix if None.
        max_prompts: the first so many rows; all if None.

    Raises:
        UserError: if the file is missing or empty, or a line is malformed or no prompt.
    """

    def __init__(
        self,
        path: str,
        prompt_field: str | None = "prompt",
        messages_field: str | None = "messages",
        reference_field: str | None = None,
        name: str | None = None,
        max_prompts: int | None = None,
    ) -> None:
        file = _existing_file(path)
        super().__init__(path, name or file.stem, prompt_field, messages_field, reference_field)
        limit = _limit(max_prompts)
        self._rows: list[tuple[int, Row]] = []
        with file.open("rb") as lines:
            for number, line in enumerate(lines):
                if len(self._rows) == limit:
                    break
                if line.strip():
                    self._rows.append((number, _parsed(line, path, number)))
        _check_rows(self)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> tuple[int, Row]:
        """Line number and fields."""
        return self._rows[index]


@final
class ParquetPrompts(RowPrompts):
    """The rows of one Parquet file, numbered from 0. Every row is checked at construction.

    Args:
        path: the file; a relative path starts at the current folder.
        prompt_field, messages_field, reference_field: see :class:`RowPrompts`.
        name: half of every prompt's id; the file's name without folder and suffix if None.
        max_prompts: the first so many rows; all if None.

    Raises:
        UserError: if the file is missing, empty or not Parquet, or a row is no prompt.
    """

    def __init__(
        self,
        path: str,
        prompt_field: str | None = "prompt",
        messages_field: str | None = "messages",
        reference_field: str | None = None,
        name: str | None = None,
        max_prompts: int | None = None,
    ) -> None:
        from pyarrow import ArrowException, parquet

        file = _existing_file(path)
        super().__init__(path, name or file.stem, prompt_field, messages_field, reference_field)
        try:
            table = parquet.read_table(file)
        except (ArrowException, OSError) as error:
            raise UserError(f"{path}: expected a Parquet file, but it can't be read: {error}. Write it again as Parquet.") from error
        self._table = table.slice(0, _limit(max_prompts))
        _check_rows(self)

    def __len__(self) -> int:
        return self._table.num_rows

    def row(self, index: int) -> tuple[int, Row]:
        """Row number and fields."""
        return index, self._table.slice(index, 1).to_pylist()[0]


@final
class DatasetPrompts(RowPrompts):
    """A split of anything that ``datasets.load_dataset`` takes: a name on the Hugging Face hub, or a folder of data files.

    It may be larger than memory, so the first row is checked at construction and every other when it is read.

    Args:
        path: name or folder.
        split: which split. Rows are numbered from 0 in it, in a slice such as ``train[1000:]`` from the slice's start.
        subset: which subset (``load_dataset`` calls it ``name``), where the dataset has several.
        prompt_field, messages_field, reference_field: see :class:`RowPrompts`.
        name: half of every prompt's id. If None, the dataset's name (of a folder, without its parents), subset and split,
            joined by slashes: two splits then share no id.
        max_prompts: the first so many rows; all if None.

    Raises:
        UserError: if there is no such dataset, subset or split, if it is empty, or if its first row is no prompt.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        subset: str | None = None,
        prompt_field: str | None = "prompt",
        messages_field: str | None = "messages",
        reference_field: str | None = None,
        name: str | None = None,
        max_prompts: int | None = None,
    ) -> None:
        from datasets import load_dataset

        called = Path(path).resolve().name if Path(path).exists() else path
        full_name = "/".join(part for part in (called, subset, split) if part)
        super().__init__(f"dataset {path}, split {split}", name or full_name, prompt_field, messages_field, reference_field)
        try:
            dataset = load_dataset(path, subset, split=split)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The dataset {path!r} (subset {subset!r}, split {split!r}) can't be loaded: {error} "
                f"Check the three, and whether it is a folder, from {Path.cwd()}, or a name on the hub that can be reached."
            ) from error
        limit = _limit(max_prompts)
        self._dataset = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
        _check_rows(self, first_only=True)

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> tuple[int, Row]:
        """Row number and fields."""
        return index, self._dataset[index]


@final
class ListPrompts(PromptSource):
    """Texts given in code or in the YAML, numbered from 0.

    Args:
        prompts: the texts.
        name: half of every prompt's id.

    Raises:
        UserError: if there is none, or one is no text.
    """

    def __init__(self, prompts: list[str], name: str = "list") -> None:
        if not prompts:
            raise UserError("ListPrompts: expected at least one prompt, got none. Give it a list of texts.")
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise UserError(
                    f"ListPrompts, prompt {row} (counted from 0): expected a text, got {_shown(prompt)}. Give it a list of texts."
                )
        self.prompts = prompts
        self.name = name

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        row = range(len(self))[index]
        return Prompt(prompt_id(self.name, row), self.prompts[row])


def _existing_file(path: str) -> Path:
    file = Path(os.path.expandvars(path)).expanduser()
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "nothing"
        raise UserError(f"Expected a file at {path}, found {kind} there (the current folder is {Path.cwd()}). Check the path.")
    return file


def _limit(max_prompts: int | None) -> int | None:
    if max_prompts is not None and max_prompts < 1:
        raise UserError(f"max_prompts: expected a number of at least 1, or null for all, got {max_prompts}.")
    return max_prompts


def _parsed(line: bytes, path: str, number: int) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8"))
    except ValueError as error:  # also what a wrong encoding raises
        raise UserError(
            f"{path}, line {number + 1}: expected one JSON object in UTF-8, but {error}. Correct or delete the line."
        ) from error
    if not isinstance(row, dict):
        raise UserError(
            f'{path}, line {number + 1}: expected a JSON object such as {{"prompt": "..."}}, got {_shown(row)}. Correct or delete the line.'
        )
    return row


def _check_rows(source: RowPrompts, first_only: bool = False) -> None:
    if len(source) == 0:
        raise UserError(f"{source.where}: expected at least one prompt, but it is empty. Check that it is the right one.")
    for index in range(1 if first_only else len(source)):
        source[index]


def _conversation(value: object, where: str, text_allowed: bool) -> tuple[Message, ...]:
    """The messages, checked."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) == 0:
        expected = "a text or a list of messages" if text_allowed else "a list of messages"
        raise UserError(
            f'{where}: expected {expected} such as [{{"role": "user", "content": "..."}}], got {_shown(value)}. '
            "Correct the row, or set prompt_field or messages_field to another field."
        )
    for turn, message in enumerate(value):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(
                f"{where}, message {turn} (counted from 0): expected an object with the texts 'role' and 'content', got {_shown(message)}. "
                "Correct the row, or set prompt_field or messages_field to another field."
            )
    if value[-1]["role"] == "assistant":
        raise UserError(
            f"{where}: expected messages that wait for an answer, but the last one is the assistant's. Leave it out (it may go to "
            "reference_field), or set messages_field to null where the prompt alone is in prompt_field."
        )
    return tuple({key: text for key, text in message.items() if isinstance(text, str)} for message in value)


def _listed(row: Row) -> str:
    """The fields of a row, for an error."""
    return ", ".join(f"{field!r}{' (null)' if value is None else ''}" for field, value in row.items()) or "no field at all"


def _shown(value: object) -> str:
    """A value and its type, for an error."""
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"
