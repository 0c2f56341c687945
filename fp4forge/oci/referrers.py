"""Small documents that a registry keeps beside an image (OCI distribution specification 1.1).

An artifact's manifest names the image as its ``subject``. Registries without the referrers API get
the specification's tag schema: an index under the tag ``sha256-<digest>``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from fp4forge.core import http, reading
from fp4forge.core.errors import ForgeError, RegistryError
from fp4forge.oci import api, registry
from fp4forge.oci.layout import INDEX, Descriptor, image_index

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_EMPTY = "application/vnd.oci.empty.v1+json"
_MOST = 200  # documents that are listed for one image; beyond it the oldest are dropped


class _ReferrerEntry(Struct, frozen=True):
    digest: str
    size: int = 0
    mediaType: str = _MANIFEST
    artifactType: str = ""
    annotations: dict[str, str] | None = None


class _List(Struct, frozen=True):
    manifests: list[_ReferrerEntry] = []


@dataclass(frozen=True)
class AttachedDocument:
    """A document beside an image: the digest of its artifact's manifest, and its bytes."""

    digest: str
    created: str
    content: bytes


def attach(repository: str, subject: str, kind: str, content: bytes, created: str) -> str:
    """Keeps a document beside an image; returns the digest of its artifact's manifest.

    Args:
        repository: where the image is.
        subject: the digest of the image's index, or of one platform's manifest.
        kind: the artifact's type, such as ``application/vnd.example.v1+json``.
        content: the document.
        created: when it was made, ISO 8601.

    Raises:
        RegistryError: the registry does not answer, or takes no artifacts.
    """
    image = registry.existing(repository, subject)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "artifactType": kind,
        "config": {"mediaType": _EMPTY, **store(repository, b"{}")},
        "layers": [{"mediaType": kind, **store(repository, content)}],
        "subject": {
            "mediaType": image.data.mediaType or image.media_type,
            "digest": subject,
            "size": len(image.content),
        },
        "annotations": {"org.opencontainers.image.created": created},
    }
    return put(repository, json.dumps(manifest, separators=(",", ":")).encode())


class Artifact(Struct, frozen=True):
    """The manifest of an artifact, as far as it is listed beside its subject."""

    subject: Descriptor
    artifactType: str = ""
    config: Descriptor | None = None
    annotations: dict[str, str] | None = None

    @property
    def kind(self) -> str:
        """Its type, as registries list it."""
        return self.artifactType or (self.config and self.config.mediaType) or ""


def artifact(data: bytes, kind: type[ForgeError]) -> Artifact:
    """An artifact from its manifest.

    Raises:
        ForgeError: of the given class: it is none, or names no subject.
    """
    own = "sha256:" + hashlib.sha256(data).hexdigest()
    return reading.json(data, Artifact, f"artifact {own[:19]}", kind)


def put(repository: str, data: bytes) -> str:
    """Stores an artifact's manifest, whose blobs are there; returns its digest.

    Raises:
        RegistryError: it names no subject, or the registry does not take it.
    """
    own = "sha256:" + hashlib.sha256(data).hexdigest()
    found = artifact(data, RegistryError)
    subject = found.subject.digest
    if own in listed(repository, subject):
        return own
    answer = api.ask("PUT", repository, f"manifests/{own}", {"Content-Type": _MANIFEST}, data)
    if answer.status not in (200, 201, 202):
        raise api.refused(repository, "keep a record", answer)
    if answer.headers.get("oci-subject", "") != subject:
        entry = {
            "mediaType": _MANIFEST,
            "artifactType": found.kind,
            "digest": own,
            "size": len(data),
            "annotations": found.annotations or {},
        }
        _append_referrer(repository, subject, entry)
    return own


def attached(repository: str, subject: str, kind: str) -> list[bytes]:
    """The contents of ``kept``."""
    return [document.content for document in kept(repository, subject, kind)]


def kept(repository: str, subject: str, kind: str) -> list[AttachedDocument]:
    """The documents of a kind that are kept beside an image, the oldest first.

    Raises:
        RegistryError: the registry does not answer, or has other bytes than its digests say.
    """
    found = []
    for entry in _referrers_of(repository, subject).manifests:
        if entry.artifactType != kind:
            continue
        manifest = registry.existing(repository, entry.digest).data
        for layer in manifest.layers or ():
            created = (entry.annotations or {}).get(_CREATED, "")
            found.append(
                AttachedDocument(
                    entry.digest, created, registry.blob(repository, layer.digest, "a record")
                )
            )
    return sorted(found, key=lambda document: (document.created, document.content))


def listed(repository: str, subject: str) -> list[str]:
    """Digests of the artifacts of every kind that are kept beside a manifest.

    Raises:
        RegistryError: the registry does not answer.
    """
    return [entry.digest for entry in _referrers_of(repository, subject).manifests]


def beside(repository: str, subject: str) -> dict[str, str]:
    """Digest and artifact type of each document that is kept beside an image.

    Raises:
        RegistryError: the registry does not answer.
    """
    return {e.digest: e.artifactType for e in _referrers_of(repository, subject).manifests}


def tag(subject: str) -> str:
    """The tag that lists what is beside a manifest, in a registry without the referrers API."""
    return subject.replace(":", "-")


_CREATED = "org.opencontainers.image.created"


def _referrers_of(repository: str, subject: str) -> _List:
    where = f"what {repository} keeps beside {subject[:19]}"
    answer = api.ask("GET", repository, f"referrers/{subject}", {"Accept": INDEX})
    if answer.status == 200:
        return reading.json(answer.content, _List, where, RegistryError)
    if answer.status not in (404, 405):
        raise api.refused(repository, "read records", answer)
    found = registry.manifest(repository, tag(subject))
    return reading.json(found.content, _List, where, RegistryError) if found else _List()


def _append_referrer(repository: str, subject: str, entry: dict[str, Any]) -> None:
    found = registry.manifest(repository, tag(subject))
    entries: Any = []
    if found:
        where = f"{repository}:{tag(subject)}"
        entries = reading.json(found.content, dict[str, Any], where, RegistryError).get("manifests")
        if not isinstance(entries, list):
            raise RegistryError(f"{where} is not an index")
    index = image_index([*entries[-_MOST + 1 :], entry])
    content = json.dumps(index, separators=(",", ":")).encode()
    registry.put(repository, tag(subject), content, INDEX)


def store(repository: str, content: bytes) -> dict[str, Any]:
    """Stores a small blob; its digest and size.

    Raises:
        RegistryError: the registry does not take it.
    """
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    if api.ask("HEAD", repository, f"blobs/{digest}", {}).status != 200:
        begun = api.ask("POST", repository, "blobs/uploads/", {}, b"")
        try:
            place = http.address(begun.headers.get("location", ""))
        except http.NoHttpAnswer:
            raise api.refused(repository, "keep a record", begun) from None
        _, found, upload = place.path.partition("/blobs/uploads/")
        if begun.status != 202 or not found:
            raise api.refused(repository, "keep a record", begun)
        query = f"{place.query}&" if place.query else ""
        path = f"blobs/uploads/{upload}?{query}digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        answer = api.ask("PUT", repository, path, headers, content)
        if answer.status != 201:
            raise api.refused(repository, "keep a record", answer)
    return {"digest": digest, "size": len(content)}
