"""What this room needs of a program: failures that a user can meet, and a way to report progress.

It lies here because ``kernels`` travels into build stages alone; ``core`` adds the other failures.
"""

from __future__ import annotations

from collections.abc import Callable

# Called with one line of progress at a time.
Progress = Callable[[str], None]


class ForgeError(Exception):
    """Base of all expected failures; the command line prints it without a traceback.

    ``message`` says what is wrong and where, ``rule`` what was expected, ``remedy`` what to do.
    """

    exit_code = 1

    def __init__(self, message: str, *, rule: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.rule = rule
        self.remedy = remedy

    def as_json(self) -> dict[str, object]:
        """The error as a JSON object, for ``--json``."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "message": self.message,
            "rule": self.rule,
            "remedy": self.remedy,
        }


class UsageError(ForgeError):
    """A flag, name or value on the command line cannot be used."""

    exit_code = 2


class ToolError(ForgeError):
    """A program that this step needs is not installed."""

    exit_code = 16


class BinaryError(ForgeError):
    """A CUDA binary cannot be read."""

    exit_code = 18


class ReleaseError(ForgeError):
    """A release file or a source tree is missing, malformed or breaks the schema."""

    exit_code = 6
