"""The audit: which advisories an image's components are in, and whether a verdict explains each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime

from fp4forge.advisories import installed as parts
from fp4forge.advisories import osv, vex
from fp4forge.advisories.database import AdvisoryDatabase
from fp4forge.advisories.installed import AuditedPackages
from fp4forge.advisories.osv import Advisory, AffectedPackage, OsvPackage
from fp4forge.advisories.vex import VexVerdict
from fp4forge.core.errors import UsageError, VulnerableError
from fp4forge.core.text import shown
from fp4forge.inputs import release
from fp4forge.kernels.base import Progress

# Severities that need an explanation; what nobody has rated may be any of them.
GRAVE = ("critical", "high", osv.UNKNOWN)
_ORDER = ("critical", "high", osv.UNKNOWN, "medium", "low", "none")


@dataclass(frozen=True)
class Vulnerability:
    """One vulnerability in an image, or in a release's images."""

    id: str
    aliases: list[str]
    summary: str
    packages: list[str]  # "name version"
    severity: str  # one of osv.LEVELS, or unknown
    score: float | None  # CVSS base score
    fixed: list[str]  # versions
    status: str  # of the verdict; empty for none
    justification: str
    reason: str
    action: str
    expires: str  # ISO 8601; empty for none
    expired: bool
    explained: bool  # by a verdict that counts
    releases: list[str]  # of this project, newer and not affected
    only_with: list[str]  # extras (--with) that bring every package of it; empty if others do

    @property
    def names(self) -> frozenset[str]:
        """All its identifiers."""
        return frozenset((self.id, *self.aliases))

    @property
    def grave(self) -> bool:
        """Whether it stops a publish: grave, and nothing explains it."""
        return self.severity in GRAVE and not self.explained


@dataclass(frozen=True)
class AuditReport:
    """What an audit found; the gravest first."""

    release: str
    database: str
    components: int
    findings: tuple[Vulnerability, ...]
    left_out: tuple[str, ...] = ()  # what could not be audited, and why


def run(
    contents: AuditedPackages,
    database: AdvisoryDatabase,
    report: Progress,
    today: date | None = None,
) -> AuditReport:
    """Looks up every component and applies the release's verdicts.

    Args:
        contents: of an image or a release.
        database: where the records come from.
        report: called with progress.
        today: for the verdicts' expiry; by default UTC's.

    Raises:
        AdvisoryError: records or verdicts cannot be read.
    """
    today = today or datetime.now(UTC).date()
    verdicts = vex.load(contents.release) if contents.release else ()
    hits: list[tuple[OsvPackage, Advisory, AffectedPackage]] = []
    for component, records in database.about(contents.components, report).items():
        for record in records:
            part = osv.affects(record, component)
            if part is not None:
                hits.append((component, record, part))
    newer = _newer_releases(contents.release)
    groups = _by_vulnerability(hits)
    found = [_vulnerability(g, verdicts, newer, contents.optional, today) for g in groups]
    found.sort(key=lambda f: (_ORDER.index(f.severity), f.explained, f.id))
    count = len(contents.components)
    return AuditReport(contents.release, database.name, count, tuple(found), contents.left_out)


def demand(report: AuditReport, allowed: tuple[str, ...] = (), complete: bool = True) -> None:
    """Refuses what is grave and unexplained.

    Args:
        report: of the image to be published.
        allowed: identifiers of vulnerabilities that a person accepts.
        complete: whether everything in the image was audited; otherwise an allowed identifier
            that nothing matches may belong to the rest.

    Raises:
        VulnerableError: something is left.
        UsageError: an allowed identifier belongs to nothing that was found.
    """
    known = {name for finding in report.findings for name in finding.names}
    unknown = [name for name in allowed if name not in known]
    if unknown and complete:
        raise UsageError(
            f"--allow-vulnerable {', '.join(unknown)}: this image has no such vulnerability",
            rule="an exception names a vulnerability that the audit finds",
            remedy="leave it out; build.py audit lists what is found",
        )
    left = [f for f in report.findings if f.grave and not f.names & {*allowed}]
    if left:
        raise VulnerableError(
            f"{len(left)} unexplained of {report.database}:\n"
            + "\n".join(f"  {line(finding)}" for finding in left),
            rule="critical and high ones, and those of unknown severity, need a verdict that says"
            " not_affected or fixed and has not expired (releases/vex)",
            remedy=_audit_remedy(left),
        )


def _audit_remedy(left: list[Vulnerability]) -> str:
    better = set.intersection(*({*finding.releases} for finding in left))
    newest = max(better, key=release.names().index) if better else ""
    start = f"--release {newest} is in none of them; " if newest else ""
    return start + "write a verdict, or accept it with --allow-vulnerable ID"


def line(finding: Vulnerability) -> str:
    """One finding for people."""
    score = f" {finding.score:g}" if finding.score is not None else ""
    verdict = finding.status.replace("_", " ") or "no verdict"
    verdict += f", expired {finding.expires}" if finding.expired else ""
    fixed = f", fixed in {finding.fixed[0]}" if finding.fixed else ""
    where = ", ".join(finding.packages)
    where += "".join(f" (only --with {extra})" for extra in finding.only_with)
    return f"{finding.id} ({finding.severity}{score}): {where}{fixed}; {verdict}"


def check_allowed(names: tuple[str, ...]) -> None:
    """Refuses ``--allow-vulnerable`` with what is not an identifier.

    Raises:
        UsageError: one has another form.
    """
    for name in names:
        if not osv.IDENTIFIER.fullmatch(name):
            raise UsageError(
                f"--allow-vulnerable {shown(name, 80)!r} is not an identifier",
                rule="DATABASE-ENTRY, such as CVE-2026-47155 or GHSA-3ww4-5jv9-j5gm",
            )


def _by_vulnerability(
    hits: list[tuple[OsvPackage, Advisory, AffectedPackage]],
) -> list[list[tuple[OsvPackage, Advisory, AffectedPackage]]]:
    """Hits of one vulnerability together: databases have records of each other's."""
    groups: list[tuple[set[str], list[tuple[OsvPackage, Advisory, AffectedPackage]]]] = []
    for hit in hits:
        names, members = set(hit[1].names), [hit]
        for other in [group for group in groups if group[0] & names]:
            groups.remove(other)
            names |= other[0]
            members = other[1] + members
        groups.append((names, members))
    return [members for _, members in groups]


def _vulnerability(
    group: list[tuple[OsvPackage, Advisory, AffectedPackage]],
    verdicts: tuple[VexVerdict, ...],
    newer: dict[str, tuple[OsvPackage, ...]],
    optional: Mapping[OsvPackage, str],
    today: date,
) -> Vulnerability:
    records = list({record.id: record for _, record, _ in group}.values())
    names = frozenset().union(*(record.names for record in records))
    affected = sorted({component for component, _, _ in group})
    level, score = osv.severity(records, [part for _, _, part in group])
    own = [[v for v in verdicts if v.about(names, one)] for one in affected]
    # The vulnerability is explained if it is in each of the packages that have it.
    explained = all(any(v.explains(today) for v in found) for found in own)
    chosen = next((v for found in own for v in found if not v.explains(today)), None)
    chosen = chosen or next((v for found in own for v in found), None)
    extras = {optional.get(one, "") for one in affected}
    fixed = [version for one, _, part in group for version in osv.fixes(part, one)]
    first = chosen.name if chosen else min(names, key=lambda n: (not n.startswith("CVE-"), n))
    return Vulnerability(
        id=first,
        aliases=sorted(names - {first}),
        summary=next((record.summary for record in records if record.summary), ""),
        packages=[str(one) for one in affected],
        severity=level,
        score=score,
        fixed=list(dict.fromkeys(fixed)),
        status=chosen.status if chosen else "",
        justification=chosen.justification if chosen else "",
        reason=chosen.reason if chosen else "",
        action=chosen.action if chosen else "",
        expires=chosen.expires.isoformat() if chosen else "",
        expired=bool(chosen and chosen.expired(today)),
        explained=explained,
        releases=[
            name
            for name, contents in newer.items()
            if all(one.ecosystem != osv.GIT for one in affected)  # in no lock
            and not any(osv.affects(record, one) for record in records for one in contents)
        ],
        only_with=[] if "" in extras else sorted(extras),
    )


def _newer_releases(name: str) -> dict[str, tuple[OsvPackage, ...]]:
    """The releases after one, with their packages."""
    names = release.names()
    if name not in names:
        return {}
    later = names[names.index(name) + 1 :]
    return {one: parts.of_release(one).components for one in later}
