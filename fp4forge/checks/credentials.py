"""Looks for credentials in the files of every layer: one that a later layer deletes is still there.

Each layer is read once, from this checkout's own OCI layout or as ``docker save`` streams it, and
what was found is kept by its digest.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import msgspec

from fp4forge.core import files, paths, reading
from fp4forge.core.errors import BinaryError, RegistryError
from fp4forge.kernels.base import Progress
from fp4forge.oci import engine, reference, registry
from fp4forge.oci.layout import OciLayout

# Another number when what is looked for changes.
_READER = 2
_LARGEST = 64 << 10  # bytes; credentials are in small files

_NAMES = {".netrc", ".git-credentials", ".pypirc", ".dockercfg", "id_rsa", "id_ecdsa", "id_ed25519"}
_PATHS = (".docker/config.json", ".aws/credentials", ".kube/config", "huggingface/token")
# Each begins with its literal, looks behind after it: so `re` searches for the literal, which is
# ten times as fast as trying every word boundary.
_PATTERNS = tuple(
    (what, re.compile(pattern))
    for what, pattern in (
        ("a Hugging Face token", rb"hf_(?<!\w.{3})[A-Za-z0-9]{30,}"),
        ("a GitHub token", rb"gh[pousr]_(?<!\w.{4})[A-Za-z0-9]{36,}"),
        ("a GitHub token", rb"github_pat_(?<!\w.{11})[A-Za-z0-9_]{50,}"),
        ("a GitLab token", rb"glpat-(?<!\w.{6})[A-Za-z0-9_-]{20,}"),
        ("an AWS key", rb"AKIA(?<!\w.{4})(?![0-9A-Z]*EXAMPLE)[0-9A-Z]{16}\b"),
        (
            "a private key",
            rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{200,}-----END",
        ),
    )
)


@dataclass(frozen=True)
class LikelyCredential:
    """A file of a layer that looks like a credential; its content is never kept."""

    path: str
    what: str


class ScannedLayer(msgspec.Struct, frozen=True):
    """What was found in a blob; None if it is not a layer."""

    findings: list[LikelyCredential] | None


def credentials(image: str, report: Progress) -> dict[str, list[LikelyCredential]]:
    """What each layer of an image holds that looks like a credential.

    Args:
        image: reference of an image that the engine has.
        report: called with progress.

    Returns:
        Findings by layer digest; an empty list for a layer that has none.
    """
    wanted = _layer_digests(image)
    for digest in wanted:
        blob = OciLayout(paths.OCI).path(digest)
        if not kept(digest) and blob.is_file():
            report(f"layer {digest[:12]}, {blob.stat().st_size / 1e6:.0f} MB")
            try:
                with blob.open("rb") as file:
                    keep(digest, file)
            except BinaryError as error:  # the engine has the layer as well
                report(f"{error.message}: removed from {paths.OCI}")
                blob.unlink(missing_ok=True)
    known = {digest: kept(digest) for digest in wanted}
    if wanted and all(known.values()):
        return {f"sha256:{name}": (found and found.findings) or [] for name, found in known.items()}
    client = engine.connect()
    found: dict[str, list[LikelyCredential]] = {}
    stream = engine.as_file(client.api.get_image(image, chunk_size=4 << 20))
    with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
        for entry in archive:
            name = PurePosixPath(entry.name)
            if not entry.isfile() or name.parts[:2] != ("blobs", "sha256"):
                continue
            if not kept(name.name):
                report(f"layer {name.name[:12]}, {entry.size / 1e6:.0f} MB")
                content = archive.extractfile(entry)
                assert content is not None
                keep(name.name, content)
            listed = kept(name.name)
            if listed and listed.findings is not None:
                found[f"sha256:{name.name}"] = listed.findings
    return found


def _layer_digests(image: str) -> list[str]:
    """Digests, without ``sha256:``, of the layers of an image in a registry; else none."""
    named = reference.parse(image)
    if not named.digest:
        return []
    try:
        layers = registry.layer_sizes(named.repository, named.digest)
        return [layer.removeprefix("sha256:") for layer in layers]
    except RegistryError:
        return []


def _scan_record(digest: str) -> Path:
    return paths.STATE / "layers" / f"{digest}.{_READER}.json"


def keep(digest: str, blob: IO[bytes]) -> None:
    """Keeps what a blob holds, if it has the digest: a blob cut short is not kept as clean.

    Raises:
        BinaryError: it has another.
    """
    content = _Hashed(blob)
    findings = _scan_layer(content)
    if content.digest() != digest:
        raise BinaryError(
            f"layer {digest[:12]} does not match its digest",
            remedy="remove .build/oci, and the image from the engine; build or pull again",
        )
    record = _scan_record(digest)
    files.replace(record, msgspec.json.encode(ScannedLayer(findings)))


def kept(digest: str) -> ScannedLayer | None:
    """What is kept of a blob; None if nothing is, or the record is damaged."""
    record = _scan_record(digest)
    if not record.is_file():
        return None
    try:
        return reading.json_file(record, ScannedLayer, BinaryError)
    except BinaryError:
        return None


def _scan_layer(blob: io.RawIOBase) -> list[LikelyCredential] | None:
    """Findings of one blob; None if it is not a layer (a manifest, a configuration)."""
    import zlib

    import zstandard

    whole = io.BufferedReader(blob, 1 << 20)
    head = whole.peek(4)[:4]
    if head[:1] in (b"{", b"["):
        return None
    plain: Any = whole
    if head == b"\x28\xb5\x2f\xfd":
        plain = zstandard.ZstdDecompressor().stream_reader(whole, read_across_frames=True)
    elif head[:2] == b"\x1f\x8b":
        import gzip

        plain = gzip.GzipFile(fileobj=whole)
    found: list[LikelyCredential] = []
    try:
        with tarfile.open(fileobj=plain, mode="r|", bufsize=1 << 20) as archive:
            for entry in archive:
                if entry.isfile() and 0 < entry.size <= _LARGEST:
                    content = archive.extractfile(entry)
                    assert content is not None
                    found += _look_for_credentials(entry.name, content.read())
    except (tarfile.TarError, zlib.error, zstandard.ZstdError, EOFError, OSError, ValueError):
        return None  # OSError is what gzip raises for other data
    return found


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.file.read(len(buffer))
        self.hash.update(content)
        buffer[: len(content)] = content
        return len(content)

    def digest(self) -> str:
        """SHA-256, in hex, of the whole; reads what is left of it."""
        while content := self.file.read(1 << 20):
            self.hash.update(content)
        return self.hash.hexdigest()


def in_file(name: str, file: IO[bytes]) -> Iterator[LikelyCredential]:
    """What looks like a credential in a file; of a larger one than they are, in its beginning."""
    return _look_for_credentials(name, file.read(_LARGEST))


def _look_for_credentials(name: str, content: bytes) -> Iterator[LikelyCredential]:
    path = PurePosixPath("/", name)
    if path.name in _NAMES or str(path).endswith(_PATHS):
        yield LikelyCredential(str(path), "a credentials file")
        return
    for what, pattern in _PATTERNS:
        if pattern.search(content):
            yield LikelyCredential(str(path), what)
