"""Registries: read and write manifests and tags (OCI distribution specification 1.1).

What a registry answers is judged by its status code, and held to its digest.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import RegistryError, ToolError
from fp4forge.oci import api
from fp4forge.oci import layout as layouts
from fp4forge.oci.layout import INDEX, Descriptor, ManifestOrIndex
from fp4forge.oci.reference import ImageReference

_ACCEPT = ", ".join(
    (
        INDEX,
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


@dataclass(frozen=True)
class Manifest:
    """A manifest or index with the digest of its bytes."""

    digest: str
    content: bytes
    media_type: str

    @property
    def data(self) -> ManifestOrIndex:
        """What it names.

        Raises:
            RegistryError: it is not the JSON of a manifest or index.
        """
        return layouts.parse(self.content, f"manifest {self.digest[:19]}", RegistryError)


def reach(repository: str) -> None:
    """Asks the registry's API root for an answer, before anything long is started.

    Raises:
        RegistryError: nothing answers there, or it is not a registry.
        ToolError: skopeo is not installed.
    """
    if shutil.which("skopeo") is None:
        raise ToolError("skopeo is not installed", remedy="run make setup")
    status = api.ask("GET", repository, "", {}).status
    if status not in (200, 401):
        host = ImageReference(repository).host or repository
        raise RegistryError(
            f"{host} answers {status} to GET /v2/: not a registry",
            rule="--push needs a registry (OCI distribution spec, GET /v2/)",
        )


def manifest(repository: str, name: str) -> Manifest | None:
    """The manifest that a tag or digest names; None if there is none (status 404).

    Raises:
        RegistryError: the registry does not answer, refuses, or sends other bytes than the digest.
    """
    answer = api.ask("GET", repository, f"manifests/{name}", {"Accept": _ACCEPT})
    if answer.status == 404:
        return None
    if answer.status != 200:
        raise api.refused(repository, f"read {name[:40]}", answer)
    digest = "sha256:" + hashlib.sha256(answer.content).hexdigest()
    if ":" in name and digest != name:  # no tag has a colon
        raise RegistryError(
            f"{repository}@{name[:19]} does not match its digest",
            rule="content fetched by digest must have that digest",
            remedy="do not use this registry's copy; check its storage",
        )
    return Manifest(digest, answer.content, answer.headers.get("content-type", INDEX))


def resolve(repository: str, tag: str) -> tuple[str, ManifestOrIndex] | None:
    """Digest and content of what a tag names; None if the tag is free.

    Raises:
        RegistryError: the registry does not answer, or refuses.
    """
    found = manifest(repository, tag)
    return None if found is None else (found.digest, found.data)


def existing(repository: str, digest: str) -> Manifest:
    """A manifest that was pushed.

    Raises:
        RegistryError: the registry does not answer, or does not have it.
    """
    found = manifest(repository, digest)
    if found is None:
        raise RegistryError(f"{repository} has no {digest[:19]}", remedy="push it again")
    return found


def put(repository: str, name: str, content: bytes, media_type: str) -> None:
    """Stores a manifest under a tag or its digest.

    Raises:
        RegistryError: the registry refuses.
    """
    answer = api.ask("PUT", repository, f"manifests/{name}", {"Content-Type": media_type}, content)
    if answer.status not in (200, 201, 202):
        raise api.refused(repository, f"write {name[:40]}", answer)


def images_of(repository: str, digest: str) -> set[str]:
    """Digests of the image manifests that an index in the repository names.

    Raises:
        RegistryError: the registry does not answer, or has no such index.
    """
    return existing(repository, digest).data.image_digests


def layer_sizes(repository: str, digest: str) -> dict[str, int]:
    """Digest and compressed bytes of every layer of an index's images, all platforms together.

    Raises:
        RegistryError: the registry does not answer, or has no such index.
    """
    images = [existing(repository, image).data for image in images_of(repository, digest)]
    return {layer.digest: layer.size for image in images for layer in image.layers or ()}


def image_labels(repository: str, digest: str) -> list[dict[str, str]]:
    """The configuration's labels of each image, with its platform as ``platform``.

    Args:
        repository: where.
        digest: of an index, or of the manifest of a single image.

    Raises:
        RegistryError: the registry does not answer, lacks one of the blobs, or has other bytes.
    """
    found = []
    named = existing(repository, digest).data
    parts = [existing(repository, entry.digest).data for entry in named.images]
    for part in parts if named.manifests is not None else [named]:
        image = config_of(repository, part)
        content = blob(repository, image.digest, "a configuration")
        where = f"configuration {image.digest[:19]}"
        config = reading.json(content, _Configuration, where, RegistryError)
        labels = (config.config or _Runtime()).Labels or {}
        found.append({**labels, "platform": f"{config.os}/{config.architecture}"})
    return found


def blob(repository: str, digest: str, what: str) -> bytes:
    """A small blob; ``what`` it is, for the message.

    Raises:
        RegistryError: the registry does not answer, or has other bytes than the digest says.
    """
    answer = api.ask("GET", repository, f"blobs/{digest}", {})
    if answer.status != 200:
        raise api.refused(repository, f"read {what}", answer)
    if "sha256:" + hashlib.sha256(answer.content).hexdigest() != digest:
        raise RegistryError(
            f"{repository}: {what} is not what its digest says",
            remedy="check the registry's storage",
        )
    return answer.content


def check_whole(repository: str, digest: str) -> None:
    """Asks for every manifest and blob of an image; what is in the blobs is not read.

    Raises:
        RegistryError: the registry does not answer, or one is missing or of another size.
    """
    named = existing(repository, digest).data
    parts = [existing(repository, entry.digest).data for entry in named.manifests or ()]
    blobs = {each.digest: each for part in parts or [named] for each in part.blobs}
    for one in blobs.values():
        answer = api.ask("HEAD", repository, f"blobs/{one.digest}", {})
        size = answer.headers.get("content-length", "")
        if answer.status != 200 or size != str(one.size):
            raise RegistryError(
                f"{repository} does not keep blob {one.digest[:19]} of {digest[:19]} whole",
                rule=f"{one.size} bytes",
                remedy="check the registry's storage; publish that image again",
            )


class _Runtime(Struct, frozen=True):
    Labels: dict[str, str] | None = None


class _Configuration(Struct, frozen=True):
    """An image's configuration (OCI image specification), as far as it is read."""

    os: str | None = None
    architecture: str | None = None
    config: _Runtime | None = None


def config_of(repository: str, image: ManifestOrIndex) -> Descriptor:
    """The configuration that the manifest of an image names.

    Raises:
        RegistryError: it names none.
    """
    if image.config is None:
        raise RegistryError(
            f"{repository}: a manifest of an image has no configuration",
            rule="an index names images (OCI image specification)",
        )
    return image.config
