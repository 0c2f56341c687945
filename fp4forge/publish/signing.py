"""What is signed of an image, and what is demanded of one.

Signed are the index and each manifest that it names (the platforms' images, and BuildKit's
attestations of them), so that no part can be exchanged or used alone without a signature. On each
platform's image there are signed attestations: its provenance, and its SBOM in both formats.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from fp4forge.core.errors import RegistryError, SignatureError
from fp4forge.kernels.base import Progress
from fp4forge.oci import copying, cosign, registry
from fp4forge.oci.cosign import Signer, Trust
from fp4forge.oci.reference import parse
from fp4forge.publish import fetched, provenance
from fp4forge.publish.fetched import ResolvedDependency
from fp4forge.sbom import documents, kept

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
    predicates: dict[str, dict[str, bytes]],
) -> None:
    """Signs attestations of the platforms' images, then the image.

    What is attested is passed in: whoever can write to the registry could have put another SBOM
    beside the image.

    Args:
        repository: where.
        digest: of the image's index.
        by: who signs.
        report: called with progress.
        predicates: in-toto predicates, by the digest of a platform's image and their type.

    Raises:
        SignatureError: something cannot be signed.
        RegistryError: the registry does not answer.
    """
    index = registry.existing(repository, digest).data
    for image, kinds in predicates.items():
        for kind, predicate in kinds.items():
            report(f"{kind.rpartition('//')[2]} of {image[:19]}")
            cosign.attest(repository, image, kind, predicate, by)
    # The index last: who finds its signature finds all the others.
    report(f"signing {digest[:19]} and what it names")
    cosign.sign(repository, [*(entry.digest for entry in index.manifests or ()), digest], by)


def signed_by(repository: str, digest: str, by: Signer, report: Progress) -> bool:
    """Whether an image is signed whole by a signer already; nothing is to be signed twice.

    A keyless signature is not checked here, for whose identity it is shows only when it is made.
    """
    if not by.key:
        return registry.manifest(repository, cosign.signature_tag(digest)) is not None
    with tempfile.TemporaryDirectory(prefix="fp4forge-key-") as folder:
        public = Path(folder, "cosign.pub")
        public.write_text(cosign.public_key(by))
        try:
            check(repository, digest, Trust(str(public)), report, KINDS)
        except SignatureError:
            return False
    return True


def provenances(
    repository: str, digest: str, listed: list[ResolvedDependency]
) -> dict[str, dict[str, bytes]]:
    """The provenance that BuildKit attached to each platform's image, as predicates for ``sign``.

    Args:
        repository: where.
        digest: of the index.
        listed: what the build's steps fetched.

    Raises:
        RegistryError: the registry does not answer, or there is none of an image.
    """
    images = registry.existing(repository, digest).data.by_platform
    found = copying.provenance(f"{repository}@{digest}")
    complete = {}
    for name, image in images.items():
        made = found.get(name) or (found.get("") if len(images) == 1 else None)
        if made is None:
            raise RegistryError(
                f"{repository}@{digest} has no provenance for {name}",
                rule="BuildKit attaches it (--provenance=mode=max)",
                remedy="build it again",
            )
        complete[image] = {provenance.KIND: provenance.convert(made, listed)}
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
            image, or the provenance does not list a wheel of the SBOM.
        RegistryError: the registry does not answer, or does not have the image.
    """
    document = registry.existing(repository, digest).data
    report("signatures")
    manifests = [digest, *(entry.digest for entry in document.manifests or ())]
    cosign.check(repository, manifests, trust)
    images = [entry.digest for entry in document.images] or [digest]
    for image in images:
        found = {}
        for kind in kinds:
            report(f"attestation {kind}")
            found[kind] = cosign.attestations(repository, image, kind, trust)[-1]
        demand_fetches(found, f"{repository}@{image}")
    return Signed(f"{repository}@{digest}", len(manifests), kinds)


def demand_fetches(predicates: dict[str, bytes], where: str) -> None:
    """Holds an image's signed provenance to its signed SBOM, if both are given.

    Args:
        predicates: by their types.
        where: the image, for messages.

    Raises:
        SignatureError: the provenance does not list a wheel of the SBOM, or cannot be read.
        RegistryError: the SBOM cannot be read.
    """
    made, sbom = predicates.get(provenance.KIND), predicates.get(kept.PREDICATES[kept.CYCLONEDX])
    if made is not None and sbom is not None:
        fetched.demand(made, documents.read(sbom, f"the SBOM of {where}"), where)
