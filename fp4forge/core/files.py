"""Files written whole or not at all, and one entry of a tar as a file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

_PARTIAL = ".partial"


def replace(path: Path, content: str | bytes, mode: int | None = None) -> None:
    """Writes a file that is never seen half written, whenever this process is killed.

    Args:
        path: a link is followed; its folder is made. A device or pipe is written as it is.
        content: text is written as UTF-8.
        mode: permissions; by default those of the old file, or of any new one.

    Raises:
        OSError: it cannot be written; a pipe must have a reader.
    """
    data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        # Without blocking: a pipe without a reader would be waited for.
        handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(handle, True)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _forget_dead(path)
    if mode is None:
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask()
    handle, name = _partial(path)
    try:
        with os.fdopen(
            handle, "wb"
        ) as file:  # open, and so locked, until the name is the right one
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
            Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear(path: Path) -> None:
    """Removes what has a file's name and is not one: a folder, a pipe, a link to nothing.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_file() or not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _partial(path: Path) -> tuple[int, str]:
    """A new file beside another, locked: who finds it unlocked knows that its writer is dead."""
    while True:
        handle, name = tempfile.mkstemp(_PARTIAL, f".{path.name[:100]}.", path.parent)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else another process found it before it was locked
            return handle, name
        os.close(handle)


def _forget_dead(path: Path) -> None:
    """Removes what a process that was killed left of this file."""
    start = f".{path.name[:100]}."
    for entry in path.parent.iterdir():
        if entry.name.startswith(start) and entry.name.endswith(_PARTIAL):
            with contextlib.suppress(OSError), entry.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                entry.unlink()


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def write(archive: tarfile.TarFile, entry: tarfile.TarInfo, root: Path) -> None:
    """Writes a plain file under a folder, with the permissions of a new one.

    Args:
        archive: may be a stream; then the entry is the one just read.
        entry: a regular file. The caller has checked that its name is relative and without ``..``.
        root: the folder; folders below it are made.
    """
    content = archive.extractfile(entry)
    assert content is not None
    path = root / entry.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
