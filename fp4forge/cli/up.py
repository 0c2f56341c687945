"""The command that serves a model on this machine: from its name to a verified answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp4forge.cli import bringing_up, servers, together, wanted_server
from fp4forge.cli.options import json_option, resolve_registry, server_options, with_option
from fp4forge.core import reading
from fp4forge.core.console import Console, print_json
from fp4forge.core.errors import UsageError

if TYPE_CHECKING:
    from fp4forge.checkpoint.tensors import Checkpoint
    from fp4forge.kernels.gpus import Product
    from fp4forge.serve.settings import ServerSettings


@click.command()
@click.argument("given", metavar="MODEL...", nargs=-1, required=True)
@click.option("--gpu", "product", help="This machine's GPU; by default what nvidia-smi reports.")
@click.option(
    "--arch", help="GPU of the image; by default this machine's, otherwise a set that contains it."
)
@server_options
@click.option("--utilization", type=float, help="Share of the GPU's memory; by default 0.85.")
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for downloaded models; by default in fp4forge's state.",
)
@click.option(
    "--revision", default="main", show_default=True, help="Revision of a model on the hub."
)
@click.option(
    "--override",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A compose file that is merged over the written one.",
)
@click.option("--build", is_flag=True, help="Build the image if none is there, without asking.")
@with_option
@servers.timeout_option
@servers.smoke_option
@click.option("--dry-run", is_flag=True, help="Print what would be started; start nothing.")
@json_option
def up(
    given: tuple[str, ...],
    as_json: bool,
    dry_run: bool,
    no_smoke: bool,
    timeout: float,
    **o: Any,
) -> None:
    """Serve MODEL (a folder, or OWNER/NAME on the hub) on this machine, and wait for its answer.

    Finds the GPU and an image, downloads the model, inspects and sizes it, writes the compose
    file, starts it, and asks it a question.

    Several models share one GPU: each gets its own server and a share of the memory, behind
    LiteLLM's proxy as their one address.
    """
    from fp4forge.checkpoint import tensors
    from fp4forge.inputs import service_images
    from fp4forge.launch import deployment as deployments
    from fp4forge.launch import this_machine
    from fp4forge.serve import manifest, monitoring

    if o["extras"]:
        monitoring.check_port(o["port"])
    wanted_server.check_key_file(o["api_key_file"])
    if len(given) > 1:
        together.check_options(len(given), o)
    console = Console()
    with console.step("gpu") as step:
        product, number = this_machine.product(o["product"])
        step.detail = f"{number} x {product.title}"
    o["product"], own = product.name, bool(o["image"])
    folders = [_model_folder(name, o, console, dry_run) for name in given]
    if len(folders) > 1:
        together.check(folders, o)
    with console.step("image") as step:
        o["arch"], o["image"], release = _image_to_serve(o, product.gpu, console, dry_run)
        step.detail = o["image"]
    read = [tensors.read(folder) for folder in folders]
    weights = [sum(tensor.size for tensor in one.tensors.values()) for one in read]
    o["utilization"] = wanted_server.utilization(o, product, sum(weights), console)
    found = _settings(folders, o, own, number, console)
    first, several = found[0], len(found) > 1
    watching = service_images.images() if o["extras"] else None
    text = (
        together.text_of(found, o["extras"])
        if several
        else manifest.render(first, "compose", monitoring=watching)
    )
    override = reading.text(o["override"], UsageError, where="--override") if o["override"] else ""
    if dry_run:
        if as_json:
            print_json([one.as_json() for one in found] if several else first.as_json())
        else:
            click.echo(text, nl=False)
        return
    name = manifest.group_name(found) if several else first.name
    _check_running(name)
    this_machine.check_port(first.listen, first.port)
    rates = [_rate(one, o, product) for one in read]
    before = _last_start(name, first.image)
    made = bringing_up.deployment_of(
        first,
        release,
        name=name,
        override=bool(o["override"]),
        monitoring=bool(watching),
        weights=sum(weights),
        expected=0 if several else rates[0],
        seconds=before.get("", {}),
        servers=[
            deployments.DeployedServer(
                service=one.name,
                container=manifest.container_of(name, one.name),
                served_name=one.served_name,
                weights=size,
                expected=rate,
                seconds=before.get(one.name, {}),
            )
            for one, size, rate in zip(found, weights, rates, strict=True)
            if several
        ],
    )
    new = made.name not in deployments.names()
    made.write(text, override, found if several else ())
    try:
        bringing_up.bring_up(made, console, timeout * 60, smoke=not no_smoke, as_json=as_json)
    finally:
        if new and servers.state(made) == "gone":  # it was not even started
            made.run("down", "--volumes")
            made.remove()


def _settings(
    folders: list[Path], o: dict[str, Any], own: bool, number: int, console: Console
) -> list[ServerSettings]:
    """The server of each model, after they were inspected and sized.

    Raises:
        FitError: they do not fit.
        UsageError: this machine has too few GPUs.
    """
    if len(folders) > 1:
        return wanted_server.several(folders, o, own_image=own)
    o = o | {"model": folders[0]}
    return [wanted_server.on_this_machine(o, number, console, own_image=own)]


def _rate(read: Checkpoint, o: dict[str, Any], product: Product) -> float:
    """Tokens a second of one stream, at most."""
    from fp4forge.serve import memory, model_sizes

    return memory.decode_rate(model_sizes.describe(read, o["kv_cache_dtype"]), product, 1, 1024)


def _model_folder(name: str, o: dict[str, Any], console: Console, dry_run: bool) -> Path:
    """The model's folder; a hub's model is downloaded to it."""
    from fp4forge.checkpoint import fetch
    from fp4forge.core.paths import STATE

    folder = Path(name)
    if name and reading.is_folder(folder):
        return folder.absolute()
    if not fetch.is_name(name):
        raise UsageError(
            f"{name!r} is neither a folder nor a model on the hub",
            rule="a folder with config.json, or OWNER/NAME",
        )
    target = (o["models"] or STATE / "models") / name
    if dry_run:
        if reading.is_file(target / "config.json"):
            return Path(target).absolute()
        raise UsageError(
            f"{name} is not downloaded yet",
            rule="--dry-run downloads nothing, and flags follow the model's own files",
            remedy=f"build.py checkpoint fetch {name} -o {target}",
        )
    with console.step("fetch") as step:
        commit = fetch.fetch(name, target, o["revision"], step.report)
        step.detail = f"{name} at {commit[:12]}"
    return Path(target).absolute()


def _image_to_serve(
    o: dict[str, Any], gpu: str, console: Console, dry_run: bool
) -> tuple[str, str, str]:
    """The image's --arch, the image by digest, and its release."""
    from fp4forge.core.platform import host_platform
    from fp4forge.launch import image as images
    from fp4forge.oci import engine, reference
    from fp4forge.serve import manifest

    o["platform"] = o["platform"] or host_platform()
    archs = images.targets(gpu, o["arch"])
    known = {arch: wanted_server.published(o | {"arch": arch}) for arch in archs}
    release = known[archs[0]][1]
    if o["image"]:
        return archs[0], manifest.by_digest(o["image"]), release
    registry = resolve_registry(o["registry"])
    arch = image = ""
    if registry:
        repository = reference.repository(registry, o["repo"])
        arch, image = images.published(repository, {a: known[a][0] for a in archs})
    if not image:
        arch, image = images.local(engine.connect(), archs, o["repo"], _labels(o, release))
    if image:
        return arch, image, release
    line = _build_line(o, archs[0], registry)
    asked = o["build"] or (sys.stdin.isatty() and not dry_run and _agrees_to_build(line))
    if not registry or not asked or dry_run:
        raise UsageError(
            f"no image of release {release} for {' or '.join(archs)} on {o['platform']} is here"
            f" or in {registry or 'a registry (--registry names one)'}",
            rule="a server runs a checked image, by digest",
            remedy=f"build.py {' '.join(line)}; or --build, or --image IMAGE",
        )
    _build_image(line)
    return archs[0], manifest.by_digest(f"{repository}:{known[archs[0]][0]}"), release


def _labels(o: dict[str, Any], release: str) -> dict[str, str]:
    """What an image says of itself that the options mean."""
    from fp4forge.inputs import bases, defaults

    usual = defaults.table().image
    base = bases.load(o["base"] or usual.base)
    return {
        "io.fp4forge.release": release,
        "io.fp4forge.platform": o["platform"],
        "io.fp4forge.variant": o["variant"] or usual.variant,
        "io.fp4forge.strategy": o["strategy"] or usual.strategy,
        "org.opencontainers.image.base.name": base.reference(o["platform"]),
    }


def _build_line(o: dict[str, Any], arch: str, registry: str | None) -> list[str]:
    from fp4forge.inputs import defaults

    usual = defaults.table().image
    line = ["--arch", arch, "--from", o["strategy"] or usual.strategy]
    line += ["--base", o["base"] or usual.base, "--aot", "none", "--platform", o["platform"]]
    for name in ("release", "variant"):
        line += [f"--{name}", o[name]] if o[name] else []
    return [*line, "--repo", o["repo"], "--registry", registry or "HOST:PORT", "--push"]


def _agrees_to_build(line: list[str]) -> bool:
    return click.confirm(f"No image is here. Build one (build.py {' '.join(line)})?", err=True)


def _build_image(line: list[str]) -> None:
    """Builds in this process, as ``build.py`` does."""
    from fp4forge.cli import cli

    cli.main(line, standalone_mode=False)


def _last_start(name: str, image: str) -> dict[str, dict[str, float]]:
    """Seconds by phase of the last start with the same image: by service, or "" of one server."""
    from fp4forge.launch import deployment

    if name not in deployment.names():
        return {}
    last = deployment.load(name)
    if last.image != image:
        return {}
    return {"": last.seconds} | {server.service: server.seconds for server in last.servers}


def _check_running(name: str) -> None:
    """Refuses to replace a server that runs."""
    from fp4forge.launch import deployment

    if name not in deployment.names():
        return
    made = deployment.load(name)
    if servers.state(made) == "running":
        upgrade = "" if made.servers else f" serve upgrade {name} --image NEW;"
        raise UsageError(
            f"{name} is running",
            rule="up starts a new server",
            remedy=f"build.py serve restart {name};{upgrade} serve stop {name}",
        )
