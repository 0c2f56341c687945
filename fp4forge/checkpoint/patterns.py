"""Lists of modules that a configuration excludes or targets, matched against layers' names."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Iterable

from fp4forge.core.errors import CheckpointError
from fp4forge.core.text import shown

_ENTRIES = 10_000
_CHARACTERS = 200  # of a pattern, and of a name that one is tried on
_SECONDS = 10.0  # all patterns of a list on all names
_REPEATS = 4  # unbounded ones in a pattern: each makes matching slower by a name's length
_NESTED = re.compile(r"\([^()]*(?:[+*]|,\})[^()]*\)(?:[+*]|\{)")
_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


class ModulePatterns:
    """Entries that name modules: exactly, by a wildcard, or as ``re:`` by a regular expression."""

    def __init__(self, entries: Iterable[str], regular: bool, where: str) -> None:
        """Reads the entries.

        Args:
            entries: the list.
            regular: whether ``re:`` starts a regular expression (compressed-tensors); otherwise
                ``*`` is a wildcard, and a name covers everything below it (ModelOpt).
            where: what the list is, for messages.

        Raises:
            CheckpointError: an entry is not a regular expression, or would match too slowly.
        """
        listed = list(entries)
        if len(listed) > _ENTRIES:
            raise CheckpointError(
                f"{where} has {len(listed):,} entries", rule=f"at most {_ENTRIES:,} are read"
            )
        self._regular = regular
        self._exact: set[str] = set()
        patterns: list[re.Pattern[str]] = []
        for entry in listed:
            if regular and entry.startswith("re:"):
                patterns.append(_compiled_pattern(entry[3:], where))
            elif not regular and set("*?[") & set(entry):
                patterns.append(_wildcard(entry, where))
            else:
                self._exact.add(entry)
        self._patterns = patterns
        # Experts of a layer differ in their number alone, unless an entry names one.
        self._alike = not any(re.search(r"experts\S*\d", entry) for entry in listed)
        self._known: dict[str, bool] = {}
        self._where, self._left = where, _SECONDS

    def __contains__(self, module: str) -> bool:
        key = _EXPERT.sub("0", module) if self._alike else module
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._matches(key)
        return known

    def _matches(self, module: str) -> bool:
        if module in self._exact:
            return True
        if not self._regular and self._exact and self._below(module):
            return True
        if not self._patterns:
            return False
        short, start = module[:_CHARACTERS], time.monotonic()
        found = any(pattern.match(short) for pattern in self._patterns)
        self._left -= time.monotonic() - start
        if self._left < 0:
            raise CheckpointError(
                f"{self._where}: its patterns take too long to match",
                rule=f"{_SECONDS:.0f} s for all layers",
                remedy="simplify them",
            )
        return found

    def _below(self, module: str) -> bool:
        """Whether an entry names some consecutive steps of the module's path, as ``lm_head``."""
        steps = module[:_CHARACTERS].split(".")
        return any(
            ".".join(steps[start:end]) in self._exact
            for start in range(len(steps))
            for end in range(start + 1, len(steps) + 1)
        )


def _wildcard(text: str, where: str) -> re.Pattern[str]:
    if len(text) > _CHARACTERS or text.count("*") > 2 * _REPEATS:
        raise _bad_pattern(text, where)
    return re.compile(fnmatch.translate(text))


def _compiled_pattern(text: str, where: str) -> re.Pattern[str]:
    repeats = len(re.findall(r"(?<!\\)(?:[+*]|,\})", text))
    if len(text) > _CHARACTERS or repeats > _REPEATS or _NESTED.search(text):
        raise _bad_pattern(text, where)
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError):
        raise CheckpointError(
            f"{where}: {shown(text, 200)} is not a regular expression",
            rule="an entry after re: is one",
        ) from None


def _bad_pattern(text: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: the pattern {shown(text, 200)} could take hours to match",
        rule=f"at most {_CHARACTERS} characters and {_REPEATS} repeats, none inside another",
        remedy="simplify it",
    )
