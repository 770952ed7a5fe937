"""One live run per folder."""

from pathlib import Path

from filelock import FileLock, Timeout

from lit_align.types import UserError


def lock_run(folder: Path) -> FileLock:
    """Hold a run's folder for this process, until ``release()``, or nobody keeps what this returns, or the process ends, however.

    The operating system keeps the lock, so a run that was killed doesn't stand in the way of its resume. All that ask in one
    process hold the same lock. Of several ranks the first one asks, for all.

    Args:
        folder: made if missing; it gets an empty file ``lock``, which stays and means nothing by itself.

    Raises:
        UserError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"A run that is still alive works in {folder}: a second one would mix its labels and checkpoints with those of the first. Wait "
            "for its end or stop it, or choose another folder (--run)."
        ) from error
    return lock
