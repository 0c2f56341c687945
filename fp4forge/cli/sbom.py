"""build.py sbom: what is in a published image, from the SBOM that lies beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fp4forge.cli.options import trust_of, trust_options
from fp4forge.core.errors import UsageError

if TYPE_CHECKING:
    from fp4forge.oci.cosign import Trust
    from fp4forge.sbom.components import SbomComponent

FORMATS = ("table", "json", "cyclonedx", "spdx", "licences", "fetched")


@click.command()
@click.argument("image")
@trust_options
@click.option("--platform", help="Platform of an index of several: linux/amd64 or linux/arm64.")
@click.option(
    "--format",
    "kind",
    default="table",
    show_default=True,
    type=click.Choice(FORMATS),
    help="table and json list components; cyclonedx and spdx are documents; licences is a page;"
    " fetched lists each file that the build fetched, with its hash (needs --key).",
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False))
def sbom(
    image: str,
    key: str | None,
    identity: str | None,
    issuer: str | None,
    platform: str | None,
    kind: str,
    output: Path | None,
) -> None:
    """Show what is in IMAGE, which is in a registry: packages, vendored sources, licences.

    With --key (or --identity and --issuer), the SBOM is the signed one. What the build fetched is
    part of the signed provenance: digest, name, address, and the record that allows it.
    """
    from fp4forge.core import files
    from fp4forge.inputs.sbom import table
    from fp4forge.oci import registry
    from fp4forge.publish import signing
    from fp4forge.sbom import components as listing
    from fp4forge.sbom import kept, licences

    trust = trust_of(key, identity, issuer)
    if kind == "fetched" and not trust:
        raise UsageError(
            "--format fetched: whose signature counts?",
            rule="the list is in the provenance that a publish with --sign-key signs",
            remedy="give --key, or --identity and --issuer",
        )
    repository, digest = signing.locate(image)
    images = registry.existing(repository, digest).data.by_platform or {"": digest}
    if platform is None and len(images) > 1:
        raise UsageError(
            f"{image} has an SBOM for each of {', '.join(images)}", remedy="give --platform"
        )
    if platform is not None and platform not in images:
        names = ", ".join(filter(None, images)) or "its index names no platform"
        raise UsageError(f"{image} is not for {platform}", rule=f"it is for: {names}")
    own = images[platform] if platform else next(iter(images.values()))
    if kind == "fetched" and trust:
        text = _fetches(repository, own, trust)
    elif kind in ("cyclonedx", "spdx"):
        media = kept.CYCLONEDX if kind == "cyclonedx" else kept.SPDX
        text = kept.document(repository, own, media, trust).decode(errors="replace")
    else:
        (found,) = kept.components(repository, own, trust).values()
        if kind == "table" and not output:
            _show_components(found)
            return
        from fp4forge.core.text import as_json

        text = {
            "json": lambda: as_json([listing.as_json(c) for c in found], 1) + "\n",
            "licences": lambda: licences.licences(found, table(), f"{repository}@{digest}"),
            "table": lambda: "".join(f"{c.purl}\t{c.licence}\n" for c in found),
        }[kind]()
    if output:
        files.replace(output, text)
    else:
        click.echo(text, nl=False)


def _fetches(repository: str, image: str, trust: Trust) -> str:
    from fp4forge.oci import cosign
    from fp4forge.publish import fetched, provenance

    made = cosign.attestations(repository, image, provenance.KIND, trust)[-1]
    listed = fetched.read(made, f"{repository}@{image}")
    return "".join(f"{one.text}\n" for one in listed)


def _show_components(found: list[SbomComponent]) -> None:
    from fp4forge.core.console import rich, table
    from fp4forge.sbom import licences

    rows = ((one.name, one.version, one.ecosystem, one.licence) for one in found)
    heads = ("component", "version", "ecosystem", "licence")
    rich().print(table(heads, rows), licences.counts(found))
