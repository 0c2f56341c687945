"""What is signed of an image, and what is demanded of one.

Signed are the index and each manifest that it names (the platforms' images, and BuildKit's
attestations of them), so that no part can be exchanged or used alone without a signature. On each
platform's image there are signed attestations: its provenance, and its SBOM in both formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from fp4forge.core.errors import RegistryError
from fp4forge.kernels.base import Progress
from fp4forge.oci import copying, cosign, registry
from fp4forge.oci.cosign import Signer, Trust
from fp4forge.oci.reference import parse
from fp4forge.publish import provenance
from fp4forge.sbom import kept

# Of each platform's image that this project publishes.
KINDS = (provenance.KIND, *kept.PREDICATES.values())


@dataclass(frozen=True)
class Signed:
    """What was found signed: manifests, and attestations by their predicate's type."""

    image: str  # REPOSITORY@DIGEST
    manifests: int
    attestations: tuple[str, ...] = ()

    def text(self) -> str:
        """One line of what was found."""
        more = f", attestations {', '.join(self.attestations)}" if self.attestations else ""
        return f"{self.manifests} manifests{more}"


def locate(image: str) -> tuple[str, str]:
    """Repository and digest of an image in a registry, whose tag is looked up once.

    Raises:
        UsageError: not an image's reference.
        RegistryError: the registry does not answer, or does not have it.
    """
    reference = parse(image)
    if reference.digest:
        registry.existing(reference.repository, reference.digest)
        return reference.repository, reference.digest
    found = registry.resolve(reference.repository, reference.tag or "latest")
    if found is None:
        raise RegistryError(
            f"{image} does not exist",
            rule="signatures are beside an image in its registry: HOST/REPOSITORY:TAG or @DIGEST",
        )
    return reference.repository, found[0]


def sign(
    repository: str,
    digest: str,
    by: Signer,
    report: Progress,
    predicates: dict[str, dict[str, bytes]] | None = None,
) -> None:
    """Signs an image, and attestations of its platforms' images.

    Args:
        repository: where.
        digest: of the image's index.
        by: who signs.
        report: called with progress.
        predicates: more to attest, by the digest of a platform's image and the predicate's type.
            BuildKit's provenance, and the SBOM that lies beside the image, are always attested.

    Raises:
        SignatureError: something cannot be signed, or its signature is not found afterwards.
        RegistryError: the registry does not answer.
    """
    if not by.key and registry.manifest(repository, cosign.signature_tag(digest)):
        return  # a new keyless signature each time would be another entry of the log
    index = registry.existing(repository, digest).data
    for image, kinds in _predicates(repository, digest, predicates or {}).items():
        for kind, predicate in kinds.items():
            report(f"{kind.rpartition('//')[2]} of {image[:19]}")
            cosign.attest(repository, image, kind, predicate, by)
    # The index last: who finds its signature finds all the others.
    report(f"signing {digest[:19]} and what it names")
    cosign.sign(repository, [*(entry.digest for entry in index.manifests or ()), digest], by)


def _predicates(
    repository: str, digest: str, predicates: dict[str, dict[str, bytes]]
) -> dict[str, dict[str, bytes]]:
    index = registry.existing(repository, digest).data
    found = copying.provenance(f"{repository}@{digest}")
    complete = {}
    for entry in index.images:
        documents = kept.documents_of(repository, entry.digest)
        own = {kept.PREDICATES[kind]: content for kind, content in documents.items()}
        own |= predicates.get(entry.digest, {})
        platform = entry.platform
        name = f"{platform.os}/{platform.architecture}" if platform else ""
        made = found.get(name) or (found.get("") if len(index.images) == 1 else None)
        if made:
            own[provenance.KIND] = provenance.convert(made)
        complete[entry.digest] = own
    return complete


def check(
    repository: str, digest: str, trust: Trust, report: Progress, kinds: tuple[str, ...] = ()
) -> Signed:
    """Demands that an image, all of it, is signed.

    Args:
        repository: where.
        digest: of the image's index, or of one manifest.
        trust: whose signature counts.
        report: called with progress.
        kinds: predicate types of which each platform's image must have a signed attestation.

    Raises:
        SignatureError: a signature is missing, is of another key, has expired, or is of another
            image.
        RegistryError: the registry does not answer, or does not have the image.
    """
    document = registry.existing(repository, digest).data
    report("signatures")
    manifests = [digest, *(entry.digest for entry in document.manifests or ())]
    cosign.check(repository, manifests, trust)
    images = [entry.digest for entry in document.images] or [digest]
    for image in images:
        for kind in kinds:
            report(f"attestation {kind}")
            cosign.attestations(repository, image, kind, trust)
    return Signed(f"{repository}@{digest}", len(manifests), kinds)
