"""An image as one file for a site without network: OCI layout, evidence, manifest, checksums.

The layout (OCI image-layout specification 1.0) is the archive's root, so that ``docker load`` and
``skopeo copy oci-archive:`` read the file too; blobs carry their SHA-256 in their names, the
other files have theirs in SHA256SUMS.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fp4forge.core import files as tar
from fp4forge.core import reading
from fp4forge.core.errors import ArtefactError, RegistryError, UsageError
from fp4forge.core.text import as_json
from fp4forge.kernels.base import Progress
from fp4forge.oci import acquire, copying, engine, registry
from fp4forge.oci.layout import Layout
from fp4forge.oci.reference import parse

SUMS = "SHA256SUMS"
_BLOBS = PurePosixPath("blobs/sha256")


@dataclass(frozen=True)
class Bundle:
    """A bundle's image and what else is in it."""

    image: str  # the reference it was made from
    digest: str
    evidence: tuple[str, ...]


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
        raise RegistryError(f"there is no {image}")
    digest = found[0]
    output = output.absolute()
    partial = output.with_name(output.name + ".partial")
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=output.parent) as name:
        folder = Path(name)
        copying.pull(f"{repository}@{digest}", folder, report)
        names = {
            "io.containerd.image.name": image,  # by which docker load knows it
            "org.opencontainers.image.ref.name": tag,
        }
        Layout(folder).name_only(digest, names)
        evidence = _evidence(f"{repository}@{digest}", folder / "evidence", report)
        if manifest:
            shutil.copyfile(manifest, folder / manifest.name)
        files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        sums = [f"{_sha256(folder / f)}  {f}\n" for f in files if f.parts[0] != "blobs"]
        (folder / SUMS).write_text("".join(sums))
        try:
            with tarfile.open(partial, "w") as archive:
                for path in (Path(SUMS), *files):
                    report(f"packing {path}")
                    entry = archive.gettarinfo(folder / path, str(path))
                    entry.uid = entry.gid = entry.mtime = 0
                    entry.uname = entry.gname = ""
                    with (folder / path).open("rb") as file:
                        archive.addfile(entry, file)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
    return Bundle(image, digest, evidence)


def _evidence(reference: str, folder: Path, report: Progress) -> tuple[str, ...]:
    """The image's own records: plan, ledger, patches."""
    client = engine.connect()
    engine.pull(client, reference, None, report)
    folder.mkdir()
    found = acquire.records(client, reference).contents
    for name, content in found.items():
        record = reading.json(content, object, f"{name}.json of {reference}", ArtefactError)
        (folder / f"{name}.json").write_text(as_json(record) + "\n")
    return tuple(found)


def unpack(file: Path, folder: Path, report: Progress) -> Bundle:
    """Unpacks a bundle into a folder that does not exist yet, every file checked.

    Raises:
        ArtefactError: it is not a bundle, is cut short, or a file is not what its checksum says;
            the folder is not left behind then.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already", rule="a bundle unpacks into a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unbundle-", dir=folder.parent) as name:
        root = Path(name) / "bundle"
        root.mkdir()
        try:
            with tarfile.open(file) as archive:
                for entry in archive:
                    report(f"unpacking {entry.name}")
                    _extract(archive, entry, root)
            bundle = _check(root, file)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ArtefactError(
                f"{file} is not a complete bundle: {error}", remedy="copy it once more"
            ) from None
        root.rename(folder)
    return bundle


def _extract(archive: tarfile.TarFile, entry: tarfile.TarInfo, root: Path) -> None:
    name = PurePosixPath(entry.name)
    if not entry.isfile() or name.is_absolute() or ".." in name.parts:
        raise ArtefactError(
            f"entry {entry.name!r} does not belong in a bundle",
            rule="plain files, relative and without ..",
            remedy="do not use it",
        )
    tar.write(archive, entry, root)


def _check(root: Path, file: Path) -> Bundle:
    """Compares every file's SHA-256; returns what the bundle is."""
    sums = root / SUMS
    if not sums.is_file():
        raise ArtefactError(f"{file} has no {SUMS}", rule="made by build.py bundle")
    wanted = {}
    for line in sums.read_text().splitlines():
        digest, _, name = line.partition("  ")
        wanted[name] = digest
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() or name == SUMS:
            continue
        expected = path.name if name.startswith(str(_BLOBS)) else wanted.pop(name, "")
        if _sha256(path) != expected:
            raise ArtefactError(
                f"{file}: {name} is not what its checksum says", remedy="copy it once more"
            )
    if wanted:
        raise ArtefactError(f"{file} lacks {', '.join(wanted)}", remedy="copy it once more")
    entries = json.loads((root / "index.json").read_text())["manifests"]
    if len(entries) != 1:
        raise ArtefactError(
            f"{file}: its index names {len(entries)} images",
            rule="a bundle holds one image, under one name",
            remedy="do not load it: docker would take every name in it",
        )
    entry = entries[0]
    _complete(root, entry["digest"], file)
    evidence = tuple(sorted(p.stem for p in (root / "evidence").glob("*.json")))
    return Bundle(entry["annotations"]["io.containerd.image.name"], entry["digest"], evidence)


def _complete(root: Path, digest: str, file: Path) -> None:
    """Every blob that the index names, at any depth, is there."""
    path = root / _BLOBS / digest.removeprefix("sha256:")
    if not path.is_file():
        raise ArtefactError(f"{file} lacks the blob {digest}", remedy="copy it once more")
    if path.stat().st_size > 1 << 20:
        return
    try:
        blob = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError):
        return
    if not isinstance(blob, dict):
        return
    config = [blob["config"]] if "config" in blob and "layers" in blob else []
    for entry in [*blob.get("manifests", []), *config, *blob.get("layers", [])]:
        _complete(root, entry["digest"], file)


def load(file: Path, report: Progress) -> None:
    """Gives a checked bundle's image to this machine's engine.

    Raises:
        RegistryError: the engine refuses it.
    """
    engine.connect()
    report("docker load")
    done = subprocess.run(["docker", "load", "-i", str(file)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RegistryError(f"docker load: {done.stderr.strip()[-300:]}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
