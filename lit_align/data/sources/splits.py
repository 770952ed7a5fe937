"""Prompts from what ``datasets.load_dataset`` takes: a name on the Hugging Face hub, or a folder of data files."""

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, final

from lit_align.data.sources.rows import RowPrompts, checked
from lit_align.types import IndexedPrompts, Prompt, PromptStream, UserError


@dataclass(eq=False, repr=False)
class SplitPrompts(RowPrompts, ABC):
    """The rows of a split. Rows are numbered from 0 in it, in a slice such as ``train[1000:]`` from the slice's start.

    The further arguments are those of :class:`RowPrompts`. The default name is the dataset's (of a folder, without its parents),
    subset and split, joined by slashes: two splits then share no id.

    Args:
        path: name or folder.
        split: which split.
        subset: which subset (``load_dataset`` calls it ``name``), where the dataset has several.
    """

    path: str
    split: str = "train"
    subset: str | None = None

    @final
    def load(self, streaming: bool) -> Any:
        """The dataset.

        Raises:
            UserError: if there is no such dataset, subset or split.
        """
        from datasets import load_dataset

        called = Path(self.path).resolve().name if Path(self.path).exists() else self.path
        self.describe(f"dataset {self.path}, split {self.split}", "/".join(part for part in (called, self.subset, self.split) if part))
        try:
            return load_dataset(self.path, self.subset, split=self.split, streaming=streaming)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The dataset {self.path!r} (subset {self.subset!r}, split {self.split!r}) can't be loaded: {error} "
                f"Check the three, and whether it is a folder, from {Path.cwd()}, or a name on the hub that can be reached."
            ) from error


@final
@dataclass(eq=False, repr=False)
class DatasetPrompts(SplitPrompts, IndexedPrompts):
    """A split that is read into Arrow files on disk. It may be larger than memory, so the first row is checked at construction
    and every other when it is read. Arguments and errors are those of :class:`SplitPrompts`."""

    def __post_init__(self) -> None:
        dataset = self.load(streaming=False)
        self._dataset = dataset if self.max_prompts is None else dataset.select(range(min(self.max_prompts, len(dataset))))
        checked(self, self.where, first_only=True)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Prompt:
        """Prompt number ``index``."""
        number = range(len(self))[index]
        return self.prompt(number, self._dataset[number])


@final
@dataclass(eq=False, repr=False)
class DatasetStream(SplitPrompts, PromptStream):
    """A split that is read as the run goes, without a copy on disk. Arguments and errors are those of :class:`SplitPrompts`; a slice
    of a split can't be streamed.

    Args:
        shuffle_buffer: how many prompts to read, shuffle and give out at a time; 0 leaves them in order.
    """

    shuffle_buffer: int = 0

    def __post_init__(self) -> None:
        self._dataset = self.load(streaming=True)
        checked(self, self.where, first_only=True)

    def read(self, start: int = 0) -> Iterator[Prompt]:
        """One reading from prompt number ``start`` on."""
        rows = islice(self._dataset.skip(start), None if self.max_prompts is None else max(self.max_prompts - start, 0))
        return (self.prompt(number, row) for number, row in enumerate(rows, start))
