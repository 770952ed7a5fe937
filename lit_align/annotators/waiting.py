"""Waiting for asynchronous calls from code that is not."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

_T = TypeVar("_T")


def outside_of_a_loop(call: Callable[[], _T]) -> _T:
    """``call()``, in another thread if this one, like a notebook's, has an event loop running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, call).result()
