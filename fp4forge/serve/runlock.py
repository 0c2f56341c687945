"""A lock of a run: everything that decides a server, so that its manifest can be written again.

A lock has the image by digest, every flag and variable with its reason, and the SHA-256 of each
file of the model, the drafter and the adapters. Weights are hashed whole as well: a header says
nothing of the numbers. Only what a manifest mounts or names is in it; a key's file is not read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from msgspec import Struct

import fp4forge
from fp4forge.core import reading
from fp4forge.core.errors import CheckpointError, RunLockError
from fp4forge.core.limits import CONFIG_BYTES, ENTRIES
from fp4forge.core.text import as_json, shown, steers, text_sha256
from fp4forge.kernels.base import Progress
from fp4forge.oci import engine, reference, registry
from fp4forge.serve import manifest
from fp4forge.serve.settings import ServerSettings

VERSION = 1
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SERVED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class LockedFile(Struct, frozen=True):
    """One file; size in bytes."""

    size: int
    sha256: str


class LockedFolder(Struct, frozen=True):
    """A folder that the server mounts: files by their path in it, and the hub's commit."""

    revision: str  # empty if nothing in the folder says it
    files: dict[str, LockedFile]


class RunLock(Struct, frozen=True, forbid_unknown_fields=True):
    """The lock's file, JSON."""

    version: int
    by: str  # the program that wrote it
    kind: str  # one of manifest.FORMATS
    manifest: str  # SHA-256 of the manifest's text
    image: str  # by digest
    server: ServerSettings
    folders: dict[str, LockedFolder]  # by their path on the host

    @property
    def digest(self) -> str:
        """The image's digest."""
        return reference.parse(self.image).digest


def make(server: ServerSettings, kind: str, text: str, report: Progress) -> RunLock:
    """The lock of a manifest.

    Args:
        server: what the manifest was rendered from.
        kind: one of ``manifest.FORMATS``.
        text: the manifest.
        report: called with progress.

    Raises:
        CheckpointError: a folder is not on this machine, or a file in it cannot be read.
        RunLockError: the image is not named by digest.
    """
    if not manifest.is_digest(server.image):
        raise RunLockError(
            f"{shown(server.image, 200)} is not an image by digest", rule="NAME@sha256:DIGEST"
        )
    folders = {path: _locked_folder(Path(path), report) for path in _mounted_folders(server)}
    by = f"fp4forge {fp4forge.__version__}"
    return RunLock(VERSION, by, kind, text_sha256(text), server.image, server, folders)


def text_of(lock: RunLock) -> str:
    """The lock's file."""
    return as_json(msgspec.to_builtins(lock)) + "\n"


def read(path: Path) -> RunLock:
    """A lock from its file.

    Raises:
        RunLockError: it is not one, or a value in it cannot be one of a manifest's.
    """
    where = shown(path, 300)
    found = reading.json_file(path, RunLock, RunLockError, CONFIG_BYTES)
    if found.version != VERSION:
        raise RunLockError(
            f"{where} is a lock of version {found.version}", rule=f"this fp4forge reads {VERSION}"
        )
    wrong = next((text for text in _texts_in(msgspec.to_builtins(found)) if steers(text)), None)
    if wrong is not None:
        raise RunLockError(f"{where} has a control character: {shown(wrong, 80)}")
    fields = (
        ("kind", found.kind in manifest.FORMATS),
        ("image", manifest.is_digest(found.image) and found.image == found.server.image),
        ("server.name", _NAME.fullmatch(found.server.name)),
        ("server.served_name", _SERVED.fullmatch(found.server.served_name)),
        ("folders", found.folders.keys() == {*_mounted_folders(found.server)}),
    )
    for name, right in fields:
        if not right:
            raise RunLockError(
                f"{where}: {name} is not valid in a lock",
                rule="a file that serve compose --lock wrote",
            )
    return found


def reproduce(lock: RunLock, report: Progress) -> str:
    """The manifest of a lock, after everything that it names was compared.

    Returns:
        The text, byte for byte the one that the lock was written with.

    Raises:
        RunLockError: the image is gone, a file differs, or this fp4forge renders another text;
            the message lists what differs.
        RegistryError: the engine does not have the image, and its registry does not answer.
    """
    report(lock.image)
    lines = [] if _engine_has(lock.image) else [f"{lock.image} is neither here nor in its registry"]
    for path, folder in lock.folders.items():
        lines += differences(Path(path), folder, report)
    if lines:
        raise RunLockError(
            "this is not the run that was locked:\n  "
            + "\n  ".join(lines[:20])
            + (f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""),
            rule="image and files have the digests of the lock",
            remedy="bring back what the lock names, or write a new lock with --lock",
        )
    text = manifest.render(lock.server, lock.kind)
    if text_sha256(text) != lock.manifest:
        raise RunLockError(
            f"fp4forge {fp4forge.__version__} writes another manifest from this lock, which"
            f" {shown(lock.by, 80)} wrote",
            rule="a lock reproduces its manifest byte for byte",
            remedy="use the fp4forge that wrote the lock, or write a new lock with --lock",
        )
    return text


def differences(path: Path, locked: LockedFolder, report: Progress) -> list[str]:
    """What a folder has that differs from its lock, a line each."""
    try:
        found = _locked_folder(path, report)
    except CheckpointError as error:
        return [error.message]
    lines = []
    for name in sorted(found.files.keys() | locked.files.keys()):
        old, new = locked.files.get(name), found.files.get(name)
        where = shown(f"{path}/{name}", 300)
        if new is None:
            lines.append(f"{where} is missing")
        elif old is None:
            lines.append(f"{where} is not in the lock")
        elif old.size != new.size:
            lines.append(f"{where} has {new.size:,} bytes, the lock {old.size:,}")
        elif old != new:
            lines.append(f"{where} has SHA-256 {new.sha256[:12]}…, the lock {old.sha256[:12]}…")
    if lines and found.revision != locked.revision:
        now, then = found.revision or "unknown", locked.revision or "unknown"
        lines.insert(0, f"{shown(path, 300)} is revision {now}, the lock's is {then}")
    return lines


def _engine_has(image: str) -> bool:
    if engine.present(image):
        return True
    named = reference.parse(image)
    return bool(named.host) and registry.manifest(named.repository, named.digest) is not None


def _mounted_folders(server: ServerSettings) -> list[str]:
    """Folders that a server mounts, each once."""
    paths = [server.model, server.drafter, *server.adapters.values()]
    return list(dict.fromkeys(path for path in paths if path))


def _locked_folder(path: Path, report: Progress) -> LockedFolder:
    if not reading.is_folder(path):
        raise CheckpointError(
            f"{shown(path, 300)} is not a folder on this machine",
            rule="a lock hashes every file of the model, the drafter and the adapters",
            remedy="write the lock on the machine that serves",
        )
    names = sorted(_folder_files(path))
    report(f"SHA-256 of {path.name}: {len(names)} files")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # hashing does not hold the interpreter
        hashed = pool.map(lambda name: _locked_file(path / name), names)
        return LockedFolder(_hub_revision(path), dict(zip(names, hashed, strict=True)))


def _folder_files(path: Path) -> Iterator[str]:
    """Files of a folder by their path in it; what begins with a dot is a tool's, and left out."""
    count = 0
    # The hub's cache links its files; ENTRIES ends links that lead in a circle.
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += 1 + len(names)
        if count > ENTRIES:
            raise CheckpointError(f"{shown(path, 300)} has more than {ENTRIES:,} files")
        for name in names:
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(path).as_posix()


def _locked_file(path: Path) -> LockedFile:
    with reading.opened(path, CheckpointError) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return LockedFile(os.fstat(file.fileno()).st_size, digest)


def _hub_revision(path: Path) -> str:
    """The hub's commit: of a download to a folder, or of a snapshot in the hub's cache.

    huggingface_hub keeps it in the first line of .cache/huggingface/download/*.metadata, or as the
    snapshot's name (huggingface_hub/_local_folder.py and file_download.py of 1.0).
    """
    if path.resolve().parent.name == "snapshots" and _COMMIT.fullmatch(path.resolve().name):
        return path.resolve().name
    noted = set()
    for file in (path / ".cache" / "huggingface" / "download").rglob("*.metadata"):
        first = reading.content(file, CheckpointError, 4096).split(b"\n", 1)[0]
        noted.add(first.decode(errors="replace").strip())
    return noted.pop() if len(noted) == 1 and all(map(_COMMIT.fullmatch, noted)) else ""


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield str(key)
            yield from _texts_in(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts_in(entry)
