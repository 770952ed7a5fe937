"""SQLite files that several processes of one machine may use at once, and that outlive their end, however it comes."""

import sqlite3
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import final

from lit_align.types import UserError

PATIENCE = 30.0  # seconds to wait for another process's transaction
AT_ONCE = 500  # keys of one SELECT


def connect(path: Path) -> sqlite3.Connection:
    """A database, made if missing, in which every statement outside ``BEGIN`` is a transaction of its own.

    What is committed outlives the process, ``kill -9`` included; a power cut may take the last moments. The connection may be used
    by several threads, one at a time.

    Raises:
        UserError: if the file is something else, or can't be opened.
    """
    deadline = time.monotonic() + PATIENCE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        while not _with_write_ahead_log(connection):
            if time.monotonic() > deadline:
                raise sqlite3.OperationalError("database is locked")
            time.sleep(0.01)
        connection.execute("PRAGMA synchronous=NORMAL")
    except (sqlite3.Error, OSError) as error:
        raise UserError(
            f"{path} should be an SQLite database that can be written, or not exist yet, but: {error}. "
            "Give another path, or remove the file."
        ) from error
    return connection


def digest(text: str) -> bytes:
    """16 bytes that no other text has."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@final
class Store:
    """Texts by key, in a file; the first text of a key stays. Safe for several threads and processes.

    Args:
        path: made if missing.

    Raises:
        UserError: see `connect`.
    """

    def __init__(self, path: Path) -> None:
        self._connection, self._lock = connect(path), Lock()
        self._connection.execute("CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, text TEXT NOT NULL)")

    def get(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """Those of these keys that are there, and their texts."""
        found: dict[bytes, str] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            query = f"SELECT key, text FROM texts WHERE key IN ({','.join('?' * len(some))})"
            with self._lock:
                found.update(self._connection.execute(query, some))
        return found

    def put(self, texts: Mapping[bytes, str]) -> None:
        """Commit all of these together; a key that is there already keeps its text."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", list(texts.items()))
            self._connection.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def _with_write_ahead_log(connection: sqlite3.Connection) -> bool:
    """Whether the file has one now. SQLite does not wait here for a process that is giving the file one at this moment."""
    try:
        return connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal"
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return False
        raise
