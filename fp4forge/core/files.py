"""One entry of a tar as a file."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path


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
