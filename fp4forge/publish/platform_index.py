"""The image index of several platforms: one name for the images that were published one by one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from fp4forge.core.errors import TagError
from fp4forge.kernels.base import Progress
from fp4forge.oci import registry, registry_tags
from fp4forge.plan import tags
from fp4forge.publish import signing, tagging, verified
from fp4forge.publish.destination import Destination


@dataclass(frozen=True)
class PublishedIndex:
    """The image index that names one verified image for each platform."""

    image: str
    digest: str
    tags: tuple[str, ...]
    platforms: dict[str, str]  # platform -> digest of that platform's own index


def publish(
    plans: list[dict[str, Any]],
    digests: dict[str, str],
    moving: str,
    where: Destination,
    report: Progress,
) -> PublishedIndex:
    """Pushes the index and gives it its tags.

    Args:
        plans: of the images, in their order.
        digests: of the images that were published here, by platform.
        moving: the index's moving tag.
        where: the repository, further tags, who signs.
        report: called with each tag.

    Raises:
        TagError: a tag names something that it may not be moved away from.
        RegistryError: the registry refuses.
    """
    repository, plan = where.repository, plans[0]
    joined = "".join(each["id"] for each in plans)
    identity = hashlib.sha256(joined.encode()).hexdigest()[:12]
    name = tags.immutable(plan["release"], plan["arch"], plan["variant"], identity)
    manifests = set().union(*(registry.images_of(repository, d) for d in digests.values()))
    own = registry_tags.combine(repository, list(digests.values()), manifests)
    _, digest = _index_tag(repository, name, own)
    if where.signer:
        signing.sign(repository, digest, where.signer, report, {})  # its parts are attested
    with tagging.turn(repository):
        immutable, digest = _index_tag(repository, name, own)
        tagging.check_further(repository, digest, where.tags)
        names = (immutable, moving, *where.tags)
        verdict = f"an index of verified images: {', '.join(digests)}"
        tagging.give(
            repository, digest, names, report, fixed=immutable, verdict=verdict, by=where.signer
        )
    verified.record(repository, digest)
    return PublishedIndex(f"{repository}@{digest}", digest, names, digests)


def _index_tag(repository: str, name: str, own: str) -> tuple[str, str]:
    """The immutable tag of an index of several platforms, and the digest that it is to name.

    Raises:
        TagError: it names an index of the same images that was not published here: what is beside
            the images in it, such as their provenance, is somebody else's.
    """
    index = registry.existing(repository, own).data
    immutable, known = registry_tags.immutable(repository, name, index, own)
    if known not in (None, own) and not verified.here(repository, known):
        raise TagError(
            f"{repository}:{immutable} names {known[:19]}, which was not published here",
            rule=f"an immutable tag is never moved; this index would be {own[:19]}",
            remedy="publish it in another repository (--repo)",
        )
    return immutable, known or own
