"""Patch series: ``patches/<package>/<version>/series.yaml`` and its unified diffs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from fp4forge.core import paths, reading
from fp4forge.core.errors import PatchError
from fp4forge.inputs.reader import BrokenField, InputFormat, by_version, one_of
from fp4forge.inputs.release import UNPATCHED, VARIANTS, Sha256, Variant
from fp4forge.inputs.yaml_document import shortened

TIERS = ("python", "csrc")

Text = Annotated[str, Meta(min_length=1)]
Name = Annotated[
    str,
    Meta(pattern="^[a-z0-9][a-z0-9-]*$", description="a name: lower-case letters, digits and -"),
]
FilePath = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$",
        description="a file's path relative to the sources",
        examples=["vllm/model_executor/models/gemma4.py"],
    ),
]
Detect = Annotated[
    dict[FilePath, Annotated[str, Meta(min_length=1, max_length=1000)]],
    Meta(min_length=1, description="by file, a regular expression that only the fix matches"),
]
FixedIn = Annotated[
    str,
    Meta(
        pattern=r"^([0-9]+\.[0-9][a-z0-9.]*)?$",
        description="the first version with the fix; empty if none has it",
        examples=["1.2.0"],
    ),
]


class FileHash(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SHA-256 of one file before and after a patch; ``build.py patch refresh`` records them."""

    before: Sha256
    after: Sha256


class Patch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One record of a series."""

    id: Name
    file: Annotated[
        str,
        Meta(
            pattern="^[A-Za-z0-9_-][A-Za-z0-9._-]*$", description="the diff, a file beside this one"
        ),
    ]
    title: Annotated[Text, Meta(description="what the patch does")]
    why: Annotated[Text, Meta(description="the symptom that a user sees without it")]
    upstream: Annotated[Text, Meta(description="the pull request or report, or why there is none")]
    fixed_in: FixedIn = ""
    detect: Detect
    tier: Annotated[str, one_of(TIERS, "a tier")]
    variants: Annotated[
        tuple[Variant, ...], Meta(min_length=1, description="the images that the patch goes into")
    ]
    files: Annotated[
        dict[FilePath, FileHash],
        Meta(description="hashes of every patched file; build.py patch refresh writes them"),
    ] = {}
    proof: Annotated[
        Text, Meta(description="the test that shows the symptom without the patch only")
    ]

    def __post_init__(self) -> None:
        """Checks the patterns."""
        _compile_detect(self.detect)


class Upstreamed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fix that other versions need a patch for and this one has itself."""

    id: Name
    fixed_in: FixedIn
    detect: Detect

    def __post_init__(self) -> None:
        """Checks the patterns."""
        _compile_detect(self.detect)


class PatchConflict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A patch of an earlier version that does not fit this one and waits for a person."""

    id: Name
    of: Annotated[Text, Meta(description="the version whose series has the patch")]
    why: Annotated[Text, Meta(description="what does not fit")]
    variants: Annotated[
        tuple[Variant, ...], Meta(min_length=1, description="the images that cannot be built")
    ]


class SeriesFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The patches to one version of a package."""

    patches: Annotated[
        tuple[Patch, ...], Meta(description="the patches in the order in which they are applied")
    ]
    already_upstream: Annotated[
        tuple[Upstreamed, ...],
        Meta(description="fixes that this version has itself; patch check looks for them"),
    ] = ()
    conflicts: Annotated[
        tuple[PatchConflict, ...],
        Meta(description="patches that a person must write; their variants cannot be built"),
    ] = ()


FORMAT = InputFormat(SeriesFile, "series", PatchError)


@dataclass(frozen=True)
class PatchSeries:
    """All patches of one package version, in the order in which they are applied."""

    package: str
    version: str
    folder: Path
    patches: tuple[Patch, ...] = ()
    already_upstream: tuple[Upstreamed, ...] = ()
    conflicts: tuple[PatchConflict, ...] = ()

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that can be built: nobody looked for what the others lack."""
        blocked = {variant for conflict in self.conflicts for variant in conflict.variants}
        recorded = (self.folder / "series.yaml").is_file()
        return tuple(v for v in VARIANTS if v == UNPATCHED or (recorded and v not in blocked))

    def check(self, variant: str) -> None:
        """Refuses a variant whose patches are not written yet.

        Raises:
            PatchError: with the patches that are missing.
        """
        if variant in self.variants:
            return
        where = f"patches/{self.package}/{self.version}/series.yaml"
        missing = [c.id for c in self.conflicts if variant in c.variants]
        raise PatchError(
            f"{where} waits for {', '.join(missing)}" if missing else f"{where} does not exist",
            rule=f"{variant} images have every patch that their vLLM needs",
            remedy=f"build.py patch drift --vllm {self.version} --merge shows each conflict;"
            f" --variant {UNPATCHED} builds without patches",
        )

    def for_variant(self, variant: str, tier: str = "python") -> tuple[Patch, ...]:
        """The patches of a variant in one tier."""
        return tuple(p for p in self.patches if variant in p.variants and p.tier == tier)

    def files(self, variant: str) -> tuple[Path, ...]:
        """The record and the variant's diffs; none if the version has no series."""
        if not self.patches:
            return ()
        diffs = (self.folder / p.file for p in self.patches if variant in p.variants)
        return (self.folder / "series.yaml", *diffs)

    def touched(self, patch: Patch) -> tuple[str, ...]:
        """The files that a patch's diff changes, by their paths in the source.

        Raises:
            PatchError: the diff names none.
        """
        diff = self.diff(patch)
        found = re.findall(r"^\+\+\+ b/(\S+)", diff, re.M)
        if not found:
            raise PatchError(
                f"{patch.file} names no file",
                rule="a unified diff with lines such as +++ b/vllm/envs.py",
            )
        return tuple(dict.fromkeys(found))

    def diff(self, patch: Patch) -> str:
        """A patch's diff.

        Raises:
            PatchError: it cannot be read, or is not UTF-8.
        """
        return reading.text(self.folder / patch.file, PatchError, where=patch.file)

    def instructions(self, patch: Patch) -> dict[str, Any]:
        """What ``image/stages/apply_patches.py`` reads: a patch's record and its diff's hash."""
        record: dict[str, Any] = msgspec.to_builtins(patch)
        files = [{"path": path} | hashes for path, hashes in record["files"].items()]
        diff = (self.folder / patch.file).read_bytes()
        return record | {"files": files, "sha256": hashlib.sha256(diff).hexdigest()}


def patched_files(patches: tuple[Patch, ...]) -> dict[str, str]:
    """Path of every patched file with the SHA-256 it has after the last patch."""
    return {path: hashes.after for patch in patches for path, hashes in patch.files.items()}


def load(package: str, version: str, chained: bool = True) -> PatchSeries:
    """Loads a series; a version without a folder has an empty one.

    Without ``chained`` hashes may be missing or inconsistent: ``patch refresh`` renews them.

    Raises:
        PatchError: the record is malformed, a diff or a patch's hashes are missing, or the hashes
            of two patches to one file do not chain.
    """
    folder = paths.PATCHES / package / version
    path = folder / "series.yaml"
    where = f"patches/{package}/{version}/series.yaml"
    if not path.exists():
        return PatchSeries(package, version, folder)
    record = FORMAT.read(path, where)
    for patch in record.patches:
        if not (folder / patch.file).is_file():
            raise PatchError(
                f"{where}: {patch.id}: there is no diff {patch.file!r} beside it",
                remedy="put the diff into that folder, or correct the record's file",
            )
    if chained:
        _check_chain(where, record.patches)
    return PatchSeries(
        package, version, folder, record.patches, record.already_upstream, record.conflicts
    )


def versions(package: str) -> tuple[str, ...]:
    """Versions that have a series, oldest first."""
    found = (path.parent.name for path in (paths.PATCHES / package).glob("*/series.yaml"))
    return by_version(found, f"patches/{package}", PatchError)


def _compile_detect(detect: dict[str, str]) -> None:
    for pattern in detect.values():
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            said = f"has {shortened(pattern)}: {error}"
            raise BrokenField("detect", said, "a file and a regular expression each") from None


def _check_chain(where: str, patches: tuple[Patch, ...]) -> None:
    current: dict[str, str] = {}
    for patch in patches:
        if not patch.files:
            raise PatchError(
                f"{where}: {patch.id} has no files",
                rule="each patch has the hashes of its files before and after it",
                remedy="build.py patch refresh writes them",
            )
        for path, hashes in patch.files.items():
            if current.get(path, hashes.before) != hashes.before:
                raise PatchError(
                    f"{where}: {patch.id}: {path} starts from {hashes.before[:12]}",
                    rule=f"the patch before it leaves {current[path][:12]}",
                    remedy="run build.py patch refresh",
                )
            current[path] = hashes.after
