"""What lies beside an image in a registry, and goes with it: signatures, attestations, artifacts.

Artifacts are whatever names the image as its subject: SBOMs, records of publishes, verdicts on
advisories. Their own signatures go with them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import ArtefactError, ForgeError, SignatureError
from fp4forge.core.limits import INDEX_ENTRIES, MANIFEST_BYTES
from fp4forge.kernels.base import Progress
from fp4forge.oci import cosign, referrers, registry
from fp4forge.oci.cosign import Trust
from fp4forge.oci.layout import Digest, ManifestOrIndex, OciLayout
from fp4forge.publish import records
from fp4forge.publish.signing import KINDS, Signed, demand_fetches

FILE = "beside.json"


class Beside(Struct, frozen=True):
    """Digests of manifests, by the digest of what each is beside; blobs lie in the layout."""

    signatures: dict[Digest, Digest] = {}
    attestations: dict[Digest, Digest] = {}
    artifacts: dict[Digest, list[Digest]] = {}

    @property
    def manifests(self) -> set[str]:
        """Every manifest that is named."""
        artifacts = {digest for digests in self.artifacts.values() for digest in digests}
        return {*self.signatures.values(), *self.attestations.values(), *artifacts}

    def text(self) -> str:
        """What there is, in words."""
        artifacts = sum(map(len, self.artifacts.values()))
        return (
            f"{len(self.signatures)} signed manifests, {len(self.attestations)} with attestations,"
            f" {artifacts} artifacts"
        )


def save(repository: str, digest: str, layout: OciLayout, report: Progress) -> Beside:
    """Copies what lies beside an image into a layout that has the image.

    Records of publishes stay: they say what happened in this one registry.

    Raises:
        RegistryError: the registry does not answer, or has other bytes than its digests say.
    """
    parts = _index_parts(layout, digest)
    artifacts: dict[str, list[str]] = {}
    for part in parts:
        report(f"what is beside {part[:19]}")
        found = [
            own
            for own, kind in referrers.beside(repository, part).items()
            if kind != records.KIND and _save_manifest(repository, own, layout)
        ]
        artifacts |= {part: found} if found else {}
    signed = [*parts, *(own for found in artifacts.values() for own in found)]
    tags: dict[str, dict[str, str]] = {"sig": {}, "att": {}}
    for part in signed:
        for kind, name in (
            ("sig", cosign.signature_tag(part)),
            ("att", cosign.attestation_tag(part)),
        ):
            there = registry.manifest(repository, name)
            if there is not None and _save_manifest(repository, there.digest, layout):
                tags[kind][part] = there.digest
    return Beside(tags["sig"], tags["att"], artifacts)


def publish(repository: str, beside: Beside, layout: OciLayout, report: Progress) -> None:
    """Puts what ``save`` copied beside the same image in another registry.

    Raises:
        RegistryError: the registry does not answer, or does not take it.
    """
    for own in sorted(beside.manifests):
        report(f"beside the image: {own[:19]}")
        for blob in layout.document(own).blobs:
            referrers.store(repository, _manifest_bytes(layout, blob.digest))
    for found in beside.artifacts.values():
        for own in found:
            referrers.put(repository, _manifest_bytes(layout, own))
    for digests, tag in (
        (beside.signatures, cosign.signature_tag),
        (beside.attestations, cosign.attestation_tag),
    ):
        for subject, own in digests.items():
            media = layout.document(own).mediaType or "application/vnd.oci.image.manifest.v1+json"
            registry.put(repository, tag(subject), _manifest_bytes(layout, own), media)


def check(
    layout: OciLayout, digest: str, beside: Beside, trust: Trust, report: Progress, image: str
) -> Signed:
    """Demands that an image in a layout is signed, as ``signing.check`` does of one in a registry.

    Raises:
        SignatureError: as there.
        ArtefactError: the layout lacks something.
    """
    parts = _index_parts(layout, digest)
    images = layout.document(digest).image_digests or {digest}
    for part in parts:
        report(f"the signature of {part[:19]}")
        with tempfile.TemporaryDirectory(prefix="fp4forge-view-") as name:
            folder = Path(name)
            own = beside.signatures.get(part, "")
            if not own:
                raise SignatureError(
                    f"{image}: {part} has no signature",
                    rule=f"signed by {trust}",
                    remedy="do not use it; bundle it again from where it was published",
                )
            cosign.view(layout, part, own, beside.attestations.get(part, ""), folder)
            try:
                cosign.check_local(folder, trust)
                found = {
                    kind: cosign.attestations_local(folder, kind, trust)[-1]
                    for kind in (KINDS if part in images else ())
                }
                demand_fetches(found, f"{image}: {part}")
            except ForgeError as error:
                error.message = error.message.replace(str(folder), f"{image}: {part}")
                raise
    return Signed(f"{image}@{digest}", len(parts), KINDS)


def read(root: Path) -> Beside:
    """What a bundle has beside its image; nothing if it was made without.

    Raises:
        ArtefactError: the file does not say what there is.
    """
    file = root / FILE
    if not reading.is_file(file):
        return Beside()
    return reading.json_file(file, Beside, ArtefactError, MANIFEST_BYTES)


def own(layout: OciLayout, digest: str, beside: Beside) -> Beside:
    """What is beside this image; records of publishes (``save``) of an older bundle are left out.

    Raises:
        ArtefactError: something is beside another image, whose signature it would replace.
    """
    parts = set(_index_parts(layout, digest))
    named = {each for found in beside.artifacts.values() for each in found}
    wrong = {*beside.artifacts} - parts
    wrong |= {*beside.signatures, *beside.attestations} - parts - named
    kept: dict[str, list[str]] = {}
    for subject, found in beside.artifacts.items():
        for each in found:
            artifact = referrers.artifact(_manifest_bytes(layout, each), ArtefactError)
            if artifact.subject.digest != subject:
                wrong.add(each)
            if artifact.kind != records.KIND:
                kept.setdefault(subject, []).append(each)
    if wrong:
        raise ArtefactError(
            f"{FILE} names {min(wrong)}, which does not belong to the image {digest[:19]}",
            rule="signatures, attestations and documents of the bundle's own image",
            remedy="do not use it",
        )
    return Beside(beside.signatures, beside.attestations, kept)


def write(root: Path, beside: Beside) -> None:
    """Writes what ``read`` reads."""
    (root / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(beside), indent=1) + b"\n")


def _index_parts(layout: OciLayout, digest: str) -> list[str]:
    """The index, and what it names."""
    return [digest, *(entry.digest for entry in layout.document(digest).manifests or ())]


def _save_manifest(repository: str, digest: str, layout: OciLayout) -> bool:
    """Copies a manifest and its small blobs; whether it is one."""
    found = registry.manifest(repository, digest)
    if found is None:
        return False
    document: ManifestOrIndex = found.data
    if len(document.blobs) > INDEX_ENTRIES:
        return False
    layout.path(digest).write_bytes(found.content)
    for blob in document.blobs:
        layout.path(blob.digest).write_bytes(registry.blob(repository, blob.digest, "a record"))
    return True


def _manifest_bytes(layout: OciLayout, digest: str) -> bytes:
    return reading.content(layout.path(digest), ArtefactError, MANIFEST_BYTES)
