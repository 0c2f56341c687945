"""An image as one file for a site without network: layout, signatures, evidence, checksums.

The layout (OCI image-layout specification 1.0) is the archive's root, so that ``docker load`` and
``skopeo copy oci-archive:`` read the file too; blobs carry their SHA-256 in their names, the
other files have theirs in SHA256SUMS.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from msgspec import Struct

from fp4forge.core import files as tar
from fp4forge.core import reading, scratch
from fp4forge.core.errors import ArtefactError, RegistryError, UsageError
from fp4forge.core.files import sha256
from fp4forge.core.limits import ENTRIES, INDEX_DEPTH
from fp4forge.core.text import as_json, shown, steers
from fp4forge.kernels.base import Progress
from fp4forge.oci import acquire, catalog, copying, engine, registry
from fp4forge.oci.layout import Descriptor, OciLayout
from fp4forge.oci.reference import parse
from fp4forge.publish import beside
from fp4forge.publish.beside import Beside

SUMS = "SHA256SUMS"
_BLOBS = PurePosixPath("blobs/sha256")
_DOCKER = ("manifest.json", "repositories")  # of docker save's own form


@dataclass(frozen=True)
class Bundle:
    """A bundle's image and what else is in it."""

    image: str  # the reference it was made from
    digest: str
    evidence: tuple[str, ...]
    beside: Beside = field(
        default_factory=Beside
    )  # signatures, attestations, SBOMs and other artifacts


def make(image: str, output: Path, manifest: Path | None, report: Progress) -> Bundle:
    """Writes a bundle; there is no file before it is complete.

    Args:
        image: in a registry, by tag.
        output: the file to write.
        manifest: a compose file (or another manifest) to go with it.
        report: called with progress.

    Raises:
        UsageError: the reference has no tag.
        RegistryError: the registry does not have the image.
    """
    reference = parse(image)
    repository, tag = reference.repository, reference.tag
    if not tag or reference.digest:
        raise UsageError(f"{image!r} has no tag", rule="HOST/REPOSITORY:TAG")
    found = registry.resolve(repository, tag)
    if found is None:
        raise RegistryError(f"{image} does not exist")
    digest = found[0]
    output = output.absolute()
    with scratch.folder(output.parent, ".fp4forge-bundle.") as place:
        folder, packed = place / "bundle", place / "packed"
        folder.mkdir()
        copying.pull(f"{repository}@{digest}", folder, report)
        names = {
            "io.containerd.image.name": image,  # by which docker load knows it
            "org.opencontainers.image.ref.name": tag,
        }
        OciLayout(folder).name_only(digest, names)
        evidence = _bundle_evidence(f"{repository}@{digest}", folder / "evidence", report)
        found_beside = beside.save(repository, digest, OciLayout(folder), report)
        beside.write(folder, found_beside)
        if manifest:
            if manifest.name in (SUMS, *_DOCKER) or (folder / manifest.name).exists():
                raise UsageError(
                    f"--manifest {manifest.name} has the name of a bundle's own file",
                    remedy="give the file another name",
                )
            (folder / manifest.name).write_bytes(reading.content(manifest, UsageError))
        files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        sums = [f"{sha256(folder / f)}  {f}\n" for f in files if f.parts[0] != "blobs"]
        (folder / SUMS).write_text("".join(sums), encoding="utf-8")
        with tarfile.open(packed, "w") as archive:
            for path in (Path(SUMS), *files):
                report(f"packing {path}")
                entry = archive.gettarinfo(folder / path, str(path))
                entry.uid = entry.gid = entry.mtime = 0
                entry.uname = entry.gname = ""
                with (folder / path).open("rb") as file:
                    archive.addfile(entry, file)
        packed.replace(output)
    return Bundle(image, digest, evidence, found_beside)


def _bundle_evidence(reference: str, folder: Path, report: Progress) -> tuple[str, ...]:
    """The image's own records: plan, ledger, patches."""
    client = engine.connect()
    engine.pull(client, reference, None, report)
    folder.mkdir()
    found = acquire.records(client, reference).contents
    for name, content in found.items():
        record = reading.json(content, object, f"{name}.json of {reference}", ArtefactError)
        (folder / f"{name}.json").write_text(as_json(record) + "\n")
    return tuple(found)


@contextlib.contextmanager
def unpacked(file: Path, folder: Path, report: Progress) -> Iterator[tuple[Bundle, OciLayout]]:
    """Unpacks a bundle, every file checked, for the time of a ``with`` block.

    At the block's end the files move to a folder that does not exist yet. If the block fails there
    is no folder, so that the same command can be run again.

    Raises:
        ArtefactError: it is not a bundle, is cut short, or a file does not match its checksum.
        UsageError: the folder exists.
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists already", rule="a bundle unpacks into a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch.folder(folder.parent, ".fp4forge-unbundle.") as place:
        root = place / "bundle"
        root.mkdir()
        try:
            with (
                reading.opened(file, ArtefactError) as content,
                tarfile.open(fileobj=content, mode="r:") as archive,
            ):
                end = 0
                for count, entry in enumerate(archive):
                    report(f"unpacking {entry.name}")
                    end = _check_header(content, entry, end)
                    _extract(archive, entry, root, count)
                _check_end(content, end)
            bundle = _check_bundle(root, file)
        except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ArtefactError(
                f"{shown(file)} is not a complete bundle: {shown(error, 200)}",
                remedy="copy it once more",
            ) from None
        yield bundle, OciLayout(root)
        root.rename(folder)


def _check_header(content: BinaryIO, entry: tarfile.TarInfo, begin: int) -> int:
    """Demands a header that every reader of tar takes alike; returns where the next one begins.

    docker reads the file itself, with Go's reader: of two names for one file (global, pax and GNU
    headers, the prefix in an old header) it may take the other, and load what was not checked.

    Raises:
        ArtefactError: it is not, byte for byte, what Python's tarfile writes.
    """
    content.seek(begin)
    header = content.read(max(entry.offset_data - begin, 0))
    if entry.offset != begin or header != entry.tobuf(tarfile.PAX_FORMAT, "utf-8"):
        raise ArtefactError(
            f"a bundle has {shown(entry.name, 200)!r} under a header of another form",
            rule="as build.py bundle writes it: docker may read another one as another file",
            remedy="do not use it",
        )
    return entry.offset_data + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _check_end(content: BinaryIO, end: int) -> None:
    """Demands that nothing follows the last file: Python ends at a header that it cannot read.

    Raises:
        ArtefactError: something does, which docker may read.
    """
    content.seek(end)
    rest = content.read(2 * tarfile.RECORDSIZE)
    if rest.strip(b"\0") or len(rest) == 2 * tarfile.RECORDSIZE:
        raise ArtefactError(
            "a bundle has something behind its last file",
            rule="nothing but the archive's end: docker may read it as more files",
            remedy="do not use it",
        )


def _extract(archive: tarfile.TarFile, entry: tarfile.TarInfo, root: Path, count: int) -> None:
    name = PurePosixPath(entry.name)
    plain = entry.isreg() and not entry.issparse()
    if not plain or name.is_absolute() or ".." in name.parts or steers(entry.name):
        raise ArtefactError(
            f"entry {shown(entry.name, 200)!r} does not belong in a bundle",
            rule="plain files, relative and without ..",
            remedy="do not use it",
        )
    if os.path.lexists(root / entry.name):
        raise ArtefactError(
            f"a bundle has {shown(entry.name, 200)!r} twice",
            rule="one of them may be read here, and the other elsewhere",
            remedy="do not use it",
        )
    if count >= ENTRIES:
        raise ArtefactError(
            f"a bundle has at most {ENTRIES:,} files, this one has more", remedy="do not use it"
        )
    tar.write(archive, entry, root)


class _BundleIndex(Struct, frozen=True):
    """What a bundle's index.json says of its image."""

    manifests: list[Descriptor]


def _check_bundle(root: Path, file: Path) -> Bundle:
    """Compares every file's SHA-256; returns what the bundle is."""
    where = shown(file, 300)
    if not reading.is_file(root / SUMS):
        raise ArtefactError(f"{where} has no {SUMS}", rule="made by build.py bundle")
    wanted = {}
    for line in reading.text(root / SUMS, ArtefactError).splitlines():
        digest, _, name = line.partition("  ")
        wanted[name] = digest
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() or name == SUMS:
            continue
        expected = path.name if name.startswith(f"{_BLOBS}/") else wanted.pop(name, "")
        if sha256(path) != expected:
            raise ArtefactError(
                f"{where}: {shown(name, 200)} does not match its checksum",
                remedy="copy it once more",
            )
    if wanted:
        missing = shown(", ".join(wanted), 300)
        raise ArtefactError(f"{where} lacks {missing}", remedy="copy it once more")
    if not reading.is_file(root / "oci-layout") or any((root / n).exists() for n in _DOCKER):
        raise ArtefactError(
            f"{where} is not an OCI layout alone",
            rule=f"with oci-layout, without {' and '.join(_DOCKER)}: docker would load what they"
            " name in place of the image that was checked",
            remedy="do not load it",
        )
    index = f"{where}: index.json"
    content = reading.content(root / "index.json", ArtefactError)
    entries = reading.json(content, _BundleIndex, index, ArtefactError).manifests
    if len(entries) != 1:
        raise ArtefactError(
            f"{where}: its index names {len(entries)} images",
            rule="a bundle holds one image, under one name",
            remedy="do not load it: docker would take every name in it",
        )
    (entry,) = entries
    _check_blobs(OciLayout(root), entry.digest, where)
    image = (entry.annotations or {}).get("io.containerd.image.name", "")
    try:
        tagged = parse(image).tag
    except UsageError:
        tagged = ""
    if not tagged or not catalog.is_image(tagged):
        raise ArtefactError(
            f"{index} names the image {shown(image, 200)!r}",
            rule="HOST/REPOSITORY:TAG, as build.py bundle writes it",
            remedy="do not load it",
        )
    evidence = tuple(sorted(p.stem for p in (root / "evidence").glob("*.json")))
    found = beside.read(root)
    for own in found.manifests:
        _check_blobs(OciLayout(root), own, where)
    return Bundle(image, entry.digest, evidence, beside.own(OciLayout(root), entry.digest, found))


def _check_blobs(layout: OciLayout, digest: str, where: str) -> None:
    """Every blob that the index names, at any depth, is there."""
    level, seen = {digest}, {digest}
    for _ in range(INDEX_DEPTH):
        below: set[str] = set()
        for parent in level:
            _blob_there(layout, parent, where)
            document = layout.document(parent)
            below |= {entry.digest for entry in document.manifests or ()}
            for blob in document.blobs:
                _blob_there(layout, blob.digest, where)
        level = below - seen
        seen |= below
        if not level:
            return
    raise ArtefactError(
        f"{where}: its indexes name each other", rule=f"at most {INDEX_DEPTH} levels"
    )


def _blob_there(layout: OciLayout, digest: str, where: str) -> None:
    if not reading.is_file(layout.path(digest)):
        raise ArtefactError(f"{where} lacks the blob {digest}", remedy="copy it once more")


def load(file: Path, report: Progress) -> None:
    """Gives a checked bundle's image to this machine's engine.

    Raises:
        RegistryError: the engine refuses it.
    """
    engine.connect()
    report("docker load")
    engine.load(file)
