"""Several models in one compose file: a share of one GPU's memory each, one address for all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp4forge.cli.options import split_of
from fp4forge.core import files, reading
from fp4forge.core.errors import UsageError
from fp4forge.core.text import shown
from fp4forge.kernels import gpus as gpu

if TYPE_CHECKING:
    from fp4forge.serve.settings import ServerSettings, Workload

# Options that mean one model.
_OF_ONE = {
    "name": "--name",
    "speculative": "--speculative",
    "draft": "--draft",
    "lora": "--lora",
    "recipe": "--recipe",
}


def shares(
    models: list[Path], o: dict[str, Any], product: gpu.Product, workload: Workload
) -> list[float]:
    """--gpu-memory-utilization of each model's server, in their order.

    Raises:
        FitError: the GPU does not hold them all.
    """
    from fp4forge.checkpoint import tensors
    from fp4forge.serve import model_sizes, sharing
    from fp4forge.serve.placing import WantedCapacity

    described = {
        _name(model): model_sizes.describe(tensors.read(model), o["kv_cache_dtype"])
        for model in models
    }
    wanted = WantedCapacity(
        context=workload.max_model_len,
        sequences=1,
        utilization=o["utilization"],
        batched_tokens=workload.max_num_batched_tokens,
    )
    found = sharing.divide(described, product, wanted)
    return [found[_name(model)] for model in models]


def text_of(servers: list[ServerSettings], extras: tuple[str, ...]) -> str:
    """The compose file, checked by Docker Compose if it is here."""
    from fp4forge.inputs import service_images
    from fp4forge.serve import manifest

    images = service_images.images()
    text = manifest.render_together(servers, images.gateway.reference, images if extras else None)
    checked = manifest.validate(text)
    note = f"checked by {checked} config" if checked else "no docker compose here to check it"
    click.echo(f"compose: {note}", err=True)
    return text


def write(servers: list[ServerSettings], output: Path, extras: tuple[str, ...]) -> None:
    """Writes the compose file last, after what lies beside it; if one fails, nothing new stays.

    Args:
        servers: in the order in which they start.
        output: the compose file.
        extras: the values of --with.

    Raises:
        OSError: a file cannot be written.
        UsageError: what has the name of Grafana's password is not a file.
    """
    from fp4forge.serve import gateway, manifest, monitoring
    from fp4forge.serve.settings import PORT

    text = text_of(servers, extras)
    parent, name = output.absolute().parent, manifest.group_name(servers)
    beside = [gateway.folder(parent, name)]
    beside += [monitoring.folder(parent, name)] if extras else []
    new = [path for path in (*reversed(parent.parents), parent, *beside) if not path.exists()]
    try:
        if extras:
            monitoring.write(parent, name, [f"{server.name}:{PORT}" for server in servers])
        gateway.write(parent, name, servers)
        files.replace(output, text, 0o644)
    except BaseException:
        for path in new:
            shutil.rmtree(path, ignore_errors=True)
        raise
    for path in beside:
        click.echo(f"beside it: {shown(path, 300)}", err=True)


def check_output(output: Path) -> None:
    """Refuses a compose file that nothing can lie beside.

    Raises:
        UsageError: it is standard output, a device or a pipe.
    """
    if str(output) == "-" or (os.path.lexists(output) and not reading.is_file(output)):
        raise UsageError(
            f"--output {shown(output, 200)} is not a plain file",
            rule="folders that the compose file mounts are written beside it",
            remedy="--output DIR/compose.yaml",
        )


def check_options(number: int, o: dict[str, Any]) -> None:
    """Refuses options that do not go with several models.

    Args:
        number: how many models there are.
        o: the options of ``serve compose`` or ``serve up``; --utilization is what the servers have
            together, --listen and --port are the gateway's.

    Raises:
        UsageError: as described.
    """
    given = [flag for name, flag in _OF_ONE.items() if o.get(name)]
    if given:
        raise UsageError(
            f"{given[0]} goes with one model, and {number} are given",
            rule="several models are served by their families' flags, named for their folders",
            remedy="a compose file for each model",
        )
    if split_of(o).gpus > 1:
        raise UsageError(
            "several models on several GPUs are not written",
            rule="the models share one GPU",
            remedy="a compose file for each model; device_ids in it choose the GPU",
        )


def check(models: list[Path], o: dict[str, Any]) -> None:
    """Refuses models and options that do not go together.

    Args:
        models: folders on this machine.
        o: as in ``check_options``.

    Raises:
        UsageError: as described.
    """
    check_options(len(models), o)
    for model in models:
        if not (reading.is_folder(model) and any(model.glob("*.safetensors"))):
            raise UsageError(
                f"{shown(model, 200)} has no weights on this machine",
                rule="the GPU's memory is divided by the sizes of the checkpoints",
            )

    check_names([_name(model) for model in models])


def check_names(names: list[str]) -> None:
    """Refuses models of one name, or of names that differ in what no container's name can have."""
    if len(set(names)) < len(names):
        raise UsageError(
            f"two models would be named {max(names, key=names.count)}",
            rule="each model has a name of its own: that of its folder",
            remedy="rename a folder, or give a symbolic link to it",
        )


def _name(model: Path) -> str:
    return shown(model.absolute().name, 200)


def product(o: dict[str, Any]) -> gpu.Product:
    """The GPU whose memory is divided.

    Raises:
        UsageError: --gpu is missing, and --arch has several products.
    """
    if o["product"]:
        return gpu.product(o["product"])
    chips = {chip.name for chip in gpu.target(o["arch"]).gpus}
    found = [known for known in gpu.PRODUCTS.values() if known.gpu in chips]
    if len(found) != 1:
        raise UsageError(
            f"which GPU? --arch {o['arch']} has several products",
            rule="one GPU's memory is divided: --gpu PRODUCT",
            remedy="--gpu " + ", ".join(known.name for known in found),
        )
    return found[0]
