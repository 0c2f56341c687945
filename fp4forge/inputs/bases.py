"""Base images: one from a hub, or one made here, as ``releases/bases.yaml`` lists them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from fp4forge.core.errors import UsageError
from fp4forge.core.paths import RELEASES
from fp4forge.core.platform import PLATFORMS

# No file of a base is newer (2026-01-01, UTC): the same packages give the same layer.
EPOCH = "1767225600"

# Files that differ from run to run and that no image needs.
CLEAN = (
    "var/cache/apt/archives/*.deb",
    "var/cache/apt/*.bin",
    "var/lib/apt/lists/*_*",
    "var/log/*.log",
    "var/log/apt/*",
    "var/cache/ldconfig/aux-cache",
    "etc/machine-id",
    "dev/*",
)


@dataclass(frozen=True)
class Base:
    """A base image and the Python that its distribution brings."""

    name: str
    python: str
    image: str = ""  # reference on a hub, with its digest where a lock has it
    suite: str = ""  # debootstrap suite, for a base made here

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name)

    def reference(self, platform: str) -> str:
        """What FROM names for a platform."""
        if self.suite:
            arch = PLATFORMS[platform].debian
            return f"fp4forge.local/bootstrap:{self.suite}-{arch}-{_recipe(self.suite)}"
        return self.image


def _recipe(suite: str) -> str:
    """Short hash of how a base is made: a changed recipe gives another base."""
    return hashlib.sha256(f"{suite} minbase {CLEAN} {EPOCH} loaded".encode()).hexdigest()[:8]


@cache
def table() -> dict[str, Any]:
    """The entries of ``releases/bases.yaml`` by name."""
    import yaml

    text = (RELEASES / "bases.yaml").read_text()
    table: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)["bases"]
    return table


def names() -> tuple[str, ...]:
    """Names that ``--base`` takes."""
    return tuple(table())


def load(name: str) -> Base:
    """The base that ``--base`` names.

    Raises:
        UsageError: there is no such base.
    """
    if name not in table():
        raise UsageError(
            f"--base {name!r} does not exist",
            rule="one of " + ", ".join(names()),
            remedy="add it to releases/bases.yaml",
        )
    entry = table()[name]
    image = entry.get("image", "")
    if entry.get("digest"):
        image += "@" + entry["digest"]
    return Base(name, entry["python"], image, entry.get("suite", ""))
