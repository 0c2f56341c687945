"""An image's components: from its inventory, the plan's locks, its patches and vendored sources."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import VerifyError
from fp4forge.inputs.sbom import SbomRules

if TYPE_CHECKING:
    from fp4forge.plan.plan import Plan

# Ecosystems as OSV names them (ossf.github.io/osv-schema); a vendored source is of a repository.
PYPI, GIT = "PyPI", "GIT"
_OSV = {"debian": "Debian", "ubuntu": "Ubuntu"}
_SHORT = 200  # characters of what metadata calls a licence; more is the licence's text


class Deb(Struct, frozen=True):
    """A distribution package of an inventory."""

    name: str
    version: str
    architecture: str
    source: str
    source_version: str
    licences: list[str]
    files: int


class InstalledWheel(Struct, frozen=True):
    """An installed wheel of an inventory."""

    name: str
    version: str
    licence: str
    stated: str
    classifiers: list[str]
    folder: str
    record_sha256: str
    files: int


class Inventory(Struct, frozen=True):
    """What ``inventory.run`` returns."""

    os: dict[str, str]
    debs: list[Deb]
    wheels: list[InstalledWheel]
    files: int
    rules: dict[str, int]
    unowned: list[str]
    empty: list[str]
    vendored: dict[int, str]


class SbomComponent(Struct, frozen=True, kw_only=True):
    """One entry of an SBOM.

    ``source`` and ``source_version`` are a distribution's source package, by which its advisories
    go. ``sha256`` has the wheels that the lock allows: one of them was installed.
    """

    name: str
    version: str
    purl: str
    ecosystem: str
    licence: str = ""  # an SPDX expression, or what the package itself says
    source: str = ""
    source_version: str = ""
    sha256: tuple[str, ...] = ()
    record_sha256: str = ""  # of the installed RECORD, which has the hash of each file
    inside: str = ""  # purl of the component that this one is a part of
    patches: tuple[str, ...] = ()  # ids of those applied to it


class SbomSubject(Struct, frozen=True, kw_only=True):
    """The image that an SBOM is of."""

    digest: str  # of the platform's manifest
    platform: str
    title: str
    version: str
    plan: str
    epoch: int


def inventory_of(answer: bytes, where: str) -> Inventory:
    """What the program printed, as typed values.

    Raises:
        VerifyError: it has another form: the image's files broke it.
    """
    return reading.json(answer, Inventory, f"the inventory of {where}", VerifyError)


def assemble(found: Inventory, plan: Plan, table: SbomRules) -> list[SbomComponent]:
    """Every component, in the order of their purls; two copies of one package are one component."""
    series = plan.inputs.series
    tiers = ("python", "csrc") if plan.strategy == "source" else ("python",)
    applied = sorted(p.id for tier in tiers for p in series.for_variant(plan.variant, tier))
    allowed = wheel_hashes(plan)
    every = {component.purl: component for component in _deb_components(found, table)}
    for wheel in found.wheels:
        name = canonical(wheel.name)
        made = SbomComponent(
            name=name,
            version=wheel.version,
            purl=_purl("pypi", "", name, wheel.version),
            ecosystem=PYPI,
            licence=spelt(_licence(wheel), table),
            sha256=allowed.get((name, wheel.version), ()),
            record_sha256=wheel.record_sha256,
            patches=tuple(applied) if name == series.package else (),
        )
        every.setdefault(made.purl, made)
    for component in _vendored(found, plan, table, {c.name: c.purl for c in every.values()}):
        every.setdefault(component.purl, component)
    return [every[purl] for purl in sorted(every)]


def wheel_hashes(plan: Plan) -> dict[tuple[str, str], tuple[str, ...]]:
    """SHA-256 of the wheels that the plan's locks allow, by package and version."""
    from fp4forge.inputs import locks
    from fp4forge.plan import packages

    found = {}
    for name, text in packages.layers(plan).items():
        if name.startswith(("host/", "source-")) or name in ("build", "tools", "sdist"):
            continue
        for block in locks.entries(text).values():
            package, version = locks.pin(block)
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", block)
            found[canonical(package), version] = tuple(sorted(hashes))
    return found


def canonical(name: str) -> str:
    """A Python package's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def spelt(text: str, table: SbomRules) -> str:
    """The SPDX expression that a licence's name in metadata means; the name, if that is unknown."""
    parts = text.split(" AND ")
    return " AND ".join(dict.fromkeys(table.spellings.get(part, part) for part in parts))


def _licence(wheel: InstalledWheel) -> str:
    """What a wheel says of its licence, the most precise first (core metadata 2.4)."""
    if wheel.licence:
        return wheel.licence
    stated = " ".join(wheel.stated.split())
    classified = [text.rpartition(" :: ")[2] for text in wheel.classifiers]
    if stated and len(stated) <= _SHORT and "\n" not in wheel.stated:
        return stated
    return " AND ".join(sorted(classified)) or " ".join(stated.split()[:6])


def _deb_components(found: Inventory, table: SbomRules) -> Iterator[SbomComponent]:
    system, number = found.os.get("ID", "linux"), found.os.get("VERSION_ID", "")
    long_term = ":LTS" if "LTS" in found.os.get("VERSION", "") else ""
    for deb in found.debs:
        qualifiers = {"arch": deb.architecture} | (
            {"distro": f"{system}-{number}"} if number else {}
        )
        yield SbomComponent(
            name=deb.name,
            version=deb.version,
            purl=_purl("deb", system, deb.name, deb.version, qualifiers),
            ecosystem=f"{_OSV.get(system, system)}:{number}{long_term}",
            licence=" AND ".join(sorted({spelt(text, table) for text in deb.licences})),
            source=deb.source,
            source_version=deb.source_version,
        )


def _vendored(
    found: Inventory, plan: Plan, table: SbomRules, purls: dict[str, str]
) -> Iterator[SbomComponent]:
    externals = plan.inputs.release.externals
    for number, read in sorted(found.vendored.items()):
        source = table.vendored[number]
        parent = purls.get(source.of)
        pinned = externals.get(source.external)
        if parent is None or (plan.strategy == "source" and _not_compiled(source.external, plan)):
            continue
        version = read or (pinned.commit if pinned else "")
        # Where a release takes it from, which may be a fork of the project's own repository.
        repository = _repository_of(pinned.git) if pinned else source.repository
        host, _, path = repository.partition("/")
        kind, owner = (
            ("github", path.partition("/")[0]) if host == "github.com" else ("generic", "")
        )
        name = path.partition("/")[2] if owner else source.name
        yield SbomComponent(
            name=source.name,
            version=version,
            purl=_purl(kind, owner, name, version, {"in": source.of}),
            ecosystem=GIT,
            licence=source.licence,
            source=f"https://{repository}",
            inside=parent,
        )


def _purl(
    kind: str, namespace: str, name: str, version: str, qualifiers: dict[str, str] | None = None
) -> str:
    from packageurl import PackageURL

    return str(PackageURL(kind, namespace or None, name, version or None, qualifiers).to_string())


def _repository_of(git: str) -> str:
    return git.removeprefix("https://").removesuffix(".git")


def _not_compiled(external: str, plan: Plan) -> bool:
    """Whether a source build left an external source out."""
    return bool(external) and external not in plan.sources


def as_json(component: SbomComponent) -> dict[str, Any]:
    """The component as JSON."""
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(component)
    return found
