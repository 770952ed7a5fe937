"""Running out of memory, which says nothing of a model: no way of reading may be chosen or left because of it."""

import torch

WORDS = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")  # of errors that have no type of their own


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is of that kind, or followed on one that is, as the end of a recording does on what ended it.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shapes do not match"))
    (True, False)
    """
    if error is None:
        return False
    typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
    worded = isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)
    return typed or worded or out_of_memory(error.__context__)
