"""The SBOM of a plan's image: read from the verified image, checked, and kept beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fp4forge.core.console import Console
from fp4forge.inputs.sbom import table
from fp4forge.kernels.base import Progress
from fp4forge.oci import engine, registry
from fp4forge.oci.cosign import Signer
from fp4forge.plan.plan import Plan
from fp4forge.publish import fetched, signing
from fp4forge.sbom import contents, documents, kept
from fp4forge.sbom.components import SbomComponent, SbomSubject, assemble


@dataclass(frozen=True)
class ImageWithSbom:
    """A verified image with its SBOM beside it, not signed yet; no tag names it."""

    documents: dict[str, bytes]  # by media type
    unsigned: bool  # a signer is given, whose signatures it lacks

    @property
    def components(self) -> list[SbomComponent]:
        """What the SBOM lists.

        Raises:
            RegistryError: it is not one of this project's.
        """
        return documents.read(self.documents[kept.CYCLONEDX], "the SBOM of the image")


def put(
    console: Console, repository: str, digest: str, plan: Plan, signer: Signer | None
) -> ImageWithSbom:
    """Gives an image that passed its checks its SBOM.

    Args:
        console: shows the step.
        repository: where the image is.
        digest: of the index of this one platform.
        plan: of the image.
        signer: who is to sign; what has no signature of them gets a new SBOM.

    Raises:
        VerifyError: the SBOM is not complete.
        RegistryError: the registry does not answer, or does not take it.
    """
    with console.step("sbom") as step:
        unsigned = signer and not signing.signed_by(repository, digest, signer, step.report)
        made = attached(
            engine.connect(), repository, digest, plan, step.report, anew=bool(unsigned)
        )
        step.detail = ", ".join(f"{len(text) / 1e3:.0f} kB {kind}" for kind, text in made.items())
    return ImageWithSbom(made, bool(unsigned))


def sign(
    console: Console,
    repository: str,
    digest: str,
    plan: Plan,
    listed: ImageWithSbom,
    signer: Signer | None,
) -> None:
    """Signs an image that passed its audit, its provenance and its SBOM; no tag has moved yet.

    Args:
        console: shows the step.
        repository: where the image is.
        digest: of the index of this one platform.
        plan: of the image.
        listed: its SBOM.
        signer: who signs; None leaves it unsigned.

    Raises:
        SignatureError: something cannot be signed.
        RegistryError: the registry does not answer.
    """
    if not signer:
        return
    with console.step("sign") as step:
        step.detail = "signed before"
        if listed.unsigned:
            predicates = signing.provenances(
                repository, digest, fetched.of(plan, listed.components)
            )
            for image in predicates:
                predicates[image] |= {
                    kept.PREDICATES[kind]: text for kind, text in listed.documents.items()
                }
            signing.sign(repository, digest, signer, step.report, predicates)
            step.detail = "index, images, attestations"


def attached(
    client: Any, repository: str, index: str, plan: Plan, report: Progress, *, anew: bool
) -> dict[str, bytes]:
    """Makes sure that a platform's image has its SBOM in the registry.

    Args:
        client: docker SDK client.
        repository: where the image is.
        index: digest of the index of this one platform.
        plan: of the image.
        report: called with progress.
        anew: make it from the image's files even if one lies there.

    Returns:
        The documents by media type.

    Raises:
        VerifyError: the SBOM is not complete.
        RegistryError: the registry does not answer, or does not take it.
    """
    (image,) = registry.images_of(repository, index)
    found = kept.documents_of(repository, image)
    if found.keys() == kept.PREDICATES.keys() and not anew:
        return found
    made = make(client, f"{repository}@{index}", image, plan, report)
    report("attaching")
    kept.attach(repository, image, made, plan.epoch)
    return made


def make(
    client: Any, reference: str, digest: str, plan: Plan, report: Progress
) -> dict[str, bytes]:
    """The SBOM's documents by media type, checked against the image's files.

    Args:
        client: docker SDK client.
        reference: of an image; it is pulled if the engine does not have it.
        digest: of the platform's manifest, for the documents.
        plan: of the image.
        report: called with progress.

    Raises:
        VerifyError: a file belongs to no entry, or an entry has no file.
    """
    components = components_of(client, reference, plan, report)
    tiers = ("python", "csrc") if plan.strategy == "source" else ("python",)
    series = plan.inputs.series
    patches = tuple(p for tier in tiers for p in series.for_variant(plan.variant, tier))
    subject = SbomSubject(
        digest=digest,
        platform=plan.platform,
        title=plan.inputs.release.title,
        version=plan.inputs.release.product_version,
        plan=plan.id,
        epoch=plan.epoch,
    )
    report("CycloneDX")
    cyclonedx = documents.cyclonedx(subject, components, patches)
    report("SPDX")
    return {kept.CYCLONEDX: cyclonedx, kept.SPDX: documents.spdx(subject, components, patches)}


def components_of(client: Any, reference: str, plan: Plan, report: Progress) -> list[SbomComponent]:
    """What is in an image, checked against its files.

    Raises:
        VerifyError: a file belongs to no entry, or an entry has no file.
    """
    engine.have(client, reference, plan.platform, report)
    found = contents.read(client, reference, plan.platform, plan.python, table(), report)
    report(f"{found.files:,} files")
    components = assemble(found, plan, table())
    contents.demand(components, found)
    return components
