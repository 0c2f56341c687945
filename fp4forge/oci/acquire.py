"""Files out of images and containers that are not started, and the parts of what they hold."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import BinaryError, RegistryError
from fp4forge.core.limits import RECORD_BYTES
from fp4forge.core.text import shown
from fp4forge.oci import engine

FOLDER = "/opt/fp4forge"
RECORDS = ("plan", "ledger", "patches")
T = TypeVar("T")


class RecordedOrigin(Struct, frozen=True):
    """Where a backend's kernels come from: ahead of time, by compilers, or from nowhere."""

    origin: str = ""
    by: tuple[str, ...] = ()
    why: str = ""

    @property
    def runs(self) -> bool:
        """Whether it needs no network: the kernels are there, or their compilers."""
        return bool(self.by) or self.origin in ("", "ahead of time")

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.origin} by {', '.join(self.by)}" if self.by else f"{self.origin}: {self.why}"


class RecordedKernels(Struct, frozen=True):
    """What run-time compilers lack, and origins by GPU, kind of layer and backend."""

    compilers: dict[str, str] = {}
    gpus: dict[str, dict[str, dict[str, RecordedOrigin]]] = {}


class RecordedPlan(Struct, frozen=True):
    """plan.json, as far as it is read back from an image."""

    packages: dict[str, str] = {}
    backend_kernels: RecordedKernels = RecordedKernels()
    release: str = ""
    vllm_version: str = ""
    base: str = ""
    platform: str = ""
    extras: dict[str, tuple[str, ...]] = {}


class RecordedLedger(Struct, frozen=True):
    """ledger.json: the architectures of each kernel group, and what each GPU gets."""

    groups: dict[str, list[str]] = {}
    gpus: dict[str, dict[str, str | bool]] = {}


class RecordedHashes(Struct, frozen=True):
    """SHA-256 of a patched file, before and after."""

    before: str = ""
    after: str = ""


class RecordedPatch(Struct, frozen=True):
    """One patch, for people."""

    id: str = ""
    title: str = ""
    upstream: str = ""


class RecordedPatches(Struct, frozen=True):
    """patches.json: files by their path, and the patches that made them."""

    files: dict[str, RecordedHashes] = {}
    patches: list[RecordedPatch] = []


@dataclass(frozen=True)
class ImageRecords:
    """What one of our images says of itself; ``contents`` has the files by their stems."""

    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def plan(self) -> RecordedPlan:
        """The plan; empty if there is none."""
        return self._read("plan", RecordedPlan) or RecordedPlan()

    @property
    def ledger(self) -> RecordedLedger | None:
        """The ledger, if there is one."""
        return self._read("ledger", RecordedLedger)

    @property
    def patches(self) -> RecordedPatches:
        """The patches; empty if there are none."""
        return self._read("patches", RecordedPatches) or RecordedPatches()

    def _read(self, name: str, shape: type[T]) -> T | None:
        content = self.contents.get(name)
        where = f"{FOLDER}/{name}.json"
        return None if content is None else reading.json(content, shape, where, BinaryError)


def records(client: Any, image: str) -> ImageRecords:
    """plan.json, ledger.json and patches.json of one of our images; none of others.

    Args:
        client: docker SDK client.
        image: reference of an image that the engine has.

    Raises:
        RegistryError: the engine does not have it any more.
    """
    with _unstarted_container(client, image) as made:
        return records_of(made)


def records_of(container: Any) -> ImageRecords:
    """As ``records``, of a container of docker's SDK: what the image put there, mounts aside."""
    wanted = {f"fp4forge/{name}.json": name for name in RECORDS}
    found = _container_files(container, FOLDER, wanted.__contains__)
    return ImageRecords({wanted[name]: content for name, content in found.items()})


def files(
    client: Any, image: str, paths: tuple[str, ...], folder: str = "", ending: str = ""
) -> dict[str, bytes]:
    """Plain files of an image that the engine has, by their paths; what is not there is left out.

    Args:
        client: docker SDK client.
        image: reference of an image that the engine has.
        paths: of files.
        folder: whose files of that ending are read too.
        ending: of their names.

    Raises:
        RegistryError: the engine does not have the image any more.
        BinaryError: a file is too large.
    """
    with _unstarted_container(client, image) as made:
        found = {
            path: content
            for path in paths
            for content in _container_files(
                made, path, {PurePosixPath(path).name}.__contains__
            ).values()
        }
        if folder:
            read = _container_files(made, folder, lambda name: name.endswith(ending))
            parent = PurePosixPath(folder).parent
            found |= {str(parent / name): content for name, content in read.items()}
    return found


@contextlib.contextmanager
def _unstarted_container(client: Any, image: str) -> Iterator[Any]:
    """A container of an image that is not started, and goes afterwards."""
    from docker.errors import NotFound

    try:
        made = client.containers.create(
            image, command=["none"], network_mode="none", labels={engine.ROLE: "records"}
        )
    except NotFound:
        raise RegistryError(
            f"the engine does not have {image} any more",
            remedy="another program removed it; run again",
        ) from None
    try:
        yield made
    finally:
        engine.discard(made)


def _container_files(container: Any, path: str, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Plain files of a container's file or folder, by their names in the engine's tar."""
    from docker.errors import APIError

    try:
        stream, _ = container.get_archive(path)
    except APIError:
        return {}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=engine.as_file(stream), mode="r|") as archive:
            for entry in archive:
                if not wanted(entry.name) or not entry.isfile():
                    continue
                if entry.size > RECORD_BYTES:
                    raise BinaryError(
                        f"{shown(path)}: {shown(entry.name)} has {entry.size:,} bytes",
                        rule=f"at most {RECORD_BYTES:,}",
                    )
                content = archive.extractfile(entry)
                assert content is not None
                found[entry.name] = content.read()
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BinaryError(f"{shown(path)}: the engine sends no tar: {shown(error, 200)}") from None
    finally:
        drain(stream)
    return found


def drain(stream: Iterator[bytes]) -> None:
    """Reads what the engine streams to its end: until then it keeps the container locked."""
    with contextlib.suppress(Exception):
        for _ in stream:
            pass
