"""The one place that decides an option that is not given (``releases/defaults.yaml``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fp4forge.core.errors import UsageError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs import release as releases


@dataclass(frozen=True)
class Defaults:
    """Values of one section; an empty release means the newest with the strategy."""

    strategy: str
    variant: str
    base: str
    release: str = ""


@cache
def _table() -> dict[str, Any]:
    import yaml

    table: dict[str, Any] = yaml.load((RELEASES / "defaults.yaml").read_text(), yaml.CSafeLoader)
    return table


def section(name: str) -> Defaults:
    """One section of the file: ``reference`` or ``image``."""
    return Defaults(**_table()[name])


def newest(strategy: str) -> str:
    """The newest release that can be built by a strategy.

    Raises:
        UsageError: there is none.
    """
    for name in reversed(releases.names()):
        if strategy in releases.load(name).strategies:
            return name
    raise UsageError(
        f"--from {strategy!r}: no release can be built that way",
        rule="one of " + ", ".join(releases.STRATEGIES),
    )


def release_and_strategy(release: str | None, strategy: str | None) -> tuple[str, str]:
    """Both, if one or none of them is given.

    With neither, the reference's. A strategy alone takes the reference's release if it is the
    reference's strategy, else the newest release that has it. A release alone takes the
    reference's strategy if it has it, else its own first one.

    Raises:
        UsageError: there is no such release, or none with that strategy.
    """
    reference = section("reference")
    if release is None:
        if strategy in (None, reference.strategy):
            return reference.release, reference.strategy
        return newest(strategy or ""), strategy or ""
    if strategy is None:
        offered = releases.load(release).strategies
        first = next(iter(offered))
        strategy = reference.strategy if reference.strategy in offered else first
    return release, strategy
