"""Registries: read and write manifests and tags (OCI distribution specification 1.1).

What a registry answers is judged by its status code, and held to its digest.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import RegistryError, TagError, ToolError, UsageError
from fp4forge.oci import api
from fp4forge.oci import layout as layouts
from fp4forge.oci.layout import Descriptor, ManifestOrIndex
from fp4forge.oci.reference import ImageReference, parse

INDEX = "application/vnd.oci.image.index.v1+json"
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


def check_free(repository: str, name: str, digest: str) -> bool:
    """Refuses a tag that names another image; returns whether it names this one already.

    Raises:
        TagError: it names another.
        RegistryError: the registry does not answer, or refuses.
    """
    current = manifest(repository, name)
    if current is not None and current.digest != digest:
        raise TagError(
            f"{repository}:{name} already names another image, {current.digest[:19]}",
            rule="an immutable tag, or a bundle's, is never moved",
            remedy="publish this image in another repository",
        )
    return current is not None


def tag(repository: str, digest: str, name: str, *, fixed: bool = False) -> None:
    """Makes a tag name a digest that is already in the repository, and reads it back.

    Args:
        repository: where.
        digest: what the tag is to name.
        name: the tag.
        fixed: never move it away from another image. A registry has no way to ask for that, so the
            tag is looked up immediately before it is written.

    Raises:
        TagError: it is fixed and names another image.
        RegistryError: the registry refuses, or the tag names something else afterwards.
    """
    wanted = existing(repository, digest)
    if fixed:
        there = check_free(repository, name, digest)
    else:
        current = manifest(repository, name)
        there = current is not None and current.digest == digest
    if not there:
        put(repository, name, wanted.content, wanted.data.mediaType or wanted.media_type)
        check_names(repository, name, digest)


def check_names(repository: str, name: str, digest: str) -> None:
    """Reads a tag back.

    Raises:
        RegistryError: it names something else, or the registry does not answer.
    """
    found = manifest(repository, name)
    if found is None or found.digest != digest:
        raise RegistryError(
            f"{repository}:{name} names {found.digest if found else 'nothing'}",
            rule=f"it should name {digest}",
            remedy="somebody else may have pushed; run again",
        )


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


def check_takes_nothing_away(repository: str, name: str, labels: list[dict[str, str]]) -> None:
    """Refuses to move a tag away from an image of another platform, strategy or base.

    Args:
        repository: where.
        name: the moving tag.
        labels: of the images that the tag is to name, as ``image_labels`` has them.

    Raises:
        TagError: the tag names such an image now.
    """
    found = manifest(repository, name)
    if found is None:
        return
    now = image_labels(repository, found.digest)
    for label, what in (
        ("platform", "platform"),
        ("io.fp4forge.strategy", "strategy"),
        ("org.opencontainers.image.base.name", "base"),
    ):
        old, new = ({base_kind(entry.get(label, "")) for entry in all_} for all_ in (now, labels))
        if old - new:
            raise TagError(
                f"{repository}:{name} names an image of {what} {', '.join(sorted(old))}",
                rule=f"a push never takes a tag away from another {what}",
                remedy="choose another --tag, or publish all platforms at once (--platform A,B)",
            )


def base_kind(value: str) -> str:
    """A base's name without what differs between platforms and recipes."""
    try:
        named = parse(value)
    except UsageError:  # another builder's label
        return value
    kind = re.sub(r"^([a-z]+)-(amd64|arm64)-[0-9a-f]+$", r"\1", named.tag)
    return str(ImageReference(named.repository, kind))


class _Entries(Struct, frozen=True):
    manifests: list[dict[str, Any]]


def combine(repository: str, digests: list[str], manifests: set[str]) -> str:
    """Stores one index of several by its digest, without a tag; returns the digest.

    Args:
        repository: where.
        digests: of the indexes, one for each platform.
        manifests: digests of the image manifests that the new index must name.

    Raises:
        RegistryError: the registry refuses, or the indexes name other images.
    """
    entries: list[dict[str, Any]] = []  # with all their fields
    for digest in digests:
        part, where = existing(repository, digest).content, f"index {digest[:19]}"
        entries += reading.json(part, _Entries, where, RegistryError).manifests
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    content = json.dumps(index, separators=(",", ":")).encode()
    if layouts.parse(content, "the new index", RegistryError).image_digests != manifests:
        raise RegistryError(
            f"the indexes in {repository} do not name the images that were verified",
            remedy="somebody else may have pushed; run again",
        )
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    put(repository, digest, content, INDEX)
    return digest


def immutable(
    repository: str, name: str, index: ManifestOrIndex, own_digest: str
) -> tuple[str, str | None]:
    """The immutable tag for an image: ``name``, or if another image has it, ``name-<digest>``.

    One plan gives other bytes when packages of the distribution moved on; both images stay.

    Args:
        repository: where.
        name: the plan's tag.
        index: the index to be published.
        own_digest: its digest.

    Returns:
        The tag, and the index digest that it names already; None if it is free.

    Raises:
        TagError: both names are taken by other images.
        RegistryError: the index names no image, or the registry does not answer.
    """
    if not index.images:
        raise RegistryError(
            f"the index {own_digest[:19]} names no image", rule="an index of at least one image"
        )
    other = f"{name}-{min(index.image_digests)[7:15]}"
    for candidate in (name, other):
        found = manifest(repository, candidate)
        if found is None:
            return candidate, None
        if found.digest == own_digest or _same_images(found.data, index):
            return candidate, found.digest
    raise TagError(
        f"{repository}:{other} already names another image",
        rule="an immutable tag is never moved",
        remedy="publish this image in another repository (--repo)",
    )


def _same_images(found: ManifestOrIndex, index: ManifestOrIndex) -> bool:
    """Whether an index says the same of the same images, and has only their attestations."""

    def images(data: ManifestOrIndex) -> list[tuple[object, ...]]:
        parts = ((e.digest, e.size, e.mediaType, e.platform) for e in data.images)
        return sorted(parts, key=repr)

    subjects = {
        (entry.annotations or {}).get("vnd.docker.reference.digest")
        for entry in found.manifests or ()
        if entry.attestation
    }
    return images(found) == images(index) and subjects <= index.image_digests
