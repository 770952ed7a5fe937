"""Where prompts come from: files, ``datasets`` datasets, lists, streams of them, and mixtures."""

from lit_align.data.sources.files import JsonlPrompts, JsonlStream, ParquetPrompts
from lit_align.data.sources.lists import ListPrompts
from lit_align.data.sources.mixed import MixedPrompts
from lit_align.data.sources.rows import RowPrompts, prompt_id
from lit_align.data.sources.splits import DatasetPrompts, DatasetStream

__all__ = [
    "DatasetPrompts",
    "DatasetStream",
    "JsonlPrompts",
    "JsonlStream",
    "ListPrompts",
    "MixedPrompts",
    "ParquetPrompts",
    "RowPrompts",
    "prompt_id",
]
