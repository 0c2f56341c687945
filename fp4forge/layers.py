"""Looks for credentials in the files of every layer: one that a later layer deletes is still there.

Each layer is read once, as ``docker save`` streams it, and what was found is kept by its digest.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from fp4forge import engine, paths, registry
from fp4forge.console import Report
from fp4forge.errors import RegistryError

# Another number when what is looked for changes.
_READER = 1
_LARGEST = 64 << 10  # bytes; credentials are in small files

_NAMES = {".netrc", ".git-credentials", ".pypirc", ".dockercfg", "id_rsa", "id_ecdsa", "id_ed25519"}
_PATHS = (".docker/config.json", ".aws/credentials", ".kube/config", "huggingface/token")
_TOKENS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
    "a GitHub token": rb"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{50,}",
    "a GitLab token": rb"\bglpat-[A-Za-z0-9_-]{20,}",
    "an AWS key": rb"\bAKIA(?![0-9A-Z]*EXAMPLE)[0-9A-Z]{16}\b",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{200,}-----END",
}
_PATTERNS = {what: re.compile(pattern) for what, pattern in _TOKENS.items()}


@dataclass(frozen=True)
class Finding:
    """A file of a layer that looks like a credential; its content is never kept."""

    path: str
    what: str


def credentials(image: str, report: Report) -> dict[str, list[Finding]]:
    """What each layer of an image holds that looks like a credential.

    Args:
        image: reference of an image that the engine has.
        report: called with progress.

    Returns:
        Findings by layer digest; an empty list for a layer that has none.
    """
    known = _known(image)
    if known is not None:
        return known
    client = engine.connect()
    found: dict[str, list[Finding]] = {}
    stream = engine.as_file(client.api.get_image(image, chunk_size=4 << 20))
    with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
        for entry in archive:
            name = PurePosixPath(entry.name)
            if not entry.isfile() or name.parts[:2] != ("blobs", "sha256"):
                continue
            kept = _kept(name.name)
            if kept.is_file():
                if (listed := _read(kept)) is not None:
                    found[f"sha256:{name.name}"] = listed
                continue
            report(f"layer {name.name[:12]}, {entry.size / 1e6:.0f} MB")
            content = archive.extractfile(entry)
            assert content is not None
            findings = _layer(content)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(None if findings is None else [asdict(f) for f in findings]))
            if findings is not None:
                found[f"sha256:{name.name}"] = findings
    return found


def _known(image: str) -> dict[str, list[Finding]] | None:
    """What is known of every layer of an image in a registry; None where a layer is not known."""
    repository, at, digest = image.partition("@")
    if not at:
        return None
    try:
        wanted = registry.layer_sizes(repository, digest)
    except RegistryError:
        return None
    found = {layer: _kept(layer.removeprefix("sha256:")) for layer in wanted}
    if not all(kept.is_file() for kept in found.values()):
        return None
    return {layer: _read(kept) or [] for layer, kept in found.items()}


def _kept(digest: str) -> Path:
    return paths.STATE / "layers" / f"{digest}.{_READER}.json"


def _read(kept: Path) -> list[Finding] | None:
    listed = json.loads(kept.read_text())
    return None if listed is None else [Finding(**item) for item in listed]


def _layer(blob: IO[bytes]) -> list[Finding] | None:
    """Findings of one blob; None where it is no layer (a manifest, a configuration)."""
    import zlib

    import zstandard

    head = blob.read(4)
    whole = _Joined(head, blob)
    if head[:1] in (b"{", b"["):
        return None
    plain: Any = whole
    if head == b"\x28\xb5\x2f\xfd":
        plain = zstandard.ZstdDecompressor().stream_reader(
            cast(Any, whole), read_across_frames=True
        )
    elif head[:2] == b"\x1f\x8b":
        import gzip

        plain = gzip.GzipFile(fileobj=cast(Any, whole))
    found: list[Finding] = []
    try:
        with tarfile.open(fileobj=plain, mode="r|", bufsize=1 << 20) as archive:
            for entry in archive:
                if entry.isfile() and 0 < entry.size <= _LARGEST:
                    content = archive.extractfile(entry)
                    assert content is not None
                    found += _look(entry.name, content.read())
    except (tarfile.ReadError, zlib.error):
        return None
    return found


class _Joined(io.RawIOBase):
    """A file whose first bytes were read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self.head, self.rest = head, rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.head:
            head, self.head = (self.head, b"") if size < 0 else (self.head[:size], self.head[size:])
            return head + (self.rest.read() if size < 0 else b"")
        return self.rest.read(size)


def _look(name: str, content: bytes) -> Iterator[Finding]:
    path = PurePosixPath("/", name)
    if path.name in _NAMES or str(path).endswith(_PATHS):
        yield Finding(str(path), "a credentials file")
        return
    for what, pattern in _PATTERNS.items():
        if pattern.search(content):
            yield Finding(str(path), what)
