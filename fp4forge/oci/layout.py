"""OCI image layouts and indexes on disk (OCI image specification 1.1, "Image Layout")."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.core import files


def is_attestation(entry: dict[str, Any]) -> bool:
    """Whether an index's entry is BuildKit's attestation of an image, not an image.

    BuildKit marks it by a platform that no machine has (docs/attestations/attestation-storage.md).
    """
    platform = entry.get("platform") or {}
    return bool(platform.get("os") == "unknown")


def image_entries(index: dict[str, Any]) -> list[dict[str, Any]]:
    """An index's entries that are images, attestations left aside."""
    return [entry for entry in index.get("manifests") or [] if not is_attestation(entry)]


def image_manifests(index: dict[str, Any]) -> set[str]:
    """Digests of an index's image manifests."""
    return {entry["digest"] for entry in image_entries(index)}


@dataclass(frozen=True)
class Layout:
    """A folder in the form of an OCI image layout."""

    folder: Path

    def path(self, digest: str) -> Path:
        """Where a blob lies."""
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def json(self, digest: str) -> Any:
        """A JSON blob: an index, a manifest, a configuration."""
        return json.loads(self.path(digest).read_bytes())

    def descriptor(self, digest: str) -> dict[str, Any]:
        """Media type, digest and size in bytes of an index or manifest."""
        content = self.path(digest).read_bytes()
        media_type = json.loads(content)["mediaType"]
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def name_only(self, digest: str, annotations: dict[str, str] | None = None) -> None:
        """Makes ``index.json`` name one image.

        BuildKit adds to a layout's index; skopeo wants one image in it. Other blobs stay, so that
        unchanged layers are not exported again.
        """
        entry = self.descriptor(digest)
        if annotations:
            entry["annotations"] = annotations
        index = {"schemaVersion": 2, "manifests": [entry]}
        files.replace(self.folder / "index.json", json.dumps(index))

    def layers(self, digest: str) -> list[dict[str, Any]]:
        """Layer descriptors (compressed size in bytes) of an index's first image."""
        for entry in image_entries(self.json(digest)):
            found: list[dict[str, Any]] = self.json(entry["digest"])["layers"]
            return found
        return []
