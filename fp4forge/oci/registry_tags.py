"""Tags in a registry: what may be moved, and what an immutable tag names."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import RegistryError, TagError, UsageError
from fp4forge.oci import layout as layouts
from fp4forge.oci import registry
from fp4forge.oci.layout import INDEX, ManifestOrIndex
from fp4forge.oci.reference import ImageReference, parse


def check_free(repository: str, name: str, digest: str) -> bool:
    """Refuses a tag that names another image; returns whether it names this one already.

    Raises:
        TagError: it names another.
        RegistryError: the registry does not answer, or refuses.
    """
    current = registry.manifest(repository, name)
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
    wanted = registry.existing(repository, digest)
    if fixed:
        there = check_free(repository, name, digest)
    else:
        current = registry.manifest(repository, name)
        there = current is not None and current.digest == digest
    if not there:
        registry.put(repository, name, wanted.content, wanted.data.mediaType or wanted.media_type)
        check_names(repository, name, digest)


def check_names(repository: str, name: str, digest: str) -> None:
    """Reads a tag back.

    Raises:
        RegistryError: it names something else, or the registry does not answer.
    """
    found = registry.manifest(repository, name)
    if found is None or found.digest != digest:
        raise RegistryError(
            f"{repository}:{name} names {found.digest if found else 'nothing'}",
            rule=f"it should name {digest}",
            remedy="somebody else may have pushed; run again",
        )


def check_takes_nothing_away(repository: str, name: str, labels: list[dict[str, str]]) -> None:
    """Refuses to move a tag away from an image of another platform, strategy or base.

    Args:
        repository: where.
        name: the moving tag.
        labels: of the images that the tag is to name, as ``image_labels`` has them.

    Raises:
        TagError: the tag names such an image now.
    """
    found = registry.manifest(repository, name)
    if found is None:
        return
    now = registry.image_labels(repository, found.digest)
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
        part, where = registry.existing(repository, digest).content, f"index {digest[:19]}"
        entries += reading.json(part, _Entries, where, RegistryError).manifests
    content = json.dumps(layouts.image_index(entries), separators=(",", ":")).encode()
    if layouts.parse(content, "the new index", RegistryError).image_digests != manifests:
        raise RegistryError(
            f"the indexes in {repository} do not name the images that were verified",
            remedy="somebody else may have pushed; run again",
        )
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    registry.put(repository, digest, content, INDEX)
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
        found = registry.manifest(repository, candidate)
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
