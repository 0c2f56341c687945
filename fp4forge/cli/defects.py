"""What the command line does with errors that no step expected: none of them is a traceback."""

from __future__ import annotations

import errno
import os
import platform
import shlex
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import fp4forge
from fp4forge.core import paths, scratch
from fp4forge.core.errors import (
    DefectError,
    DiskError,
    EngineError,
    ForgeError,
    HostError,
    ToolError,
)
from fp4forge.core.text import shown, without_secrets


def expected(error: BaseException) -> ForgeError:
    """The error for people: what the system and the engine refuse, else a defect."""
    if isinstance(error, ForgeError):
        return error
    if isinstance(error, OSError) and (found := _os_refusal(error)):
        return found
    if isinstance(error, MemoryError):
        return HostError(
            "there is not enough memory",
            rule="what this machine has free, and what ulimit -v and the container allow",
            remedy="free some memory, or raise the limit, and run again",
        )
    docker = sys.modules.get("docker.errors")
    if docker and isinstance(error, docker.DockerException):
        return EngineError(
            f"the engine refuses: {shown(error, 300)}",
            rule="a command that the engine has accepted until now",
            remedy="docker info shows whether it still answers",
        )
    return defect(error)


def _os_refusal(error: OSError) -> ForgeError | None:
    """What the operating system refused; None for an error of another library's."""
    if error.errno is None:
        return None
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    why = f"{shown(name, 300)}: {error.strerror}" if name else str(error.strerror)
    if error.errno == errno.ENOENT and name and os.sep not in name:
        return ToolError(f"{shown(name, 60)} is not installed", remedy="run make setup")
    places = f"builds keep their state in {paths.STATE}, temporary files in {scratch.temporary()}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskError(
            why,
            rule=places,
            remedy="free some space, or set FP4FORGE_BUILD or TMPDIR to a larger disk",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HostError(
            why,
            rule=places,
            remedy="make it writable, or set FP4FORGE_BUILD or TMPDIR to other folders",
        )
    if not name and not _has_folder():
        why = "the folder in which this command was started no longer exists"
    return HostError(shown(why, 600), remedy="fix that, and run again")


def _has_folder() -> bool:
    try:
        return bool(Path.cwd())
    except OSError:
        return False


def defect(error: BaseException) -> DefectError:
    """A defect in fp4forge; its details go into a file, or to stderr with FP4FORGE_DEBUG=1."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    what = shown(without_secrets(f"{type(error).__name__}: {error}"), 300)
    return DefectError(
        f"fp4forge failed: {what}{where}",
        rule="this is a defect in fp4forge, whatever the input was",
        remedy=f"report it with {_write_defect(error)}; known secrets are left out, but look first",
    )


def _write_defect(error: BaseException) -> str:
    """Writes what a report needs; returns where."""
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception as another:  # an exception whose own text fails
        trace = f"{type(error).__name__}, whose text cannot be read: {type(another).__name__}\n"
    text = without_secrets(
        f"fp4forge {fp4forge.__version__}, Python {platform.python_version()},"
        f" {platform.platform()}\n{shlex.join(sys.argv)}\n\n{trace}"
    )
    if os.environ.get("FP4FORGE_DEBUG") == "1":
        sys.stderr.write(text.encode(errors="backslashreplace").decode())
        return "the lines above"
    for folder in (paths.STATE / "defects", Path(scratch.temporary())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            start = time.strftime("fp4forge-defect-%Y%m%d-%H%M%S-")
            handle, name = tempfile.mkstemp(".txt", start, folder)
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return name
    return "what FP4FORGE_DEBUG=1 prints (no file could be written)"


def in_thread(failed: threading.ExceptHookArgs) -> None:
    """Says what ended a thread, in one line instead of a traceback."""
    if failed.exc_value is not None:
        found = expected(failed.exc_value)
        sys.stderr.write(f"warning: {shown(found.message, 300)}\n")
