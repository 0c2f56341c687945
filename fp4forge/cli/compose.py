"""The command that writes a manifest: flags by the model's family, the release and the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp4forge.cli import together, wanted_server
from fp4forge.cli.options import (
    NamedPath,
    arch_option,
    given_options,
    json_option,
    server_options,
    with_option,
)
from fp4forge.core import files
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import UsageError
from fp4forge.core.text import shown

if TYPE_CHECKING:
    pass


@click.command()
@click.option(
    "--model",
    "models",
    type=NamedPath(path_type=Path),
    multiple=True,
    help="The checkpoint's folder. Several share one GPU, behind one address.",
)
@arch_option
@server_options
@click.option(
    "--format",
    "kind",
    default="compose",
    show_default=True,
    type=click.Choice(["compose", "run", "systemd", "k8s"]),
)
@click.option("--utilization", type=float, default=0.85, show_default=True)
@click.option("--gpu", "product", help="Product, if the arch has several: rtx5090, rtxpro6000, ...")
@with_option
@click.option("--explain", is_flag=True, help="Print every setting and its reason.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--lock",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a lock beside the manifest: image, settings and the hash of each file.",
)
@click.option(
    "--from-lock",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a lock's manifest again; refused if image or files are not the lock's.",
)
@json_option
@click.pass_context
def compose(
    ctx: click.Context,
    /,
    as_json: bool,
    explain: bool,
    output: Path | None,
    lock: Path | None,
    from_lock: Path | None,
    kind: str,
    extras: tuple[str, ...],
    models: tuple[Path, ...],
    **o: Any,
) -> None:
    """Write a compose file (or another manifest) that serves MODEL.

    Each of several models gets its own server and a share of one GPU's memory. The servers start
    one after the other, behind LiteLLM's proxy.

    --lock FILE hashes every file of the model, so that --from-lock FILE writes the same manifest
    for the same bytes, or says what differs (exit code 31).
    """
    if from_lock:
        _reproduce_lock(ctx, from_lock, output)
        return
    if not models:
        raise UsageError("--model is missing", rule="--model DIR, or --from-lock FILE")
    if lock and (as_json or explain):
        raise UsageError("--lock goes with a manifest", rule="not with --json or --explain")
    if lock and output and lock.absolute() == output.absolute():
        raise UsageError(f"--lock and --output are both {lock}", rule="two files")
    if extras and (kind != "compose" or not output or lock or as_json or explain):
        raise UsageError(
            f"--with {extras[0]} needs --output FILE",
            rule="with a compose file, and not with another --format, --lock, --json or --explain",
        )
    if output and (extras or len(models) > 1):
        together.check_output(output)
    if extras:
        from fp4forge.serve.monitoring import check_port

        check_port(o["port"])
    if len(models) > 1:
        if kind != "compose" or not output or lock or as_json or explain:
            raise UsageError(
                "several models need --output FILE",
                rule="with --output FILE, and not with another --format, --lock, --json or"
                " --explain",
            )
        together.check([*models], o)
        servers = wanted_server.several([*models], o, own_image=bool(o["image"]))
        together.write(servers, output, extras)
        return
    o["model"] = models[0]
    from fp4forge.inputs import service_images
    from fp4forge.models import switch_history
    from fp4forge.serve import manifest, monitoring

    watching = service_images.images() if extras else None
    found = wanted_server.server(o, own_image=bool(o["image"]))
    if as_json:
        print_json(found.as_json())
        return
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if explain:
        print_rows(
            [(f"{s.name} {s.value}".strip(), s.why) for s in (*found.flags, *found.environment)]
        )
        print_rows(
            [(f"not written: {name}", why) for name, why in switch_history.left_out().items()]
        )
        return
    text = manifest.render(found, kind, monitoring=watching)
    if kind == "compose":
        checked = manifest.validate(text)
        note = f"checked by {checked} config" if checked else "no docker compose here to check it"
        click.echo(f"compose: {note}", err=True)
    if output and watching:  # first: a manifest without them could not be started
        written = monitoring.write(output.absolute().parent, found.name)
        click.echo(f"monitoring: {shown(written, 300)}", err=True)
    if not lock:
        _write_manifest(text, kind, output)
        return
    from fp4forge.serve import runlock

    with Console().step("lock") as step:
        made = runlock.make(found, kind, text, step.report)
        hashed = [file for folder in made.folders.values() for file in folder.files.values()]
        size = sum(file.size for file in hashed)
        step.detail = f"{lock}: {len(hashed)} files, {size / 1e9:.1f} GB"
    _write_manifest(
        text, kind, output
    )  # first: a lock without its manifest would be half of the two
    files.replace(lock, runlock.text_of(made))


def _write_manifest(text: str, kind: str, output: Path | None) -> None:
    if output:
        files.replace(output, text, 0o755 if kind == "run" else 0o644)
    else:
        click.echo(text, nl=False)


def _reproduce_lock(ctx: click.Context, path: Path, output: Path | None) -> None:
    """Writes a lock's manifest; a lock decides everything but where the manifest goes."""
    from fp4forge.serve import runlock

    free = {"from_lock", "output", "key", "identity", "issuer"}
    if given := given_options(ctx.params.keys() - free):
        raise UsageError(
            f"{', '.join(given)} with --from-lock",
            rule="the lock decides everything but --output and whose signature is required",
            remedy="write another lock with --lock",
        )
    lock = runlock.read(path)
    wanted_server.checked_image(lock.image, ctx.params)
    with Console().step("compare") as step:
        text = runlock.reproduce(lock, step.report)
        count = sum(len(folder.files) for folder in lock.folders.values())
        step.detail = f"image and {count} files are the lock's"
    _write_manifest(text, lock.kind, output)
