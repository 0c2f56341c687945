"""The ledger of whatever a user names: a shared object, wheel, folder, container or image."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fp4forge.core import files, reading, scratch
from fp4forge.core.errors import BinaryError, DiskError, RegistryError, UsageError
from fp4forge.core.limits import ENTRIES, UNPACKED_BYTES, UNPACKED_RATIO
from fp4forge.core.paths import STATE
from fp4forge.core.text import shown, steers
from fp4forge.kernels import cubins, ledger
from fp4forge.kernels.base import Progress
from fp4forge.kernels.ledger import File, Ledger

CACHE = STATE / "ledger"


def read(target: str, report: Progress) -> Ledger:
    """Reads whatever a target names.

    Raises:
        BinaryError: the file, wheel or folder cannot be read or holds no device code.
        UsageError: nothing of that name exists here.
        DiskError: there is no room to unpack it.
    """
    try:
        return _read_ledger(target, report)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskError(
            f"{target} cannot be unpacked: {scratch.temporary()} is full",
            rule="the extensions of an image take about 1 GB there",
            remedy="free some, or set TMPDIR to a larger disk",
        ) from None


def _read_ledger(target: str, report: Progress) -> Ledger:
    path = Path(target)
    if reading.is_folder(path):
        return ledger.folder(target, path, CACHE, report)
    if path.suffix == ".whl":
        return _wheel_ledger(target, path, report)
    if os.path.lexists(path) or ("/" in target and path.suffix in (".so", ".o", ".cubin")):
        return Ledger(target, (File(path.name, cubins.read(path, CACHE, report)),))
    with _from_engine(target, report) as folder:
        return ledger.folder(target, folder, CACHE, report)


def _wheel_ledger(target: str, path: Path, report: Progress) -> Ledger:
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fp4forge-wheel-") as folder,
            reading.opened(path, BinaryError) as content,
            zipfile.ZipFile(content) as archive,
        ):

            def unpack(entry: zipfile.ZipInfo) -> None:
                report(f"unpacking {PurePosixPath(entry.filename).name}")
                place = Path(folder, entry.filename)
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as packed, place.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(unpack, _shared_objects(archive, target)))
            return ledger.folder(target, Path(folder), CACHE, report)
    except BinaryError:
        raise
    except Exception as error:  # zipfile meets bytes of any kind; encrypted: RuntimeError
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        why = shown(error, 200) or type(error).__name__
        raise BinaryError(f"{shown(target)} is not a readable wheel: {why}") from None


def _shared_objects(archive: zipfile.ZipFile, target: str) -> list[zipfile.ZipInfo]:
    """The entries to unpack, after a look at all of them.

    Raises:
        BinaryError: one leaves the wheel, or they unpack to far more than a wheel holds.
    """
    found = []
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename)
        if name.is_absolute() or ".." in name.parts or steers(entry.filename):
            raise BinaryError(
                f"{shown(target)}: entry {shown(entry.filename, 200)!r} leaves the wheel",
                rule="paths in a wheel are relative and without ..",
                remedy="do not install it",
            )
        if name.suffix == ".so":
            found.append(entry)
    size = sum(entry.file_size for entry in found)
    packed = sum(entry.compress_size for entry in found)
    most = min(UNPACKED_BYTES, max(packed, 1 << 20) * UNPACKED_RATIO)
    if len(archive.infolist()) > ENTRIES or size > most:
        raise BinaryError(
            f"{shown(target)} would unpack {len(archive.infolist()):,} files, {size:,} bytes",
            rule=f"at most {ENTRIES:,} files, and {UNPACKED_RATIO} bytes for each packed one",
            remedy="do not install it",
        )
    return found


# Where images keep vLLM: distributions' Python, virtual environments, conda.
_PREFIXES = (
    "/usr/local/lib",
    "/usr/lib",
    "/opt/venv/lib",
    "/opt/conda/lib",
    "/app/.venv/lib",
    "/workspace/.venv/lib",
    "/root/.venv/lib",
)
_PARTS = ("vllm", "flashinfer/data/aot", "flashinfer_jit_cache")


@contextmanager
def _from_engine(target: str, report: Progress) -> Iterator[Path]:
    """A folder with the extensions of a container, or of an image that is not started."""
    from docker.errors import ImageNotFound

    from fp4forge.oci import engine

    client = engine.connect()
    made = None
    try:
        container = engine.find_container(target)
        if container is None:
            try:
                client.images.get(target)
            except ImageNotFound:
                report(f"pulling {target}")
                try:
                    engine.pull(client, target, None, report)
                except RegistryError as error:
                    raise UsageError(
                        f"{shown(target, 200)!r} is not a file, folder, container or image here",
                        rule="a .so, .whl, folder, container name, or an image that can be pulled",
                        remedy=shown(error.message, 160),
                    ) from None
            made = container = client.containers.create(
                target, command=["none"], network_mode="none", labels={engine.ROLE: "ledger"}
            )
        with tempfile.TemporaryDirectory(prefix="fp4forge-image-") as name:
            sites = [
                s
                for s in _site_packages(container)
                if _unpack_site(container, s, Path(name), report)
            ]
            if not sites:
                raise BinaryError(
                    f"{target} has no vLLM in any Python that is known here",
                    rule="vllm under dist-packages or site-packages of " + ", ".join(_PREFIXES),
                )
            yield Path(name)
    finally:
        if made is not None:
            engine.discard(made)


def _site_packages(container: Any) -> Iterator[str]:
    for prefix in _PREFIXES:
        for minor in range(9, 16):
            for kind in ("dist-packages", "site-packages"):
                yield f"{prefix}/python3.{minor}/{kind}"


def _unpack_site(container: Any, site: str, folder: Path, report: Progress) -> bool:
    """Unpacks the shared objects of a container's packages; False where vLLM is not there."""
    from docker.errors import APIError

    for part in _PARTS:
        try:
            stream, _ = container.get_archive(f"{site}/{part}", chunk_size=4 << 20)
        except APIError:
            if part == "vllm":
                return False
            continue
        report(f"reading {site}/{part}")
        _unpack_objects(stream, folder / PurePosixPath(part).parent)
    return True


def _unpack_objects(stream: Iterator[bytes], folder: Path) -> None:
    """Writes the shared objects of a tar, as the engine streams it, under a folder.

    The stream is read to its end whatever happens: until then the engine keeps the container
    locked, and every later command in it would wait (moby's containerArchivePath).
    """
    from fp4forge.oci import acquire, engine

    try:
        with tarfile.open(fileobj=engine.as_file(stream), mode="r|", bufsize=1 << 20) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or ".so" not in name.name:
                    continue
                if name.is_absolute() or ".." in name.parts:
                    raise BinaryError(f"entry {shown(member.name, 200)!r} leaves the archive")
                files.write(archive, member, folder)
    finally:
        acquire.drain(stream)
