"""What became of one image test, and of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImageCheck:
    """One image test: its outcome (passed, failed, skipped), the reason if not passed, figures.

    ``test`` is its function, ``name`` what it says of an image that passes.
    """

    test: str
    name: str
    outcome: str
    message: str
    seconds: float
    facts: dict[str, Any]


def summary(checks: tuple[ImageCheck, ...]) -> str:
    """How many passed, failed and were skipped."""
    counts = {word: sum(c.outcome == word for c in checks) for word in ("failed", "skipped")}
    passed = sum(c.outcome == "passed" for c in checks)
    rest = "".join(f", {count} {word}" for word, count in counts.items() if count)
    return f"{passed} of {len(checks)} checks passed{rest}"
