"""Programs that end: each wait has a limit, and an interrupted wait ends the program."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from fp4forge.core.errors import ForgeError, RegistryError, ToolError
from fp4forge.core.limits import PROGRAM_SECONDS

T = TypeVar("T")


def run(
    line: list[str], seconds: float = PROGRAM_SECONDS, kind: type[ForgeError] = RegistryError
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end; its output is text, whatever bytes it prints.

    Raises:
        ForgeError: of the given class: it does not end in time.
        ToolError: it cannot be started.
    """
    try:
        return subprocess.run(
            line, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise kind(
            f"{' '.join(line[:3])} did not finish within {seconds:.0f} s",
            remedy="check what it waits for; running again resumes",
        ) from None
    except OSError as error:
        raise ToolError(
            f"{line[0]} cannot be started: {error.strerror}", remedy="run make setup"
        ) from None


def follow(
    line: list[str],
    each: Callable[[str], None],
    silence: float,
    kind: type[ForgeError] = RegistryError,
) -> int:
    """Runs a program and passes on its output line by line; returns its exit code.

    Args:
        line: the command line.
        each: called with each line.
        silence: seconds without a line after which the program is ended.
        kind: class of the error.

    Raises:
        ForgeError: of the given class: it stays silent for longer.
    """
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    watch = Watchdog(silence, process.kill)
    try:
        for text in process.stdout:
            watch.heard()
            each(text)
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        watch.stop()
    if watch.silent:
        raise kind(
            f"{line[0]} reported nothing for {silence:.0f} s and was stopped",
            remedy="check what it waits for; running again resumes",
        )
    return code


class Watchdog:
    """Ends something that reports nothing for too long.

    Args:
        seconds: the longest silence.
        end: called once, in a thread of its own, if it is exceeded.
    """

    def __init__(self, seconds: float, end: Callable[[], None]) -> None:
        self.silent = False
        self._seconds, self._end = seconds, end
        self._last, self._over = time.monotonic(), threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def heard(self) -> None:
        """Something was reported."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """What was watched is over."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(min(1, self._seconds)):
            if time.monotonic() - self._last > self._seconds:
                self.silent = True
                self._end()
                return


def timed(items: Iterable[T], seconds: float) -> Iterator[T]:
    """What something else produces, each within a time.

    Args:
        items: read in a thread of its own, which an abandoned wait leaves behind.
        seconds: for each.

    Raises:
        TimeoutError: the next one does not come.
    """
    found: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        try:
            for item in items:
                found.put(("item", item))
            found.put(("end", None))
        except BaseException as error:  # raised where the items are read
            found.put(("error", error))

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            kind, item = found.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if kind == "error":
            raise item
        if kind == "end":
            return
        yield item
