"""Docker's command-line client: the one place that makes its command lines."""

from __future__ import annotations

import shutil
import subprocess

from fp4forge.core.errors import EngineError, ForgeError, ToolError
from fp4forge.core.limits import PROGRAM_SECONDS
from fp4forge.oci import process

_PROGRAM = "docker"
_COMPOSE = (["docker", "compose"], ["docker-compose"])  # the plugin, and the older program


def installed() -> bool:
    """Whether PATH has the client."""
    return shutil.which(_PROGRAM) is not None


def line(*words: str) -> list[str]:
    """The command line of ``docker WORDS``."""
    return [_PROGRAM, *words]


def run(
    *words: str, seconds: float = PROGRAM_SECONDS, kind: type[ForgeError] = EngineError
) -> subprocess.CompletedProcess[str]:
    """Runs ``docker WORDS`` to its end; its exit code is the caller's to judge.

    Raises:
        ForgeError: of the given class: it does not end in time.
        ToolError: it cannot be started.
    """
    return process.run(line(*words), seconds, kind)


def compose() -> list[str]:
    """How Docker Compose is called here; empty if it is not installed."""
    for words in _COMPOSE:
        try:
            done = process.run([*words, "version"], kind=EngineError)
        except (ToolError, EngineError):
            continue
        if done.returncode == 0 and "ersion" in done.stdout:
            return [*words]
    return []
