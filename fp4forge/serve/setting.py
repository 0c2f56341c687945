"""One flag or variable of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSetting:
    """One flag or variable, its value (empty: none) and its reason."""

    name: str
    value: str
    why: str
    more: tuple[str, ...] = ()  # further words, of a flag that takes several

    @property
    def words(self) -> list[str]:
        """The flag as it stands on a command line."""
        return [self.name, *([self.value] if self.value else []), *self.more]
