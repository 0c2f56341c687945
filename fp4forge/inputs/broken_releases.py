"""What is done for every release: a broken one does not stop the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fp4forge.core.errors import (
    BrokenReleasesError,
    CoverageError,
    ForgeError,
    PatchError,
    ReleaseError,
    UsageError,
)


class Failures:
    """What is wrong with single releases while something is done for each of them."""

    def __init__(self) -> None:
        self.found: dict[str, ForgeError] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Keeps a failure that is the release's own, its patches' or its table's."""
        try:
            yield
        except (ReleaseError, PatchError, CoverageError, UsageError) as error:
            self.found.setdefault(name, error)

    def has(self, file: str) -> bool:
        """Whether a file of ``dockerfiles/`` or ``locks/`` is of a broken release."""
        return any(re.match(rf"{re.escape(name)}[-/]", file) for name in self.found)

    @property
    def lines(self) -> list[str]:
        """A line for each broken release."""
        return [f"release {name}: {error.message}" for name, error in self.found.items()]

    def check(self) -> None:
        """Reports the broken releases, once everything else is done.

        Raises:
            BrokenReleasesError: there are some.
        """
        if self.found:
            raise BrokenReleasesError(
                "\n".join(self.lines),
                rule="; ".join(dict.fromkeys(e.rule for e in self.found.values() if e.rule)),
                remedy="correct it; all other releases were done",
            )
