"""The command about known vulnerabilities: audit."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fp4forge.cli.options import json_option, trust_of, trust_options
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import RegistryError, UsageError, VulnerableError

if TYPE_CHECKING:
    from fp4forge.advisories.audit import AuditReport, Vulnerability
    from fp4forge.oci.cosign import Trust
    from fp4forge.sbom.components import SbomComponent


@click.command()
@click.argument("image", required=False)
@click.option("--release", "releases", multiple=True, help="A release's locks; by default of each.")
@click.option(
    "--db",
    metavar="DIR|URL",
    help="A folder of OSV files, or a service with OSV's API; by default OSV's own.",
)
@trust_options
@json_option
def audit(
    image: str | None,
    releases: tuple[str, ...],
    db: str | None,
    key: str | None,
    identity: str | None,
    issuer: str | None,
    as_json: bool,
) -> None:
    """List known vulnerabilities of IMAGE, or of the releases' locks, with the verdict on each.

    IMAGE is audited with its distribution's packages and, by the SBOM beside it in its registry,
    the sources that are compiled in; with --key (or --identity and --issuer), the signed SBOM. A
    release is audited by its Python packages. The verdicts are OpenVEX documents,
    releases/vex/RELEASE.json. Exit code 30 if a vulnerability of critical, high or unknown severity
    has no current verdict of not_affected or fixed.
    """
    from fp4forge.advisories import audit as auditing
    from fp4forge.advisories import database, installed
    from fp4forge.inputs import modelopt, release

    if image and releases:
        raise UsageError("IMAGE and --release exclude each other", remedy="give one of them")
    trust = trust_of(key, identity, issuer) if image else None
    source, console = database.of(db or database.SERVICE), Console()
    found = []
    every = (*release.names(), *modelopt.release_names())
    for name in [image] if image else releases or every:
        with console.step("audit") as step:
            contents = (
                installed.of_image(name, _listed(name, trust), step.report)
                if image
                else installed.of_release(name)
            )
            report = auditing.run(contents, source, step.report)
            found.append(report)
            grave = sum(finding.grave for finding in report.findings)
            step.detail = (
                f"{name}: {report.components} packages, {len(report.findings)} vulnerabilities,"
                f" {grave} grave and unexplained"
            )
    if as_json:
        print_json([asdict(report) for report in found])
    else:
        for report in found:
            _show_audit(report)
    try:
        for report in found:
            auditing.demand(report)
    except VulnerableError as error:
        if not as_json:
            raise
        click.echo(error.message, err=True)  # not the error's JSON: what is read is the report
        sys.exit(error.exit_code)


def _listed(image: str, trust: Trust | None) -> list[SbomComponent] | None:
    """What the SBOM beside an image lists, of all its platforms; None if it cannot be had.

    Raises:
        RegistryError: a signature is required, but the image has no SBOM.
        SignatureError: the SBOM is not signed as demanded.
    """
    from fp4forge.publish import signing
    from fp4forge.sbom import kept

    try:
        found = kept.components(*signing.locate(image), trust)
    except RegistryError:
        if trust:
            raise
        return None
    return [one for components in found.values() for one in components]


def _show_audit(report: AuditReport) -> None:
    from fp4forge.advisories import audit as auditing

    rows = [(auditing.line(finding), _finding_details(finding)) for finding in report.findings]
    if rows:
        print_rows(rows)
    for text in report.left_out:
        click.echo(f"not audited: {text}")


def _finding_details(finding: Vulnerability) -> str:
    lines = [
        finding.summary,
        f"{finding.justification}: {finding.reason}" if finding.justification else finding.reason,
        finding.action,
        f"verdict counts until {finding.expires}" if finding.expires else "",
        f"not in release {', '.join(finding.releases)}" if finding.releases else "",
    ]
    return "\n".join(text for text in lines if text)
