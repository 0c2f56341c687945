"""Lines for the host: ``fp4forge`` and a JSON object; whatever else is printed is a library's."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


class QuantiseRefused(Exception):
    """What was asked for cannot be done; the host raises its own error with these texts."""

    def __init__(self, kind: str, message: str, rule: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.answer = {"kind": kind, "error": message, "rule": rule, "remedy": remedy}


def line(**content: Any) -> None:
    """Writes one line for the host."""
    sys.stdout.write("\nfp4forge " + json.dumps(content) + "\n")
    sys.stdout.flush()


class SampleProgress:
    """Notes with the time that is left, from the samples done so far."""

    def __init__(self, what: str, count: int, done: int) -> None:
        self.what, self.count, self.first = what, count, done
        self.began = time.monotonic()

    def at(self, done: int, more: str) -> None:
        """Reports how far it is."""
        rate = (done - self.first) / max(1e-9, time.monotonic() - self.began)
        left = f", {(self.count - done) / rate:,.0f} s left" if rate else ""
        line(note=f"{self.what} {done}/{self.count}{left}; {more}")
