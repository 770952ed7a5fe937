"""Reading on where the last rollout stopped: sources that can be indexed, streams, and mixtures of both."""

from lit_align.data.loader import derived_seed
from lit_align.data.pool import PromptEncoder
from lit_align.data.readers.base import PromptReader
from lit_align.data.readers.indexed import IndexedReader
from lit_align.data.readers.mixed import MixedReader
from lit_align.data.readers.stream import StreamReader
from lit_align.data.sources.mixed import MixedPrompts
from lit_align.types import IndexedPrompts, PromptSource, PromptStream, UserError

__all__ = ["PromptReader", "reader_of"]


def reader_of(source: PromptSource, encoder: PromptEncoder, seed: int) -> PromptReader:
    """The reader for this kind of source.

    Raises:
        UserError: if it is none that can be read, or has no prompt that fits.
    """
    if isinstance(source, IndexedPrompts):
        return IndexedReader(source, encoder, seed)
    if isinstance(source, PromptStream):
        return StreamReader(source, encoder, seed)
    if isinstance(source, MixedPrompts):
        readers = {name: reader_of(each, encoder, derived_seed(seed, "dataset", name)) for name, each in source.sources.items()}
        return MixedReader(source, readers, seed)
    raise UserError(
        f"Prompts should be IndexedPrompts, a PromptStream or MixedPrompts, got {type(source).__name__}. Inherit from one of them."
    )
