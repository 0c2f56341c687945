"""What a repository holds: each image with its tags, its kind, and what is known of it."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from fp4forge.advisories import vex
from fp4forge.core.errors import RegistryError
from fp4forge.kernels.base import Progress
from fp4forge.oci import catalog, referrers, registry, registry_tags
from fp4forge.plan import tags
from fp4forge.publish import records

# Labels of an image that say what it is a version of (templates/), besides its platform.
KIND = (
    "io.fp4forge.release",
    "io.fp4forge.arch",
    "io.fp4forge.variant",
    "io.fp4forge.strategy",
)
_BASE = "org.opencontainers.image.base.name"
# Artifact types of signatures: cosign's, and sigstore's bundle.
_SIGNATURES = (
    "application/vnd.dev.cosign.artifact.sig.v1+json",
    "application/vnd.dev.sigstore.bundle",
)


@dataclass(frozen=True)
class ListedImage:
    """An image, or an index of several platforms; what it lacks is empty."""

    digest: str
    tags: list[str]
    manifests: list[str]  # that its index names: images and attestations
    release: str = ""
    kind: str = ""  # images that replace each other have the same
    platforms: list[str] = field(default_factory=list)
    published: str = ""  # ISO 8601, of its first record
    verified: bool = False  # a record here says that its checks passed
    signed: bool = False  # a signature is kept beside it; whether it is valid is not checked
    # On advisories about its release, by status (advisories/vex.py).
    verdicts: dict[str, int] = field(default_factory=dict)
    bytes: int = 0  # compressed, all platforms
    problem: str = ""  # why it could not be read

    @property
    def moving(self) -> list[str]:
        """Its tags that move."""
        return [tag for tag in self.tags if not tags.is_immutable(tag)]


def images(repository: str, report: Progress) -> list[ListedImage]:
    """Every image that a tag names, the newest first; those without a record come last.

    Raises:
        RegistryError: the registry does not answer. An image that is not whole has its problem.
    """
    every = catalog.every_tag(repository)
    names = [tag for tag in every if catalog.is_image(tag)]
    report(f"{len(names)} tags")
    with ThreadPoolExecutor(8) as pool:  # they wait for the registry
        digests = list(pool.map(lambda tag: _tag_digest(repository, tag), names))
        by_digest: dict[str, list[str]] = {}
        for tag, digest in zip(names, digests, strict=True):
            if digest:
                by_digest.setdefault(digest, []).append(tag)
        report(f"{len(by_digest)} images")
        found = list(
            pool.map(
                lambda one: _listed_image(repository, one, by_digest[one], {*every}), by_digest
            )
        )
    return sorted(found, key=lambda image: (image.published, image.digest), reverse=True)


def signed(repository: str, digest: str, every_tag: set[str]) -> bool:
    """Whether a signature is kept beside an image, as a referrer or under cosign's tag.

    The one place that the listing asks: it does not look at whether a signature holds.

    Raises:
        RegistryError: the registry does not answer.
    """
    kinds = referrers.beside(repository, digest).values()
    return f"{referrers.tag(digest)}.sig" in every_tag or any(
        kind.startswith(_SIGNATURES) for kind in kinds
    )


def _tag_digest(repository: str, tag: str) -> str:
    found = registry.manifest(repository, tag)
    return found.digest if found else ""  # it went meanwhile


def _listed_image(
    repository: str, digest: str, names: list[str], every_tag: set[str]
) -> ListedImage:
    index = registry.existing(repository, digest).data
    image = ListedImage(
        digest=digest,
        tags=sorted(names, key=lambda tag: (not tags.is_immutable(tag), tag)),
        manifests=sorted(entry.digest for entry in index.manifests or ()),
    )
    try:
        return _with_labels(repository, image, every_tag)
    except RegistryError as error:  # a cache of builds, say, or an image that lost a part
        return replace(image, problem=error.message)


def _with_labels(repository: str, image: ListedImage, every_tag: set[str]) -> ListedImage:
    kept = records.of(repository, image.digest)
    labels = registry.image_labels(repository, image.digest)
    release = next((entry[KIND[0]] for entry in labels if KIND[0] in entry), "")
    return replace(
        image,
        release=release,
        kind="; ".join(sorted(_image_kind(entry) for entry in labels)),
        platforms=sorted(entry["platform"] for entry in labels),
        published=min((record.time for record in kept), default=""),
        verified=records.passed(kept, repository, image.digest) is not None,
        signed=signed(repository, image.digest, every_tag),
        verdicts=dict(Counter(verdict.status for verdict in vex.load(release))),
        bytes=sum(registry.layer_sizes(repository, image.digest).values()),
    )


def _image_kind(labels: dict[str, str]) -> str:
    base = registry_tags.base_kind(labels.get(_BASE, ""))
    return " ".join([*(labels.get(name, "-") for name in KIND), base or "-", labels["platform"]])


def find(repository: str, name: str) -> registry.Manifest:
    """What a tag or digest names.

    Raises:
        RegistryError: nothing.
    """
    found = registry.manifest(repository, name)
    if found is None:
        raise RegistryError(
            f"{repository} has no {name}", remedy="build.py images lists what is there"
        )
    return found
