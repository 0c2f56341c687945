"""Standard streams that never end in a traceback: closed, full, or of a reader that went away."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

from fp4forge.core.errors import DiskError

# What a shell reports for a program that SIGPIPE ended.
OUTPUT_CLOSED = 141


class OutputClosed(Exception):
    """Who read standard output went away."""


class _Output(io.FileIO):
    """Standard output; its failures are this program's own errors, which click lets through."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise OutputClosed from None
            raise DiskError(
                f"standard output cannot be written: {error.strerror}",
                remedy="free space at its target, or redirect it elsewhere",
            ) from None


class _Errors(io.FileIO):
    """Standard error: a build goes on if nobody reads it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare() -> None:
    """Makes standard streams usable: closed ones lead nowhere, and every character can be shown."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free handle is this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stdout = _text_stream(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text_stream(_Errors(2, "w", closefd=False), sys.stderr)


def _text_stream(raw: io.FileIO, before: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=raw.isatty() or raw.fileno() == 2,
    )


def drop() -> None:
    """Sends the rest of standard output nowhere: Python's last flush must not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
