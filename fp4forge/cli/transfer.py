"""Commands about published images: distribute, bundle, unbundle, history."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fp4forge.cli.options import trust_of, trust_options
from fp4forge.core.console import Console, print_json


@click.command()
@click.argument("image")
@click.option("--to", "nodes", required=True, metavar="USER@HOST,…", help="Machines with Docker.")
@click.option("--name", help="REPOSITORY:TAG on the nodes; by default the image's own.")
@click.option(
    "--ssh-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="ssh configuration file to use instead of the default.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def distribute(
    image: str, nodes: str, name: str | None, ssh_config: Path | None, as_json: bool
) -> None:
    """Copy IMAGE to machines over ssh; only the layers that a machine lacks are sent.

    IMAGE must be in a registry on this machine's loopback. All nodes pull it by digest through
    ssh at the same time; each tag is set last.
    """
    from fp4forge.publish import distribute as distributing

    console = Console()
    with console.step("send") as step:
        found = distributing.distribute(
            image, distributing.parse_nodes(nodes), name, ssh_config, step.report
        )
        step.detail = "; ".join(node.text() for node in found)
    if as_json:
        print_json([asdict(node) for node in found])


@click.command()
@click.argument("image")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File to write.",
)
@click.option(
    "--manifest",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A compose file (serve compose -o) to include.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def bundle(image: str, output: Path, manifest: Path | None, as_json: bool) -> None:
    """Pack IMAGE (REPOSITORY:TAG in a registry) and its evidence into one checksummed file."""
    from fp4forge.publish import bundle as bundling

    console = Console()
    with console.step("bundle") as step:
        made = bundling.make(image, output, manifest, step.report)
        size = f"{output.stat().st_size / 1e9:.2f} GB"
        step.detail = f"{output}, {size}, {made.digest[:19]}, {made.beside.text()}"
    if as_json:
        print_json({**_as_json(made), "file": str(output), "bytes": output.stat().st_size})


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="New folder for layout, evidence and manifest.",
)
@click.option(
    "--to", "repository", metavar="HOST/REPOSITORY", help="Push it there, under its own tag."
)
@click.option("--load", is_flag=True, help="Load it into this machine's engine.")
@trust_options
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def unbundle(
    file: Path,
    folder: Path,
    repository: str | None,
    load: bool,
    as_json: bool,
    key: str | None,
    identity: str | None,
    issuer: str | None,
) -> None:
    """Check every file of a bundle and unpack it; optionally push or load its image.

    With --key (or --identity and --issuer), the image, its provenance and its SBOM must be
    signed; this is checked offline, before anything is pushed or loaded.
    """
    from fp4forge.core.errors import UsageError
    from fp4forge.oci import copying, registry_tags
    from fp4forge.oci import reference as references
    from fp4forge.plan import tags
    from fp4forge.publish import beside, tagging
    from fp4forge.publish import bundle as bundling

    console = Console()
    trust = trust_of(key, identity, issuer)
    if repository:
        references.bare(repository, "--to")
    with contextlib.ExitStack() as stack:
        with console.step("unpack") as step:
            unpacked = bundling.unpacked(file, folder, step.report)
            found, layout = stack.enter_context(unpacked)
            step.detail = f"{found.image}, {found.digest[:19]}, every checksum right"
        if trust:
            with console.step("signed") as step:
                what = (layout, found.digest, found.beside, trust, step.report, found.image)
                step.detail = beside.check(*what).text()
        if repository:
            with console.step("push") as step:
                # A bundle never moves a tag: its image was not checked here.
                tag = references.parse(found.image).tag
                if tags.is_moving(tag) and not trust:
                    raise UsageError(
                        f"the bundle's image has the moving tag {tag}, and nobody vouches for it",
                        rule="a moving tag only names an image whose checks passed: without its"
                        " publisher's signature nothing here says that they did",
                        remedy="give --key FILE; or bundle the image by its immutable tag",
                    )
                registry_tags.check_free(repository, tag, found.digest)
                copying.push(layout.folder, repository, found.digest, step.report)
                beside.publish(repository, found.beside, layout, step.report)
                with tagging.turn(repository):
                    tagging.give(repository, found.digest, (tag,), step.report, fixed=tag)
                step.detail = f"{repository}:{tag}"
        if load:
            with console.step("load") as step:
                bundling.load(file, step.report)
                step.detail = found.image
    if as_json:
        print_json({**_as_json(found), "folder": str(folder)})


@click.command()
@click.argument("image")
@trust_options
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def history(
    image: str, as_json: bool, key: str | None, identity: str | None, issuer: str | None
) -> None:
    """Show who moved IMAGE's tags, when, and what they named before; the newest first.

    IMAGE is HOST/REPOSITORY:TAG or HOST/REPOSITORY@DIGEST. The records lie in the registry,
    beside each image. With a tag, they are followed back to the images that it named before. With
    --key (or --identity and --issuer), only records with that signature are shown and followed.
    """
    import msgspec

    from fp4forge.core.console import print_rows
    from fp4forge.core.errors import SignatureError
    from fp4forge.oci import reference
    from fp4forge.publish import records, signing

    found = reference.parse(image)
    trust = trust_of(key, identity, issuer)
    _, digest = signing.locate(image)
    kept = records.of(found.repository, digest, found.tag, trust)
    if trust and not kept:
        raise SignatureError(
            f"{found.repository}@{digest} has no record signed by {trust}",
            rule="with --key or --identity only records with that signature count",
            remedy="without them the unsigned ones are shown",
        )
    if as_json:
        print_json([msgspec.to_builtins(record) for record in kept])
        return
    if not kept:
        click.echo(f"{found.repository}@{digest} has no record")
        return
    print_rows((record.time, _moves(record)) for record in kept)


def _as_json(bundle: Any) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(bundle)
    return found


def _moves(record: Any) -> str:
    lines = [
        f"{tag}: {move.before[:19] or 'nothing'} -> {move.after[:19] or 'nothing'}"
        for tag, move in record.tags.items()
        if move.before != move.after
    ]
    return "\n".join([f"{record.digest[:19]} {record.verdict}", *lines])
