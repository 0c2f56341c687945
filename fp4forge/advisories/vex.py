"""Verdicts on advisories: OpenVEX documents under ``releases/vex/``, one for each release.

A document is plain OpenVEX 0.2.0 (https://github.com/openvex/spec), so that other scanners read it.
That format has no expiry; ``releases/vex/expiry.yaml`` has one for each verdict. A verdict on which
the day has passed counts as none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from fp4forge.advisories.osv import IDENTIFIER, OsvPackage
from fp4forge.core import reading
from fp4forge.core.errors import AdvisoryError
from fp4forge.core.limits import CONFIG_BYTES
from fp4forge.core.paths import RELEASES
from fp4forge.core.text import shown
from fp4forge.inputs import modelopt
from fp4forge.inputs import release as releases
from fp4forge.inputs.reader import InputFormat

FOLDER = RELEASES / "vex"
NOT_AFFECTED, AFFECTED, FIXED = "not_affected", "affected", "fixed"
STATUSES = (NOT_AFFECTED, AFFECTED, FIXED, "under_investigation")
JUSTIFICATIONS = (
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
)
CONTEXT = "https://openvex.dev/ns/v0.2.0"


class _Vulnerability(Struct, frozen=True):
    name: str
    aliases: list[str] = []


class _Subcomponent(Struct, frozen=True):
    id: str = msgspec.field(name="@id")


class _Product(Struct, frozen=True):
    id: str = msgspec.field(name="@id")
    subcomponents: list[_Subcomponent] = []


class _VexStatement(Struct, frozen=True):
    vulnerability: _Vulnerability
    products: list[_Product]
    status: str
    justification: str = ""
    impact_statement: str = ""
    action_statement: str = ""
    status_notes: str = ""


class _Document(Struct, frozen=True):
    context: str = msgspec.field(name="@context")
    id: str = msgspec.field(name="@id")
    author: str
    timestamp: str
    version: int
    statements: list[_VexStatement]


class Expiry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Until when each verdict counts."""

    expires: Annotated[
        dict[
            Annotated[str, Meta(description="a release")],
            dict[
                Annotated[
                    str,
                    Meta(
                        pattern=f"^{IDENTIFIER.pattern}$",
                        description="a vulnerability, by the name that its verdict has",
                    ),
                ],
                Annotated[
                    str,
                    Meta(
                        pattern="^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$",
                        description="the last day on which the verdict counts",
                        examples=["2027-02-28"],
                    ),
                ],
            ],
        ],
        Meta(description="by release, the last day of each verdict of releases/vex/RELEASE.json"),
    ]


FORMAT = InputFormat(Expiry, "expiry", AdvisoryError)


@dataclass(frozen=True)
class VexVerdict:
    """One statement of a document, with its expiry."""

    name: str
    names: frozenset[str]  # with the aliases
    packages: tuple[str, ...]  # package URLs; without a version they mean each
    status: str
    justification: str
    reason: str
    action: str
    expires: date

    def about(self, names: frozenset[str], component: OsvPackage) -> bool:
        """Whether it is the verdict on a vulnerability in a component."""
        purl = component.purl
        return bool(self.names & names) and bool({purl, purl.partition("@")[0]} & {*self.packages})

    def expired(self, today: date) -> bool:
        """Whether its last day has passed."""
        return today > self.expires

    def explains(self, today: date) -> bool:
        """Whether it lets an image be published: nobody can exploit it, or it is fixed."""
        return self.status in (NOT_AFFECTED, FIXED) and not self.expired(today)


def load(release: str) -> tuple[VexVerdict, ...]:
    """The verdicts of a release; none if it has no document, or is not one of this project's.

    Args:
        release: a name that may come from an image.

    Raises:
        AdvisoryError: the document is not OpenVEX, a verdict has no reason, or no expiry.
    """
    path = FOLDER / f"{release}.json"
    known = (*releases.names(), *modelopt.release_names())
    if release not in known or not reading.is_file(path):
        return ()
    expires = FORMAT.read(FOLDER / "expiry.yaml", f"{RELEASES.name}/vex/expiry.yaml").expires
    content = reading.content(path, AdvisoryError, CONFIG_BYTES)
    return parse(content, f"{RELEASES.name}/vex/{release}.json", expires.get(release, {}))


def parse(content: bytes, where: str, expires: dict[str, str]) -> tuple[VexVerdict, ...]:
    """A document's verdicts.

    Args:
        content: an OpenVEX document.
        where: its name in messages.
        expires: last days by the vulnerabilities' names, ISO 8601.

    Raises:
        AdvisoryError: as ``load``.
    """
    found = reading.json(content, _Document, where, AdvisoryError)
    if found.context != CONTEXT:
        raise AdvisoryError(
            f"{where}: @context is {shown(found.context, 80)!r}", rule=f"OpenVEX: {CONTEXT}"
        )
    verdicts = [_vex_verdict(one, where, expires) for one in found.statements]
    doubled = [v.name for v in verdicts if [w.name for w in verdicts].count(v.name) > 1]
    if doubled:
        raise AdvisoryError(
            f"{where} has two verdicts on {doubled[0]}", rule="one on each vulnerability"
        )
    left = expires.keys() - {one.vulnerability.name for one in found.statements}
    if left:
        raise AdvisoryError(
            f"{where} has no verdict on {', '.join(sorted(left))}",
            rule="each expiry belongs to a verdict",
            remedy="remove it from releases/vex/expiry.yaml",
        )
    return tuple(verdicts)


def _vex_verdict(one: _VexStatement, where: str, expires: dict[str, str]) -> VexVerdict:
    name = one.vulnerability.name

    def wrong(text: str, rule: str) -> AdvisoryError:
        return AdvisoryError(f"{where}: {shown(name, 80)} {text}", rule=rule)

    if not IDENTIFIER.fullmatch(name):
        raise wrong("is not an identifier", "DATABASE-ENTRY, such as CVE-2026-47155")
    if one.status not in STATUSES:
        raise wrong(f"has the status {shown(one.status, 40)!r}", "one of " + ", ".join(STATUSES))
    if one.status == NOT_AFFECTED and one.justification not in JUSTIFICATIONS:
        raise wrong(
            f"has the justification {shown(one.justification, 60)!r}",
            "not_affected needs one of " + ", ".join(JUSTIFICATIONS),
        )
    if one.status == AFFECTED and not one.action_statement:
        raise wrong("has no action_statement", "affected says what a user can do (OpenVEX)")
    reason = one.impact_statement if one.status == NOT_AFFECTED else one.status_notes
    if not reason.strip():
        field = "impact_statement" if one.status == NOT_AFFECTED else "status_notes"
        raise wrong(f"has no {field}", "a verdict has a reason")
    packages = [
        name
        for product in one.products
        for name in [sub.id for sub in product.subcomponents] or [product.id]
    ]
    if not packages:
        raise wrong("names no product", "a verdict concerns a package")
    try:
        last = date.fromisoformat(expires[name])
    except KeyError:
        raise wrong("has no expiry", "each verdict has a last day in expiry.yaml") from None
    except ValueError:
        raise wrong(f"expires on {expires[name]!r}", "a day that exists, YYYY-MM-DD") from None
    return VexVerdict(
        name=name,
        names=frozenset((name, *one.vulnerability.aliases)),
        packages=tuple(packages),
        status=one.status,
        justification=one.justification,
        reason=reason,
        action=one.action_statement,
        expires=last,
    )
