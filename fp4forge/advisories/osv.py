"""Records of the OSV format, and which versions they affect (OSV schema 1.6 and later).

The rules are those of https://ossf.github.io/osv-schema/: "evaluation" of ranges and versions,
severity by CVSS. PyPI's versions compare by PEP 440 (``packaging``), Debian's and Ubuntu's by
Debian policy 5.6.12 (``python-debian``). Sources that are compiled in have a repository and a
commit or tag. Which of two commits came first is known only to the repository, so a range that
names neither of its ends affects them: a verdict must say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import AdvisoryError
from fp4forge.core.text import shown

PYPI = "PyPI"
GIT = "GIT"  # sources of a repository; OSV's service has it, and its records name it in ranges
ECOSYSTEMS = (PYPI, "Debian", "Ubuntu")  # whose versions are compared here
UNKNOWN = "unknown"
LEVELS = ("none", "low", "medium", "high", "critical")
# Levels of OSV's database_specific (GitHub's words) and of Debian's security tracker ("urgency").
_WORDS = {
    "moderate": "medium",
    "unimportant": "none",
    "end-of-life": UNKNOWN,
    "not yet assigned": UNKNOWN,
}
# What an identifier looks like: a database's name in capitals, then parts of letters and digits.
IDENTIFIER = re.compile(r"[A-Z][A-Z0-9]{1,19}(-[A-Za-z0-9.]{1,60}){1,6}")
COMMIT = re.compile("[0-9a-f]{40}")
_FIRST = ("0", "0" * 40)  # an event before every commit


@dataclass(frozen=True, order=True)
class OsvPackage:
    """One package that an image has; ``ecosystem`` and ``name`` are OSV's.

    Debian's ecosystem has the release ("Debian:13"), and its name is the source package's. GIT's
    name is the repository without its scheme ("github.com/nvidia/cutlass"), its version a commit
    or a tag.
    """

    ecosystem: str
    name: str
    version: str

    @property
    def purl(self) -> str:
        """Its package URL (purl specification), as VEX documents name it."""
        if self.ecosystem == GIT:
            host, _, path = self.name.partition("/")
            where = f"github/{path}" if host == "github.com" else f"generic/{self.name}"
            return f"pkg:{where}@{self.version}"
        kind = self.ecosystem.partition(":")[0].lower()
        where = "pypi" if kind == "pypi" else f"deb/{kind}"
        return f"pkg:{where}/{self.name}@{self.version}"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class _Package(Struct, frozen=True):
    ecosystem: str = ""
    name: str = ""


class RangeEvent(Struct, frozen=True):
    """One event of a range; each has one of the fields."""

    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None


class _Range(Struct, frozen=True):
    type: str = ""
    repo: str = ""  # of the type GIT
    events: list[RangeEvent] = []


class _Severity(Struct, frozen=True):
    type: str = ""
    score: str = ""


class AffectedPackage(Struct, frozen=True):
    """A package and its affected versions."""

    package: _Package | None = None
    ranges: list[_Range] = []
    versions: list[str] = []
    severity: list[_Severity] = []
    ecosystem_specific: dict[str, Any] | None = None


class Advisory(Struct, frozen=True):
    """One advisory, as far as it is read."""

    id: str
    aliases: list[str] = []
    upstream: list[str] = []  # schema 1.7: what a distribution's advisory was made from
    summary: str = ""
    withdrawn: str | None = None
    severity: list[_Severity] = []
    affected: list[AffectedPackage] = []
    database_specific: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Checks the identifier, which is shown, and used in a service's path."""
        if not IDENTIFIER.fullmatch(self.id):
            raise ValueError(f"id {shown(self.id, 80)!r} is not of the form DATABASE-ENTRY")

    @property
    def names(self) -> frozenset[str]:
        """Its identifier and all others of the same vulnerability."""
        return frozenset((self.id, *self.aliases, *self.upstream))


def parse(data: bytes, where: str) -> Advisory:
    """One record.

    Raises:
        AdvisoryError: it is not JSON of that form.
    """
    return reading.json(data, Advisory, where, AdvisoryError)


def canonical(ecosystem: str, name: str) -> str:
    """A package's name as databases compare it.

    PyPI's is normalised (PEP 503), a repository loses its scheme and ``.git``, others stay.
    """
    if ecosystem == GIT:
        return name.rpartition("://")[2].lower().rstrip("/").removesuffix(".git")
    return re.sub(r"[-_.]+", "-", name).lower() if ecosystem == PYPI else name


def keys(part: AffectedPackage) -> set[str]:
    """The canonical names of what a record's part is about: its package, its repositories."""
    found = {canonical(GIT, one.repo) for one in part.ranges if one.type == GIT and one.repo}
    package = part.package
    if package and package.ecosystem.partition(":")[0] in (*ECOSYSTEMS, GIT):
        found.add(canonical(package.ecosystem, package.name))
    return found


def affects(record: Advisory, component: OsvPackage) -> AffectedPackage | None:
    """The part of a record that affects a component; None if none does, or it was withdrawn.

    Raises:
        AdvisoryError: an event's version cannot be compared.
    """
    if record.withdrawn is not None:
        return None
    wanted = canonical(component.ecosystem, component.name)
    for part in record.affected:
        if component.ecosystem == GIT:
            if _source_affected(part, component.version, wanted):
                return part
            continue
        package = part.package
        if package is None or canonical(package.ecosystem, package.name) != wanted:
            continue
        # Without a release, an ecosystem means each of them.
        if package.ecosystem not in (component.ecosystem, component.ecosystem.partition(":")[0]):
            continue
        if _version_listed(part, component) or any(
            _in_range(found, component, record.id) for found in part.ranges
        ):
            return part
    return None


def fixes(part: AffectedPackage, component: OsvPackage) -> list[str]:
    """The versions above a component's in which the vulnerability is fixed, the lowest first.

    Of sources of a repository, all commits that fix it.
    """
    if component.ecosystem == GIT:
        wanted = canonical(GIT, component.name)
        ranges = [one for one in part.ranges if canonical(GIT, one.repo) == wanted]
        found = [event.fixed for one in ranges for event in one.events if event.fixed]
        return list(dict.fromkeys(found))
    key = _version_key(component.ecosystem)
    found = [
        event.fixed
        for one in part.ranges
        if one.type != GIT
        for event in one.events
        if event.fixed is not None
    ]
    later = [version for version in found if key(version) > key(component.version)]
    return sorted(dict.fromkeys(later), key=key)


def _source_affected(part: AffectedPackage, version: str, repository: str) -> bool:
    """Whether a part of a record may affect a commit or tag of a repository."""
    if repository not in keys(part):
        return False
    ranges = [one for one in part.ranges if canonical(GIT, one.repo) == repository]
    commit = COMMIT.fullmatch(version)
    if not commit and part.versions:  # a database lists every affected tag beside its ranges
        return version.removeprefix("v") in {tag.removeprefix("v") for tag in part.versions}
    return not ranges or any(_commit_in(one, version) for one in ranges)


def _commit_in(found: _Range, commit: str) -> bool:
    """Whether a range may have a commit; only its ends are known here."""
    introduced = {event.introduced for event in found.events} - {None, *_FIRST}
    ends = {event.last_affected for event in found.events} - {None}
    outside = {event.fixed or event.limit for event in found.events} - {None}
    if commit in outside:
        return False
    if not outside and len(ends) == 1 and introduced == ends:
        return commit in ends  # from a commit to the same one: only this one
    return True


def _version_listed(part: AffectedPackage, component: OsvPackage) -> bool:
    if component.version in part.versions:
        return True
    if component.ecosystem != PYPI:
        return False
    from packaging.version import InvalidVersion, Version

    own = Version(component.version)
    for text in part.versions:
        try:
            if Version(text) == own:
                return True
        except InvalidVersion:  # a release from before PEP 440; it is not the one that we have
            continue
    return False


def _in_range(found: _Range, component: OsvPackage, identifier: str) -> bool:
    """The schema's algorithm: events in the order of versions switch the state on and off."""
    if found.type == GIT:  # commits: ``_source_affected`` is about them
        return False
    key = _version_key(component.ecosystem)
    try:
        own = key(component.version)
        limits = [event.limit for event in found.events if event.limit is not None]
        if limits and not any(limit == "*" or own < key(limit) for limit in limits):
            return False
        affected = False
        for event in sorted(found.events, key=lambda e: _event_order(e, key)):
            if event.introduced is not None and (
                event.introduced == "0" or own >= key(event.introduced)
            ):
                affected = True
            if event.fixed is not None and own >= key(event.fixed):
                affected = False
            if event.last_affected is not None and own > key(event.last_affected):
                affected = False
    except ValueError as error:
        raise AdvisoryError(
            f"{identifier}: a version of {component.name} cannot be compared: {shown(error, 120)}",
            rule=f"versions of {component.ecosystem}",
            remedy="correct the record, or leave its file out",
        ) from None
    return affected


def _event_order(event: RangeEvent, key: Callable[[str], Any]) -> tuple[bool, Any]:
    version = event.introduced or event.fixed or event.last_affected or "0"
    return (version != "0", key(version))


def _version_key(ecosystem: str) -> Callable[[str], Any]:
    """How an ecosystem's versions are ordered; ValueError for text that is none."""
    if ecosystem == PYPI:
        from packaging.version import Version

        return Version
    from debian.debian_support import NativeVersion

    return NativeVersion


def severity(records: list[Advisory], parts: list[AffectedPackage]) -> tuple[str, float | None]:
    """The highest level, and CVSS score, that records of one vulnerability give it.

    Args:
        records: which are aliases of each other.
        parts: of them, that affect a component; their severity comes before their record's.

    Returns:
        One of LEVELS, or UNKNOWN; the score only if a CVSS vector gave the level.
    """
    given = [entry for part in parts for entry in part.severity]
    given = given or [entry for record in records for entry in record.severity]
    scores = [score for entry in given if (score := _cvss_score(entry)) is not None]
    if scores:
        return _cvss_level(max(scores)), max(scores)
    words = [str((record.database_specific or {}).get("severity", "")) for record in records]
    words += [str((part.ecosystem_specific or {}).get("urgency", "")) for part in parts]
    known = [_WORDS.get(word.lower(), word.lower()) for word in words]
    levels = [LEVELS.index(word) for word in known if word in LEVELS]
    return (LEVELS[max(levels)] if levels else UNKNOWN), None


def _cvss_score(entry: _Severity) -> float | None:
    """A CVSS vector's base score; None for other kinds, and for vectors that are none."""
    from cvss import CVSS2, CVSS3, CVSS4, CVSSError

    kinds = {"CVSS_V2": CVSS2, "CVSS_V3": CVSS3, "CVSS_V4": CVSS4}
    if entry.type not in kinds:
        return None
    try:
        return float(kinds[entry.type](entry.score).base_score)
    except CVSSError:
        return None


def _cvss_level(score: float) -> str:
    """CVSS's qualitative scale (CVSS v3.1, section 5; v4.0, section 6)."""
    bounds = ((9.0, "critical"), (7.0, "high"), (4.0, "medium"), (0.1, "low"))
    return next((name for bound, name in bounds if score >= bound), "none")
