"""Temporary folders that a killed process does not leave behind: the next run removes them.

A folder's owner holds a lock on it. The kernel gives the lock back however the owner ends, so a
folder that nobody holds is a dead process's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "fp4forge."


@contextlib.contextmanager
def folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder for this process; what dead processes left beside it goes first.

    Args:
        parent: where; it exists.
        prefix: how the folder's name begins, which no other file there has.
    """
    sweep(parent, prefix)
    made, lock = _make_scratch(parent, prefix)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path, prefix: str) -> None:
    """Removes the folders of that prefix whose owner is dead."""
    for path in _own_folder(parent, prefix):
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


@contextlib.contextmanager
def for_process() -> Iterator[None]:
    """One folder for every temporary file of this process and of the programs that it starts.

    Where none can be made, Python's own choice stays: not every command needs one.
    """
    try:
        with contextlib.ExitStack() as stack:
            made = stack.enter_context(folder(Path(tempfile.gettempdir()), _PREFIX))
            before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
            tempfile.tempdir = os.environ["TMPDIR"] = str(made)
            stack.callback(_restore, before, variable)
            kept = stack.pop_all()
    except OSError:
        kept = contextlib.ExitStack()
    with kept:
        yield


def temporary() -> str:
    """The temporary folder as the user knows it: not the one of this process in it."""
    try:
        found = Path(tempfile.gettempdir())
    except OSError:  # none can be written
        return "none"
    return str(found.parent if found.name.startswith(_PREFIX) else found)


def _restore(before: str | None, variable: str | None) -> None:
    tempfile.tempdir = before
    os.environ.pop("TMPDIR", None)
    if variable is not None:
        os.environ["TMPDIR"] = variable


def _own_folder(parent: Path, prefix: str) -> Iterator[Path]:
    try:
        entries = list(os.scandir(parent))
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            if (
                entry.name.startswith(prefix)
                and entry.is_dir(follow_symlinks=False)
                and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
            ):
                yield Path(entry.path)


def _lock(path: Path) -> int | None:
    """A handle that holds the folder's lock; None if another process holds it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _make_scratch(parent: Path, prefix: str) -> tuple[Path, int]:
    for _ in range(100):
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = _lock(made)
        # Between these two lines another run may have taken the folder for a dead one's.
        if lock is not None and os.fstat(lock).st_nlink and made.exists():
            return made, lock
        if lock is not None:
            os.close(lock)
    raise FileExistsError(f"no temporary folder can be held in {parent}")
