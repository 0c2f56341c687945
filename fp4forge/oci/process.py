"""Programs that end: each wait has a limit, and an interrupted wait ends the program."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable

from fp4forge.core.errors import ForgeError, RegistryError, ToolError
from fp4forge.core.limits import PROGRAM_SECONDS


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
            f"{' '.join(line[:3])} does not end within {seconds:.0f} s",
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
    heard, silent, over = time.monotonic(), threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(1):
            if time.monotonic() - heard > silence:
                silent.set()
                process.kill()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        for text in process.stdout:
            heard = time.monotonic()
            each(text)
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        over.set()
    if silent.is_set():
        raise kind(
            f"{line[0]} reports nothing for {silence:.0f} s and was ended",
            remedy="check what it waits for; running again resumes",
        )
    return code
