"""SBOMs in a registry: documents beside each platform's image, as OCI referrers."""

from __future__ import annotations

from datetime import UTC, datetime

from fp4forge.core.errors import RegistryError
from fp4forge.oci import cosign, referrers, registry
from fp4forge.oci.cosign import Trust
from fp4forge.sbom import documents
from fp4forge.sbom.components import SbomComponent

# Media types registered with IANA, and the types of their in-toto predicates.
CYCLONEDX = "application/vnd.cyclonedx+json"
SPDX = "application/spdx+json"
PREDICATES = {
    CYCLONEDX: "https://cyclonedx.org/bom",
    SPDX: "https://spdx.dev/Document",
}


def attach(repository: str, digest: str, made: dict[str, bytes], epoch: int) -> None:
    """Keeps documents beside a platform's image; those that are there already stay as they are.

    Args:
        repository: where the image is.
        digest: of the image's manifest, not of the index.
        made: documents by their media types.
        epoch: when they were made, in seconds: the same document gives the same artifact.

    Raises:
        RegistryError: the registry does not take them.
    """
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for kind, content in made.items():
        if content not in referrers.attached(repository, digest, kind):
            referrers.attach(repository, digest, kind, content, created)


def documents_of(repository: str, digest: str) -> dict[str, bytes]:
    """The newest document of each kind beside a platform's image.

    Raises:
        RegistryError: the registry does not answer.
    """
    found = {kind: referrers.attached(repository, digest, kind) for kind in PREDICATES}
    return {kind: contents[-1] for kind, contents in found.items() if contents}


def components(
    repository: str, digest: str, trust: Trust | None = None
) -> dict[str, list[SbomComponent]]:
    """The components of each platform's image, from the SBOM that was published with it.

    Args:
        repository: where the image is.
        digest: of its index, or of one platform's manifest.
        trust: whose signature counts; then the signed attestation is read, not the referrer.

    Returns:
        Components by platform (``os/architecture``; empty for a manifest given by its own digest).

    Raises:
        RegistryError: the registry does not answer, or there is no SBOM.
        SignatureError: the SBOM is not signed as demanded.
    """
    images = registry.existing(repository, digest).data.by_platform or {"": digest}
    return {name: _kept_components(repository, image, trust) for name, image in images.items()}


def _kept_components(repository: str, image: str, trust: Trust | None) -> list[SbomComponent]:
    content = document(repository, image, CYCLONEDX, trust)
    return documents.read(content, f"the SBOM of {repository}@{image}")


def document(repository: str, image: str, kind: str, trust: Trust | None = None) -> bytes:
    """The newest SBOM of a media type of a platform's image, as JSON.

    Raises:
        RegistryError: the registry does not answer, or there is none.
        SignatureError: it is not signed as demanded.
    """
    if trust:
        return cosign.attestations(repository, image, PREDICATES[kind], trust)[-1]
    found = referrers.attached(repository, image, kind)
    if not found:
        raise RegistryError(
            f"{repository}@{image} has no SBOM",
            rule="build.py --push attaches one to each platform's image",
            remedy="publish the image again with this version of fp4forge",
        )
    return found[-1]
