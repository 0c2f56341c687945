"""Removes old images from a repository, never one that a tag that moves or a run's lock names.

A registry removes manifests; the bytes of layers go when it collects garbage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fp4forge.core import reading
from fp4forge.core.errors import RegistryError, UsageError
from fp4forge.kernels.base import Progress
from fp4forge.oci import catalog, cosign, referrers, registry
from fp4forge.publish import listing, tagging
from fp4forge.publish.listing import ListedImage
from fp4forge.serve import runlock


@dataclass(frozen=True)
class ImageFate:
    """What becomes of an image, and why."""

    image: ListedImage
    kept: str  # the reason; empty if it goes


def locked(places: Iterable[Path]) -> dict[str, str]:
    """Digests that locks of runs name, with the file that does.

    Args:
        places: locks, or folders in which every ``*.json`` is one.

    Raises:
        UsageError: there is no such file or folder, or a folder has no lock.
        RunLockError: a file is not a lock. It is not passed over: it might be one that was spoilt.
    """
    found: dict[str, str] = {}
    for place in places:
        files = sorted(place.rglob("*.json")) if reading.is_folder(place) else [place]
        if not files or not (reading.is_folder(place) or reading.is_file(place)):
            raise UsageError(
                f"--locks {place} has no lock", rule="a file of serve compose --lock, or a folder"
            )
        for file in files:
            found.setdefault(runlock.read(file).digest, str(file))
    return found


def choose(found: list[ListedImage], keep: int, locks: dict[str, str]) -> list[ImageFate]:
    """What becomes of each image; removes nothing.

    Args:
        found: all images of the repository, the newest first.
        keep: how many of each kind stay whatever names them.
        locks: from ``locked``.
    """
    fates, seen = [], dict[str, int]()
    for image in found:
        seen[image.kind] = seen.get(image.kind, 0) + 1
        names = {image.digest, *image.manifests} & locks.keys()
        if image.moving:
            kept = f"{', '.join(image.moving)} names it"
        elif names:
            kept = f"{locks[min(names)]} names it"
        elif image.problem:
            kept = f"it cannot be read: {image.problem}"
        elif not image.published:
            kept = "no record says how old it is"
        elif seen[image.kind] <= keep:
            kept = f"number {seen[image.kind]} of its kind"
        else:
            kept = ""
        fates.append(ImageFate(image, kept))
    return fates


def remove(
    repository: str, keep: int, locks: dict[str, str], report: Progress
) -> tuple[list[ImageFate], int]:
    """Removes what ``choose`` gives up, with its parts and what is kept beside it.

    Nobody on this machine can move a tag meanwhile.

    Returns:
        What became of each image, and how many manifests were removed.

    Raises:
        RegistryError: the registry does not delete, or a tag still names what was removed.
    """
    with tagging.turn(repository):
        fates = choose(listing.images(repository, report), keep, locks)
        kept = [fate.image for fate in fates if fate.kept]
        staying = {part for image in kept for part in (image.digest, *image.manifests)}
        count = 0
        for fate in fates:
            if fate.kept:
                continue
            image = fate.image
            # Its index goes first, and the tags with it: a run that ends here leaves no tag.
            parts = [part for part in image.manifests if part not in staying]
            going = [image.digest, *parts]
            beside = [found for digest in going for found in _beside_manifest(repository, digest)]
            # Who can write to the registry can have said that a kept image lies beside this one.
            for digest in dict.fromkeys(d for d in (*going, *beside) if d not in staying):
                report(f"{digest[:19]}")
                catalog.delete(repository, digest)
                count += 1
            for tag in image.tags:
                if registry.manifest(repository, tag) is not None:
                    raise RegistryError(
                        f"{repository}:{tag} is still there",
                        rule="a removed image has no tag",
                        remedy="look at the registry's log; run again",
                    )
        for image in kept:
            lost = [
                t
                for t in image.tags or [image.digest]
                if not _tag_names_image(repository, t, image)
            ]
            if lost:
                raise RegistryError(
                    f"{repository}: {', '.join(lost)} no longer names {image.digest[:19]}",
                    rule="a kept image stays as it is",
                    remedy="look at the registry's log; publish that image again",
                )
    return fates, count


def _tag_names_image(repository: str, tag: str, image: ListedImage) -> bool:
    found = registry.manifest(repository, tag)
    return found is not None and found.digest == image.digest


def _beside_manifest(repository: str, digest: str) -> list[str]:
    """Digests of what is kept beside a manifest: records, SBOMs, and the signatures of all that."""
    kept = list(referrers.beside(repository, digest))
    tags = [referrers.tag(digest)]
    for one in (digest, *kept):
        tags += [cosign.signature_tag(one), cosign.attestation_tag(one)]
    found = (registry.manifest(repository, tag) for tag in tags)
    return [*kept, *(manifest.digest for manifest in found if manifest)]
