"""The server that a command's options ask for: its release and image, its settings, what fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp4forge.cli import together
from fp4forge.cli.options import resolve_registry, split_of, trust_of
from fp4forge.core import reading
from fp4forge.core.console import Console
from fp4forge.core.errors import CheckpointError, UsageError
from fp4forge.kernels import gpus as gpu

if TYPE_CHECKING:
    from fp4forge.checkpoint.tensors import Checkpoint
    from fp4forge.kernels.gpus import Product
    from fp4forge.plan.request import DecidedRequest
    from fp4forge.serve.settings import ServerSettings, ServerWishes


def decided(o: dict[str, Any]) -> DecidedRequest:
    """The image that the options name, with every default."""
    from fp4forge.inputs import defaults, release
    from fp4forge.plan.request import ImageRequest, decide

    usual = defaults.table().image
    found = decide(
        ImageRequest(
            arch=o["arch"],
            release=o["release"],
            variant=o["variant"] or usual.variant,
            strategy=o["strategy"] or usual.strategy,
            base=o["base"] or usual.base,
            platform=o["platform"],
        )
    )
    release.load(found.release).strategy(found.strategy)
    return found


def published(o: dict[str, Any]) -> tuple[str, str, str]:
    """The moving tag of the image that the options name, its release, and its vLLM version."""
    from fp4forge.inputs import bases, release
    from fp4forge.plan import tags

    chosen = decided(o)
    tag = tags.moving(
        chosen.release,
        o["arch"],
        chosen.variant,
        chosen.strategy,
        bases.load(chosen.base).slug,
        chosen.platform,
    )
    return tag, chosen.release, release.load(chosen.release).vllm_version


_NOT_LOADED = {"needs-newer-vllm", "unknown-architecture"}  # findings of checkpoint inspect


def server(o: dict[str, Any], *, own_image: bool) -> ServerSettings:
    """The settings that the options of ``compose`` mean, after the model was inspected and sized.

    Args:
        o: the options.
        own_image: whether the user named the image: its vLLM may be patched.

    Raises:
        ForgeError: the model cannot be served so, or no image is known.
    """
    from fp4forge.checkpoint import tensors
    from fp4forge.serve import settings

    found_tag, release, version = published(o)
    chosen = wishes(o, version)
    if reading.is_folder(o["model"]) and any(o["model"].glob("*.safetensors")):
        # Otherwise it is on the host that serves, and the manifest says that it was not checked.
        read = tensors.read(o["model"])
        chosen = _fitting(read, chosen, o)
        chosen = _wishes_inspected(read, chosen, release, own_image)
    image = checked_image(named_image(o, found_tag), o)
    return with_recipe(settings.server(o["model"], image, chosen), o, chosen)


def check_key_file(path: Path | None) -> None:
    """Refuses an --api-key-file that is not there.

    Raises:
        UsageError: it is not a file.
    """
    if path and not reading.is_file(path):
        raise UsageError(
            f"--api-key-file {path} is not a file",
            rule="a file on this machine with the key and nothing else",
        )


def on_this_machine(
    o: dict[str, Any], number: int, console: Console, *, own_image: bool
) -> ServerSettings:
    """The same for a server that starts here; its notes are shown.

    Args:
        o: the options of ``up``.
        number: GPUs of this machine.
        console: shows the notes.
        own_image: as in ``server``.

    Raises:
        UsageError: this machine has too few GPUs.
        ForgeError: as ``server``.
    """
    found = server(o, own_image=own_image)
    for note in found.notes:
        console.say(f"  note  {note}")
    if number < found.gpus:
        raise UsageError(
            f"the split needs {found.gpus} GPUs, and this machine has {number}",
            rule="a server runs on the GPUs of one machine",
        )
    return found


def utilization(o: dict[str, Any], product: Product, weights: int, console: Console) -> float:
    """--gpu-memory-utilization: as given, or as much as this machine has free.

    Args:
        o: the options of ``up``.
        product: this machine's GPU.
        weights: bytes of the models' tensors.
        console: shows what is free.

    Raises:
        FitError: what is free does not hold the weights.
    """
    from fp4forge.launch import this_machine

    if o["utilization"] is not None:
        return float(o["utilization"])
    found, said = this_machine.share(product, this_machine.UTILIZATION, weights)
    if said:
        console.say(f"  note  {said}")
    return found


def several(models: list[Path], o: dict[str, Any], *, own_image: bool) -> list[ServerSettings]:
    """The settings of each model's server with its share of one GPU, in the order of their start.

    Args:
        models: as ``together.check`` accepted them.
        o: the options of ``compose`` or ``up``.
        own_image: as in ``server``.

    Raises:
        FitError: the GPU does not hold them all.
        UsageError: two servers have one name, or it is not clear which GPU is meant.
    """
    from fp4forge.serve import settings

    product = together.product(o)
    workload = settings.workload(wishes(o, published(o)[2]))
    servers = []
    for model, share in zip(models, together.shares(models, o, product, workload), strict=True):
        mine = o | {"model": model, "utilization": share, "product": product.name}
        servers.append(server(mine, own_image=own_image))
        name = servers[-1].served_name
        click.echo(f"{name}: {share:.1%} of the memory of one {product.title}", err=True)
        for note in servers[-1].notes:
            click.echo(f"note: {name}: {note}", err=True)
    together.check_names([server.name for server in servers])
    return servers


def named_image(o: dict[str, Any], tag: str) -> str:
    """The image that the options name, or the tag in their registry.

    Raises:
        UsageError: neither is given.
    """
    from fp4forge.oci import reference

    if o["image"]:
        return str(o["image"])
    registry = resolve_registry(o["registry"])
    if not registry:
        raise UsageError(
            "which image? neither --image nor --registry is given",
            rule="the manifest names the image by digest",
            remedy=f"--registry HOST:PORT looks up {o['repo']}:{tag} there",
        )
    return f"{reference.repository(registry, o['repo'])}:{tag}"


def checked_image(name: str, o: dict[str, Any]) -> str:
    """The image by its digest; its signatures are checked if the options demand one.

    Raises:
        SignatureError: it is not signed as the options demand.
    """
    from fp4forge.publish import signing
    from fp4forge.serve import manifest

    image = manifest.by_digest(name)
    trust = trust_of(o["key"], o["identity"], o["issuer"])
    if trust:
        console = Console()
        with console.step("signed") as step:
            found = signing.check(*signing.locate(image), trust, step.report)
            step.detail = found.text()
    return image


def wishes(o: dict[str, Any], version: str) -> ServerWishes:
    """What the options ask of a server."""
    from fp4forge.serve import kv_cache_types, lora
    from fp4forge.serve.settings import ServerWishes

    kv_cache_types.available(o["kv_cache_dtype"], version)

    target = tuple(chip.name for chip in gpu.target(o["arch"]).gpus)
    chips = (gpu.product(o["product"]).gpu,) if o["product"] else ()
    if chips and chips[0] not in target:
        raise UsageError(
            f"--gpu {o['product']} is {chips[0]}, and --arch is {o['arch']}",
            rule="the image must be for the GPU that it runs on",
            remedy=f"--arch {chips[0]}",
        )
    return ServerWishes(
        workload=o["workload"],
        version=version,
        gpus=chips or target,
        split=split_of(o),
        utilization=o["utilization"],
        listen=o["listen"],
        port=o["port"],
        key_file=o["api_key_file"],
        served_name=o["name"],
        speculative=o["speculative"],
        drafter=o["draft"],
        adapters=lora.parse(o["lora"]),
        offline=o["offline"],
        kv_cache=o["kv_cache_dtype"],
    )


def with_recipe(found: ServerSettings, o: dict[str, Any], chosen: ServerWishes) -> ServerSettings:
    """The server with the flags of ``--recipe`` for the product that the options mean, if any.

    Raises:
        UsageError: ``--feature`` or ``--recipe-variant`` without ``--recipe``.
        ForgeError: the recipe is not one, or does not fit.
    """
    from fp4forge.serve import recipes

    if not o["recipe"]:
        if o["features"] or o["recipe_variant"]:
            option = "--feature" if o["features"] else "--recipe-variant"
            rule = "features and variants are a recipe's"
            raise UsageError(f"{option} without --recipe", rule=rule)
        return found
    products = [name for name, p in gpu.PRODUCTS.items() if p.gpu in chosen.gpus and p.recipe]
    product = o["product"] or (products[0] if len(products) == 1 else None)
    read = recipes.read(o["recipe"])
    settings = recipes.choose(read, o["recipe_variant"], o["features"], product)
    return recipes.apply(found, settings)


def _fitting(read: Checkpoint, chosen: ServerWishes, o: dict[str, Any]) -> ServerWishes:
    """The wishes with what was assumed of the model's memory.

    Raises:
        FitError: no product that the options mean holds the model.
    """
    from dataclasses import replace

    from fp4forge.checkpoint import tensors
    from fp4forge.serve import model_sizes as models
    from fp4forge.serve import placing, settings

    workload = settings.workload(chosen)
    described = models.describe(read, chosen.kv_cache)
    if chosen.drafter and any(chosen.drafter.glob("*.safetensors")):
        size = sum(tensor.size for tensor in tensors.read(chosen.drafter).tensors.values())
        described = replace(described, weights=described.weights + size)
    products = [
        product
        for product in gpu.PRODUCTS.values()
        if product.name == o["product"] or (not o["product"] and product.gpu in chosen.gpus)
    ]
    placing.check(
        described,
        products,
        placing.WantedCapacity(
            context=min(workload.max_model_len, described.max_context or workload.max_model_len),
            sequences=1,
            utilization=chosen.utilization,
            batched_tokens=workload.max_num_batched_tokens,
        ),
        chosen.split,
    )
    return replace(chosen, remarks=(described.assumed,) if described.assumed else ())


def _wishes_inspected(
    read: Checkpoint, chosen: ServerWishes, release: str, own_image: bool
) -> ServerWishes:
    """The wishes with what an inspection of the checkpoint adds.

    Raises:
        CheckpointError: this release's vLLM does not load the checkpoint. Of another image than
            this project's only a remark is made: its vLLM may be patched.
    """
    from dataclasses import replace

    from fp4forge.checkpoint import inspect as inspecting

    console = Console()
    with console.step("inspect") as step:
        found = inspecting.judge(read, step.report, release)
        step.detail = found.format
    errors = [f for f in found.findings if f.severity == inspecting.ERROR]
    older = [f for f in errors if f.id in _NOT_LOADED]
    if older and not own_image:
        raise CheckpointError(
            f"release {release} does not load {read.folder.name} ({found.format})",
            rule=inspecting.verdict(found),
            remedy=f"--release {found.releases[-1]}"
            if found.releases
            else "no release of this project loads it yet",
        )
    remarks = [*chosen.remarks]
    remarks += [
        f"vLLM {chosen.version} does not load this checkpoint: {'; '.join(f.where)}" for f in older
    ]
    wrong = sorted({f.id for f in errors} - _NOT_LOADED)
    if wrong:
        remarks.append(f"checkpoint inspect finds errors: {', '.join(wrong)}")
    if found.patches:
        remarks.append("the checkpoint needs the awq image's patches: " + ", ".join(found.patches))
    return replace(chosen, quantisation=found.flag, remarks=tuple(remarks))
