"""One flag or variable of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One flag or variable, its value (empty: none) and its reason."""

    name: str
    value: str
    why: str
