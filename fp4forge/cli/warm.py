"""The command that gives a verified image the compile caches of this machine's GPU."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp4forge.cli import bringing_up, servers
from fp4forge.cli.options import json_option, server_options_of_image, sign_options, signer_of
from fp4forge.core import reading
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import NoGpuError, UsageError

if TYPE_CHECKING:
    from fp4forge.publish.warming import ColdImage


@click.command()
@click.argument("image")
@click.option("--model", type=click.Path(path_type=Path), help="The checkpoint's folder.")
@server_options_of_image
@click.option("--utilization", type=float, default=0.85, show_default=True)
@click.option(
    "--collected",
    type=click.Path(path_type=Path, file_okay=False),
    help="Caches that --output wrote on the machine with the GPU; starts no server.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="New folder to keep the collected caches in.",
)
@click.option(
    "--push", is_flag=True, help="Push the image with the added layer, then set its own tag."
)
@sign_options
@servers.timeout_option
@click.option("--dry-run", is_flag=True, help="Print what would be done; start and push nothing.")
@json_option
def warm(image: str, as_json: bool, dry_run: bool, timeout: float, **o: Any) -> None:
    """Add this machine's compile caches to IMAGE as one thin layer, under a tag of its own.

    Starts IMAGE with empty caches as `serve up` would, with the same options, has it answer once,
    and packs what torch.compile, Triton and FlashInfer compiled. A server of the new image copies
    that into its caches if GPU, driver, plan and model are the same, and compiles as usual if not.
    """
    from fp4forge.cli.wanted_server import checked_image
    from fp4forge.core import scratch
    from fp4forge.core.paths import STATE
    from fp4forge.core.platform import host_platform
    from fp4forge.oci import registry
    from fp4forge.publish import warming

    if not o["push"] and not o["output"]:
        raise UsageError("neither --push nor --output", rule="where the caches go")
    if bool(o["collected"]) == bool(o["model"]):
        raise UsageError(
            "one of --model and --collected is needed",
            rule="--model DIR starts a server here; --collected DIR has what another one compiled",
        )
    if o["collected"] and o["output"]:
        raise UsageError("--output with --collected", rule="they are collected already")
    if o["output"] and os.path.lexists(o["output"]):
        raise UsageError(f"{o['output']} exists already", rule="--output is a new folder")
    if o["model"] and not reading.is_folder(o["model"]):
        raise UsageError(f"--model {o['model']} is not a folder", rule="a folder with config.json")
    signer = None if dry_run else signer_of(o)
    console = Console()
    number = 0 if o["collected"] else _gpus(o, console)
    with console.step("image") as step:
        checked = checked_image(image, o)
        images = warming.cold_images(checked)
        if not o["collected"]:
            images = [warming.on(host_platform(), images)]
        step.detail = f"{checked}, {' and '.join(cold.software for cold in images)}"
    if dry_run and o["model"]:
        _say_plan(images[0], o, as_json)
        return
    if o["push"]:
        registry.reach(images[0].repository)
    STATE.mkdir(parents=True, exist_ok=True)
    with scratch.folder(STATE, ".collected.") as place:
        folder = o["collected"] or o["output"] or place / "caches"
        if o["model"]:
            _collect(images[0], o, number, folder, console, timeout, as_json)
        with console.step("caches") as step:
            key = warming.read(folder)
            cold = warming.compiled_with(key, images)
            step.detail = f"{key['gpu']}, driver {key['driver']}"
        if dry_run:
            _say_plan(cold, o, as_json)
            return
        if not o["push"]:
            if as_json:
                print_json({"collected": str(folder), "key": key})
            return
        with console.step("publish") as step:
            made = warming.publish(cold, folder, signer, step.report)
            step.detail = f"{made.tag}, a layer of {made.layer_bytes / 1e6:.0f} MB"
    if as_json:
        print_json(asdict(made))
        return
    rows = [("image", f"{cold.repository}:{made.tag}"), ("digest", made.digest)]
    print_rows([*rows, ("serve", f"build.py serve up MODEL --image {cold.repository}:{made.tag}")])


def _gpus(o: dict[str, Any], console: Console) -> int:
    """How many GPUs this machine has; what they are goes into the options.

    Raises:
        NoGpuError: it has none that this project builds for.
    """
    from fp4forge.launch import this_machine

    with console.step("gpu") as step:
        try:
            product, number = this_machine.product(None)
        except UsageError as error:
            raise NoGpuError(
                error.message,
                rule="compile caches are collected where the GPU is",
                remedy="run this with -o FOLDER on that machine, and here with --collected FOLDER",
            ) from None
        step.detail = f"{number} x {product.title}"
    o["product"] = product.name
    return number


def _say_plan(cold: ColdImage, o: dict[str, Any], as_json: bool) -> None:
    from fp4forge.publish import warming

    rows = {
        "image": f"{cold.repository}@{cold.index}",
        "platform": cold.platform,
        "software": cold.software,
        "caches": str(o["collected"] or f"of a server of {o['model']}"),
        "tag": f"{cold.repository}:{warming.tag(cold, 'DIGEST')}" if o["push"] else "none",
    }
    if as_json:
        print_json(rows)
    else:
        print_rows(list(rows.items()))


def _collect(
    cold: ColdImage,
    o: dict[str, Any],
    number: int,
    target: Path,
    console: Console,
    minutes: float,
    as_json: bool,
) -> None:
    """Starts a server with empty caches, has it answer, packs what it compiled, and removes it."""
    from fp4forge.cli import wanted_server
    from fp4forge.kernels import gpus
    from fp4forge.launch import compiled, this_machine
    from fp4forge.launch import deployment as deployments
    from fp4forge.serve import manifest

    release, arch, variant, _ = cold.names
    if gpus.PRODUCTS[o["product"]].gpu not in {chip.name for chip in gpus.target(arch).gpus}:
        raise NoGpuError(
            f"the image is for {arch}, and this machine has {o['product']}",
            rule="compile caches are collected on the image's GPU",
        )
    o |= {"image": f"{cold.repository}@{cold.index}", "release": release, "arch": arch}
    o |= {"variant": variant, "strategy": cold.labels.get("io.fp4forge.strategy")}
    o |= {"platform": cold.platform, "base": None, "model": o["model"].absolute()}
    found = wanted_server.on_this_machine(o, number, console, own_image=True)
    found = replace(found, name=f"warm-{found.name}"[:63].rstrip("-"))
    if found.name in deployments.names():
        before = deployments.load(found.name)
        if servers.state(before) == "running":
            raise UsageError(f"{found.name} is running", remedy=f"build.py serve stop {found.name}")
        before.run("down", "--volumes")
    this_machine.check_port(found.listen, found.port)
    made = bringing_up.deployment_of(found, release)
    made.write(manifest.render(found, "compose"), "")
    bringing_up.bring_up(made, console, minutes * 60, smoke=True, as_json=as_json, show=False)
    try:
        with console.step("collect") as step:
            step.detail = compiled.collect(made.name, made.served_name, target, step.report)
    finally:
        made.run("down", "--volumes", seconds=300)
        made.remove()
