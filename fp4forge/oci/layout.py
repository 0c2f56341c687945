"""OCI image layouts, indexes and manifests (OCI image specification 1.1), with types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct

from fp4forge.core import files, reading
from fp4forge.core.errors import ArtefactError, ForgeError
from fp4forge.core.image_names import DIGEST
from fp4forge.core.limits import INDEX_ENTRIES, MANIFEST_BYTES
from fp4forge.core.text import shown

T = TypeVar("T")
Digest = Annotated[str, Meta(pattern=rf"^{DIGEST}\Z")]
INDEX = "application/vnd.oci.image.index.v1+json"


def image_index(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An image index (OCI image specification 1.1) that names some manifests.

    Args:
        entries: descriptors, with all fields that they are to have.
    """
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}


class OsArchitecture(Struct, frozen=True):
    """The platform of an index's entry."""

    os: str | None = None
    architecture: str | None = None
    variant: str | None = None


class Descriptor(Struct, frozen=True):
    """What an index or manifest says of a blob; size in bytes."""

    digest: Digest
    size: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    mediaType: str | None = None
    platform: OsArchitecture | None = None
    annotations: dict[str, str] | None = None

    @property
    def attestation(self) -> bool:
        """Whether this is BuildKit's attestation of an image, not an image.

        BuildKit marks it by a platform that no machine has
        (docs/attestations/attestation-storage.md).
        """
        return self.platform is not None and self.platform.os == "unknown"


class ManifestOrIndex(Struct, frozen=True):
    """An index (``manifests``) or the manifest of an image (``config`` and ``layers``)."""

    mediaType: str | None = None
    manifests: list[Descriptor] | None = None
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None

    @property
    def images(self) -> list[Descriptor]:
        """An index's entries that are images, attestations left aside."""
        return [entry for entry in self.manifests or () if not entry.attestation]

    @property
    def image_digests(self) -> set[str]:
        """Digests of an index's image manifests."""
        return {entry.digest for entry in self.images}

    @property
    def by_platform(self) -> dict[str, str]:
        """Digests of an index's image manifests by ``os/architecture``; empty if it names none."""
        return {
            f"{e.platform.os}/{e.platform.architecture}" if e.platform else "": e.digest
            for e in self.images
        }

    @property
    def blobs(self) -> list[Descriptor]:
        """Everything that it names."""
        config = [self.config] if self.config else []
        return [*(self.manifests or ()), *config, *(self.layers or ())]


def parse(content: bytes, where: str, kind: type[ForgeError]) -> ManifestOrIndex:
    """An index or manifest from its bytes.

    Raises:
        ForgeError: of the given class: it is not one.
    """
    found = reading.json(content, ManifestOrIndex, where, kind)
    if found.manifests is None and found.config is None:
        raise kind(
            f"{where} names neither images nor a configuration",
            rule="an index or the manifest of an image (OCI image specification)",
        )
    if found.manifests is not None and (found.config, found.layers) != (None, None):
        raise kind(
            f"{where} is an index and the manifest of an image at once",
            rule="one of the two: another program may take it for the other (CVE-2021-41190)",
            remedy="do not use it",
        )
    if len(found.blobs) > INDEX_ENTRIES:
        raise kind(f"{where} names {len(found.blobs):,} others", rule=f"at most {INDEX_ENTRIES}")
    return found


@dataclass(frozen=True)
class OciLayout:
    """A folder in the form of an OCI image layout."""

    folder: Path

    def path(self, digest: str) -> Path:
        """Where a blob lies."""
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def document(self, digest: str) -> ManifestOrIndex:
        """An index or manifest.

        Raises:
            ArtefactError: it is not there, or is not one.
        """
        path = self.path(digest)
        return parse(
            reading.content(path, ArtefactError, MANIFEST_BYTES), shown(path, 300), ArtefactError
        )

    def name_only(self, digest: str, annotations: dict[str, str] | None = None) -> None:
        """Makes ``index.json`` name one image.

        BuildKit adds to a layout's index; skopeo wants one image in it. Other blobs stay, so that
        unchanged layers are not exported again.

        Raises:
            ArtefactError: the layout does not have it.
        """
        size = self.path(digest).stat().st_size if reading.is_file(self.path(digest)) else 0
        entry = {"mediaType": self.document(digest).mediaType, "digest": digest, "size": size}
        index = image_index([entry | _given_annotations(annotations)])
        files.replace(self.folder / "index.json", json.dumps(index))

    def layers(self, digest: str) -> list[Descriptor]:
        """Layer descriptors (compressed size in bytes) of an index's first image.

        Raises:
            ArtefactError: the layout does not have it.
        """
        for entry in self.document(digest).images:
            return self.document(entry.digest).layers or []
        return []

    def drop_cut(self, digest: str) -> list[str]:
        """Removes the blobs of an image that were cut short, by a kill or a full disk.

        BuildKit does not export a blob whose file is there, whatever is in it.

        Returns:
            Digests of those that were removed, or are not there.
        """
        lost: list[str] = []
        waiting, seen = [Descriptor(digest)], {digest}
        documents = {digest}  # a configuration is JSON, too, but neither an index nor a manifest
        while waiting:
            entry = waiting.pop()
            path = self.path(entry.digest)
            have = path.stat().st_size if reading.is_file(path) else -1
            whole = have == entry.size if entry.size else have > 0
            if whole and entry.digest in documents:
                try:
                    found = self.document(entry.digest)
                except ArtefactError:
                    whole = False
                else:
                    documents |= {part.digest for part in found.manifests or ()}
                    waiting += [blob for blob in found.blobs if blob.digest not in seen]
                    seen |= {blob.digest for blob in found.blobs}
            if not whole:
                path.unlink(missing_ok=True)
                lost.append(entry.digest)
        return lost


def _given_annotations(annotations: dict[str, str] | None) -> dict[str, object]:
    return {"annotations": annotations} if annotations else {}
