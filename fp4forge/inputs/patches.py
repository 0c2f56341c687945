"""Patch series: ``patches/<package>/<version>/series.yaml`` and its unified diffs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.core import paths
from fp4forge.core.errors import PatchError

TIERS = ("python", "csrc")
_REQUIRED = {
    "id", "file", "title", "why", "upstream", "detect", "tier", "variants", "files", "proof",
}  # fmt: skip


@dataclass(frozen=True)
class FileHash:
    """SHA-256 of one file before and after a patch; the path is relative to dist-packages."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Patch:
    """One record of a series."""

    id: str
    file: str
    title: str
    why: str
    upstream: str
    fixed_in: str  # first version that has it, empty when none has
    detect: dict[str, str]  # file -> pattern that only a source with the fix matches
    tier: str
    variants: tuple[str, ...]
    files: tuple[FileHash, ...]
    proof: str
    sha256: str  # of the diff itself


@dataclass(frozen=True)
class Upstreamed:
    """A fix that other versions need a patch for and this one has itself."""

    id: str
    fixed_in: str
    detect: dict[str, str]


@dataclass(frozen=True)
class Series:
    """All patches of one package version, in the order in which they are applied."""

    package: str
    version: str
    patches: tuple[Patch, ...]
    folder: Path
    already_upstream: tuple[Upstreamed, ...] = ()

    def for_variant(self, variant: str, tier: str = "python") -> tuple[Patch, ...]:
        """The patches of a variant in one tier."""
        return tuple(p for p in self.patches if variant in p.variants and p.tier == tier)

    def files(self, variant: str) -> tuple[Path, ...]:
        """The record and the variant's diffs; none if the version has no series."""
        if not self.patches:
            return ()
        diffs = (self.folder / p.file for p in self.patches if variant in p.variants)
        return (self.folder / "series.yaml", *diffs)


def patched_files(patches: tuple[Patch, ...]) -> dict[str, str]:
    """Path of every patched file with the SHA-256 it has after the last patch."""
    return {file.path: file.after for patch in patches for file in patch.files}


def load(package: str, version: str, chained: bool = True) -> Series:
    """Loads a series; a version without a folder has an empty one.

    Without ``chained`` the recorded hashes need not follow each other: they are to be renewed.

    Raises:
        PatchError: the YAML is malformed, a record is incomplete, a diff is missing, or the
            hashes of two patches to one file do not chain.
    """
    import yaml

    folder = paths.PATCHES / package / version
    path = folder / "series.yaml"
    where = f"patches/{package}/{version}/series.yaml"
    if not path.is_file():
        return Series(package, version, (), folder)
    try:
        data = yaml.load(path.read_text(), yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise PatchError(f"{where} is not valid YAML: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("patches"), list):
        raise PatchError(f"{where} has no list 'patches'")
    patches = tuple(_patch(folder, where, record) for record in data["patches"])
    if chained:
        _check_chain(where, patches)
    have = tuple(Upstreamed(**record) for record in data.get("already_upstream", []))
    return Series(package, version, patches, folder, have)


def _patch(folder: Path, where: str, record: dict[str, Any]) -> Patch:
    name = record.get("id", "(no id)")
    missing = _REQUIRED - record.keys()
    if missing:
        raise PatchError(f"{where}: {name}: {', '.join(sorted(missing))} missing")
    if record["tier"] not in TIERS:
        raise PatchError(
            f"{where}: {name}: tier {record['tier']!r}", rule="one of " + ", ".join(TIERS)
        )
    diff = folder / record["file"]
    if diff.parent != folder or not diff.is_file():
        raise PatchError(f"{where}: {name}: there is no diff {record['file']!r} beside it")
    return Patch(
        id=name,
        file=record["file"],
        title=record["title"],
        why=" ".join(record["why"].split()),
        upstream=record["upstream"],
        fixed_in=record.get("fixed_in", ""),
        detect=_patterns(where, name, record["detect"]),
        tier=record["tier"],
        variants=tuple(record["variants"]),
        files=tuple(
            FileHash(path, hashes["before"], hashes["after"])
            for path, hashes in record["files"].items()
        ),
        proof=record["proof"],
        sha256=hashlib.sha256(diff.read_bytes()).hexdigest(),
    )


def _patterns(where: str, name: str, detect: Any) -> dict[str, str]:
    try:
        for pattern in detect.values():
            re.compile(pattern)
    except (AttributeError, TypeError, re.error) as error:
        raise PatchError(
            f"{where}: {name}: detect: {error}", rule="a file and a regular expression each"
        ) from None
    return dict(detect)


def versions(package: str) -> tuple[str, ...]:
    """Versions that have a series, oldest first."""
    from packaging.version import Version

    found = (path.parent.name for path in (paths.PATCHES / package).glob("*/series.yaml"))
    return tuple(sorted(found, key=Version))


def _check_chain(where: str, patches: tuple[Patch, ...]) -> None:
    current: dict[str, str] = {}
    for patch in patches:
        for file in patch.files:
            if current.get(file.path, file.before) != file.before:
                raise PatchError(
                    f"{where}: {patch.id}: {file.path} starts from {file.before[:12]}",
                    rule=f"the patch before it leaves {current[file.path][:12]}",
                    remedy="run build.py patch refresh",
                )
            current[file.path] = file.after
