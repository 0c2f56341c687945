"""Refuses to give a tag to an image with grave vulnerabilities that nothing explains.

Twice: the lock before the build, so that nothing is built in vain, and the image that was built,
with its distribution's packages and the sources compiled into it, before the first tag. Without
``--advisories`` nothing is looked at, and the command says so.
"""

from __future__ import annotations

from collections.abc import Iterable

from fp4forge.advisories import audit, database, installed
from fp4forge.advisories.installed import AuditedPackages
from fp4forge.kernels.base import Progress
from fp4forge.plan.plan import Plan
from fp4forge.sbom.components import SbomComponent

NOT_LOOKED_AT = "advisories: not looked at (--advisories FOLDER or ADDRESS)"


def lock(plan: Plan, data: str, report: Progress) -> str:
    """Audits a plan's Python packages; returns what was found, for people.

    Args:
        plan: identified, so that it has its packages.
        data: of ``--advisories``.
        report: called with progress.

    Raises:
        VulnerableError: something is grave, unexplained and not accepted by the plan.
        AdvisoryError: the data or the verdicts cannot be read.
        UsageError: the data is neither a folder nor an address.
    """
    packages = installed.of_packages(plan.packages, plan.vllm_version)
    found = audit.run(
        AuditedPackages(plan.release, tuple(sorted(packages))), database.of(data), report
    )
    audit.demand(found, plan.allow_vulnerable, complete=False)
    return _audit_detail(found)


def image(
    plan: Plan, reference: str, listed: Iterable[SbomComponent], data: str, report: Progress
) -> str:
    """Audits an image with its distribution's packages and the sources compiled into it.

    Args:
        plan: of the image.
        reference: the image.
        listed: its SBOM.
        data: of ``--advisories``.
        report: called with progress.

    Returns:
        What was found, for people.

    Raises:
        As ``lock``.
        UsageError: the plan accepts something that the image does not have.
        RegistryError: the image cannot be pulled.
    """
    found = audit.run(installed.of_image(reference, listed, report), database.of(data), report)
    audit.demand(found, plan.allow_vulnerable)
    accepted = ", ".join(plan.allow_vulnerable)
    return _audit_detail(found) + (f", accepted: {accepted}" if accepted else "")


def _audit_detail(found: audit.AuditReport) -> str:
    explained = sum(finding.explained for finding in found.findings)
    return (
        f"{len(found.findings)} vulnerabilities in {found.components} packages by"
        f" {found.database}, {explained} explained"
    )
