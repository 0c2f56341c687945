"""What differs between two releases, for people: short by default, each row with --verbose."""

from __future__ import annotations

import re
from collections import Counter

from fp4forge.core.console import fields

_COMMIT = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28}\b")
_INDENT = 16

Row = tuple[str, str, str]


def lines(rows: list[Row], verbose: bool = False) -> list[str]:
    """Pins, external sources and patches; backends and packages as counts.

    Args:
        rows: a name, and its value in both releases; empty if one lacks it.
        verbose: every row, with whole hashes.
    """
    if not rows:
        return ["no difference"]
    if verbose:
        return fields(
            [(name, f"{old or 'none'} -> {new or 'none'}") for name, old, new in rows], 32
        )
    kinds: dict[str, list[Row]] = {"": []}
    for name, old, new in rows:
        kind, _, rest = name.partition(" ")
        kind, rest = (kind, rest) if kind in _TEXTS else ("", name)
        kinds.setdefault(kind, []).append((rest, _short(old), _short(new)))
    found = [(name, f"{old} -> {new}") for name, old, new in kinds.pop("")]
    found += [(_TEXTS[kind][0], _TEXTS[kind][1](own)) for kind, own in kinds.items()]
    return [*fields(found, _INDENT), "--verbose lists every backend and package"]


def _short(value: str) -> str:
    return _COMMIT.sub(r"\1", value)


def _each(rows: list[Row]) -> str:
    return "\n".join(f"{name}: {old or 'none'} -> {new or 'none'}" for name, old, new in rows)


def _backends(rows: list[Row]) -> str:
    """How many selections differ, by GPU: the first word of each name."""
    gpus = Counter(name.split()[0] for name, *_ in rows)
    return f"{len(rows)} selections differ: " + ", ".join(f"{n} on {g}" for g, n in gpus.items())


def _packages(rows: list[Row]) -> str:
    moved = sum(bool(old and new) for _, old, new in rows)
    said = [f"{moved} in another version"]
    for what, names in (
        ("new", [name for name, old, _ in rows if not old]),
        ("gone", [name for name, _, new in rows if not new]),
    ):
        if names:
            said.append(f"{len(names)} {what}: {', '.join(names)}")
    return "\n".join(said)


# What names of ``maintain.releases.differences`` begin with; the others are pins.
_TEXTS = {
    "external": ("sources", _each),
    "patch": ("patches", _each),
    "backend": ("backends", _backends),
    "package": ("packages", _packages),
}
