"""CycloneDX 1.6 and SPDX 2.3 documents of components, through each format's own library.

Nothing in them depends on when or where they are made: times are the plan's epoch, and serial
numbers come from the image's digest. So one image has one SBOM, byte for byte.
"""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from fp4forge import __version__
from fp4forge.core import reading
from fp4forge.core.errors import RegistryError
from fp4forge.sbom.components import GIT, PYPI, SbomComponent, SbomSubject

if TYPE_CHECKING:
    from fp4forge.inputs.patches import Patch

# A namespace of this project's own for uuid5 (RFC 9562).
_NAMESPACE = uuid.UUID("6f0f6a3e-4b0e-5d5b-9d3c-0a4b6c1f7e21")
_PROPERTY = "fp4forge:"
_FIELDS = ("ecosystem", "source", "source_version", "record_sha256", "inside", "licence")


def cyclonedx(
    subject: SbomSubject, components: list[SbomComponent], patches: tuple[Patch, ...]
) -> bytes:
    """The CycloneDX document as JSON.

    Args:
        subject: the image.
        components: what is in it.
        patches: those that were applied, for the pedigree of the component that has them.
    """
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component as Entry
    from cyclonedx.model.component import ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    entries = []
    for component in components:
        properties = [
            Property(name=_PROPERTY + name, value=getattr(component, name))
            for name in _FIELDS
            if getattr(component, name)
        ]
        hashes = []
        if len(component.sha256) == 1:
            hashes = [HashType(alg=HashAlgorithm.SHA_256, content=component.sha256[0])]
        else:
            properties += [
                Property(name=_PROPERTY + "wheel_sha256", value=digest)
                for digest in component.sha256
            ]
        properties += [Property(name=_PROPERTY + "patch", value=name) for name in component.patches]
        entries.append(
            Entry(
                name=component.name,
                version=component.version or None,
                type=ComponentType.LIBRARY,
                bom_ref=component.purl,
                purl=PackageURL.from_string(component.purl),
                hashes=hashes,
                licenses=_licences(component.licence),
                properties=properties,
                pedigree=_pedigree(component, patches) if component.patches else None,
            )
        )
    image = Entry(
        name=subject.title,
        version=subject.version,
        type=ComponentType.CONTAINER,
        bom_ref=f"image@{subject.digest}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=subject.digest[7:])],
        properties=[
            Property(name=_PROPERTY + "platform", value=subject.platform),
            Property(name=_PROPERTY + "plan", value=subject.plan),
        ],
    )
    bom = Bom(components=entries, serial_number=_serial_number(subject))
    bom.metadata.component = image
    bom.metadata.timestamp = datetime.fromtimestamp(subject.epoch, UTC)
    bom.metadata.tools.components.add(
        Entry(name="fp4forge", version=__version__, type=ComponentType.APPLICATION, bom_ref="tool")
    )
    bom.register_dependency(image, [entry for entry in entries if not _is_inside(entry)])
    by_ref = {entry.bom_ref.value: entry for entry in entries}
    for component in components:
        if component.inside:
            bom.register_dependency(by_ref[component.inside], [by_ref[component.purl]])
    made = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    return made.encode()


def _is_inside(entry: Any) -> bool:
    return any(found.name == _PROPERTY + "inside" for found in entry.properties)


def _serial_number(subject: SbomSubject) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, subject.digest)


def _licences(text: str) -> list[Any]:
    """An SPDX expression as one, and anything else as a name."""
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression

    if not text:
        return []
    if expression(text):
        return [LicenseExpression(text)]
    return [DisjunctiveLicense(name=text)]


@cache
def _licensing() -> Any:
    """SPDX's list of licences; the library reads it for each call, a tenth of a second long."""
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


@cache
def expression(text: str) -> str:
    """A text that is an SPDX expression, references (LicenseRef-) included; else nothing."""
    from license_expression import ExpressionError

    licensing = _licensing()
    try:
        parsed = licensing.parse(text)
    except (ExpressionError, ValueError):
        return ""
    if parsed is None:
        return ""
    unknown = [key for key in licensing.unknown_license_keys(parsed) if not _REF.fullmatch(key)]
    return "" if unknown else str(parsed)


_REF = re.compile(r"LicenseRef-[A-Za-z0-9.-]+")


def _pedigree(component: SbomComponent, patches: tuple[Patch, ...]) -> Any:
    from cyclonedx.model import XsUri
    from cyclonedx.model.component import Diff, PatchClassification, Pedigree
    from cyclonedx.model.component import Patch as Entry
    from cyclonedx.model.issue import IssueClassification, IssueType

    made = []
    for patch in patches:
        if patch.id not in component.patches:
            continue
        issue = IssueType(
            type=IssueClassification.DEFECT, id=patch.id, name=patch.upstream, description=patch.why
        )
        kind = PatchClassification.BACKPORT if patch.fixed_in else PatchClassification.UNOFFICIAL
        diff = Diff(url=XsUri(f"patches/{component.name}/{component.version}/{patch.file}"))
        made.append(Entry(type=kind, diff=diff, resolves=[issue]))
    return Pedigree(patches=made)


def spdx(
    subject: SbomSubject, components: list[SbomComponent], patches: tuple[Patch, ...]
) -> bytes:
    """The SPDX document as JSON; the library has validated it.

    Args:
        subject: the image.
        components: what is in it.
        patches: those that were applied; each is a package of its own.

    Raises:
        VerifyError: the document breaks the specification.
    """
    from spdx_tools.spdx.model.package import ExternalPackageRefCategory
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
    from spdx_tools.spdx.writer.json.json_writer import write_document_to_stream

    from fp4forge.core.errors import VerifyError

    model = _spdx_model()
    references: dict[str, Any] = {}
    image = "SPDXRef-image"
    packages = [
        model.Package(
            image,
            subject.title,
            model.SpdxNoAssertion(),
            version=subject.version,
            files_analyzed=False,
            checksums=[model.Checksum(model.ChecksumAlgorithm.SHA256, subject.digest[7:])],
            primary_package_purpose=model.PackagePurpose.CONTAINER,
            comment=f"platform {subject.platform}, plan {subject.plan}",
        )
    ]
    ids = {c.purl: f"SPDXRef-{number}" for number, c in enumerate(components)}
    relations = [
        model.Relationship("SPDXRef-DOCUMENT", model.RelationshipType.DESCRIBES, image),
    ]
    for component in components:
        one = [model.Checksum(model.ChecksumAlgorithm.SHA256, d) for d in component.sha256]
        where = component.source if component.ecosystem == GIT else ""
        licence = _declared(component.licence, references)
        packages.append(
            model.Package(
                ids[component.purl],
                component.name,
                f"git+{where}" if where else model.SpdxNoAssertion(),
                version=component.version or None,
                files_analyzed=False,
                checksums=one if len(one) == 1 else [],
                license_declared=licence,
                source_info=_source_info(component),
                comment=_comment(component),
                external_references=[
                    model.ExternalPackageRef(
                        ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", component.purl
                    )
                ],
            )
        )
        parent = ids[component.inside] if component.inside else image
        relations.append(
            model.Relationship(parent, model.RelationshipType.CONTAINS, ids[component.purl])
        )
    for component in components:
        for patch in patches:
            if patch.id in component.patches:
                own = f"SPDXRef-patch-{patch.id}"
                packages.append(
                    model.Package(
                        own,
                        f"patch {patch.id}",
                        model.SpdxNoAssertion(),
                        files_analyzed=False,
                        summary=patch.title,
                        description=patch.why,
                        comment=f"{patch.file}; upstream: {patch.upstream}",
                    )
                )
                relations.append(
                    model.Relationship(own, model.RelationshipType.PATCH_FOR, ids[component.purl])
                )
    document = model.Document(
        model.CreationInfo(
            "SPDX-2.3",
            "SPDXRef-DOCUMENT",
            f"{subject.title} {subject.version} {subject.platform}",
            f"urn:uuid:{_serial_number(subject)}",
            [model.Actor(model.ActorType.TOOL, f"fp4forge-{__version__}")],
            datetime.fromtimestamp(subject.epoch, UTC).replace(tzinfo=None),
        ),
        packages,
        relationships=relations,
        extracted_licensing_info=[references[name] for name in sorted(references)],
    )
    wrong = validate_full_spdx_document(document)
    if wrong:
        raise VerifyError(
            f"the SPDX document has {len(wrong)} faults: {wrong[0].validation_message}",
            rule="SPDX 2.3",
        )
    return _document_bytes(write_document_to_stream, document)


def _spdx_model() -> Any:
    """spdx-tools' types; their module exports them without saying so to type checkers."""
    import importlib

    return importlib.import_module("spdx_tools.spdx.model")


def _document_bytes(write: Any, document: Any) -> bytes:
    import io

    text = io.StringIO()
    write(document, text, validate=False)
    return (json.dumps(json.loads(text.getvalue()), indent=1, sort_keys=True) + "\n").encode()


def _declared(text: str, references: dict[str, Any]) -> Any:
    """A licence for SPDX; one that SPDX does not know becomes a reference with its name as text."""
    if not text:
        return _spdx_model().SpdxNoAssertion()
    model = _spdx_model()
    licensing = _licensing()
    if not expression(text):
        name = "LicenseRef-" + (re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")[:100] or "unknown")
        references[name] = model.ExtractedLicensingInfo(name, text, model.SpdxNoAssertion())
        return licensing.parse(name)
    parsed = licensing.parse(expression(text))
    for key in licensing.license_keys(parsed):
        if _REF.fullmatch(key):
            references[key] = model.ExtractedLicensingInfo(key, key, model.SpdxNoAssertion())
    return parsed


def _source_info(component: SbomComponent) -> str | None:
    if component.ecosystem in (PYPI, GIT) or not component.source:
        return None
    return f"built from {component.source} {component.source_version}"


def _comment(component: SbomComponent) -> str | None:
    lines = [f"ecosystem {component.ecosystem}"]
    if component.record_sha256:
        lines.append(f"SHA-256 of the installed RECORD: {component.record_sha256}")
    if len(component.sha256) > 1:
        lines.append("one of the wheels with SHA-256 " + ", ".join(component.sha256))
    return "; ".join(lines)


class _Property(msgspec.Struct, frozen=True):
    name: str
    value: str = ""


class _Hash(msgspec.Struct, frozen=True):
    content: str


class _BomEntry(msgspec.Struct, frozen=True):
    name: str
    version: str = ""
    purl: str = ""
    hashes: list[_Hash] = []
    properties: list[_Property] = []


class _Bom(msgspec.Struct, frozen=True):
    components: list[_BomEntry] = []


def read(content: bytes, where: str) -> list[SbomComponent]:
    """The components of a CycloneDX document that ``cyclonedx`` made, in the order of their purls.

    Raises:
        RegistryError: it is not one.
    """
    found = []
    for entry in reading.json(content, _Bom, where, RegistryError).components:
        values: dict[str, list[str]] = {}
        for own in entry.properties:
            values.setdefault(own.name.removeprefix(_PROPERTY), []).append(own.value)
        found.append(
            SbomComponent(
                name=entry.name,
                version=entry.version,
                purl=entry.purl,
                sha256=tuple([h.content for h in entry.hashes] or values.get("wheel_sha256", ())),
                patches=tuple(values.get("patch", ())),
                **{name: values.get(name, [""])[0] for name in _FIELDS},
            )
        )
    return sorted(found, key=lambda component: component.purl)
