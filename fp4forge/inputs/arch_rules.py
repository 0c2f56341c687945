"""What a release compiles for which lists: ``releases/archs/VERSION.json`` and ``.cmake``."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.limits import INPUT_BYTES
from fp4forge.core.paths import RELEASES


class ArchRules(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of what CMake made of lists, as ``maintain.write_arch_rules`` writes it."""

    units: list[list[str]]  # sources that are always compiled alike
    targets: list[str]  # texts such as "10.0f 12.0f"
    results: list[str]  # for each result and unit a number of targets
    lists: dict[str, dict[str, int]]  # CUDA -> list -> number of a result
    fp8_guards: list[str]  # what leaves FP8's kernels empty for some targets

    def __post_init__(self) -> None:
        """Checks that every number is one of what it numbers."""
        for result in self.results:
            numbers = [int(number) for number in result.split()]
            if len(numbers) != len(self.units) or not _unit_fits(numbers, self.targets):
                raise ValueError("a result does not fit units and targets")
        if not all(_unit_fits(list(found.values()), self.results) for found in self.lists.values()):
            raise ValueError("a list has no result")

    def sources(self, text: str, cuda: str) -> dict[str, list[str]] | None:
        """Targets of each source for a list; None if it is not in the table.

        Args:
            text: the list, as ``archs.torch_archs`` gives it.
            cuda: version of the compiler.
        """
        number = self.lists.get(cuda, {}).get(text)
        if number is None:
            return None
        targets = [self.targets[int(place)].split() for place in self.results[number].split()]
        return {s: t for unit, t in zip(self.units, targets, strict=True) for s in unit if t}


def _unit_fits(numbers: list[int], what: list[str]) -> bool:
    return min(numbers, default=0) >= 0 and max(numbers, default=-1) < len(what)


@cache
def load(vllm: str) -> ArchRules:
    """The table of a release.

    Raises:
        UsageError: none was extracted for it.
        ReleaseError: the file is not what ``arch extract`` writes.
    """
    path = RELEASES / "archs" / f"{vllm}.json"
    if not re.fullmatch(r"[0-9][0-9a-z.]*", vllm) or not path.exists():
        known = sorted(p.stem for p in (RELEASES / "archs").glob("*.json"))
        raise UsageError(
            f"--vllm {vllm!r}: what its CMake compiles is not known",
            rule="one of " + ", ".join(known),
            remedy=f"build.py arch extract --vllm {vllm} reads it from the sources",
        )
    where = f"{RELEASES.name}/archs/{vllm}.json"
    return parse(reading.text(path, ReleaseError, INPUT_BYTES, where), where)


def parse(text: str, where: str) -> ArchRules:
    """The table in a text; ``where`` names it in messages.

    Raises:
        ReleaseError: the text is not what ``arch extract`` writes.
    """
    try:
        return msgspec.json.decode(text, type=ArchRules)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ReleaseError(
            f"{where} does not hold a table of architectures: {error}",
            rule="build.py arch extract writes it",
            remedy="build.py arch extract --vllm VERSION",
        ) from None


def script(vllm: str) -> Path:
    """What decides architectures in the CMake files of a release.

    Raises:
        ReleaseError: the file is missing.
    """
    path = RELEASES / "archs" / f"{vllm}.cmake"
    if not path.is_file():
        raise ReleaseError(
            f"{RELEASES.name}/archs/{vllm}.cmake is missing",
            rule="build.py arch extract writes it",
            remedy=f"build.py arch extract --vllm {vllm}",
        )
    return path
