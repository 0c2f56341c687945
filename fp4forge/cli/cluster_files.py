"""What ``serve cluster`` decides and writes before any machine is asked."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from fp4forge.cli.options import split_of
from fp4forge.core import files
from fp4forge.core.console import print_json
from fp4forge.core.errors import FitError, UsageError

if TYPE_CHECKING:
    from fp4forge.kernels.gpus import Product
    from fp4forge.launch.cluster.division import ClusterOption
    from fp4forge.launch.cluster.hosts import ClusterHost
    from fp4forge.plan.request import DecidedRequest
    from fp4forge.serve.settings import ServerSettings
    from fp4forge.serve.split import GpuSplit

# Kubernetes, "Labels and Selectors": a DNS name, a slash, and a name of at most 63 characters.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_RESOURCE = re.compile(
    rf"(?=[^/]{{1,253}}/){_LABEL}(?:\.{_LABEL})*/[A-Za-z0-9](?:[A-Za-z0-9._-]{{0,61}}[A-Za-z0-9])?"
)

GPU_RESOURCE = "nvidia.com/gpu"  # of NVIDIA's device plugin; the manifests have it


def fit(o: dict[str, Any], machines: int) -> tuple[list[ClusterOption], ClusterOption]:
    """Every way to divide the model over the machines, and the best one that fits.

    Raises:
        FitError: none does, or the split that was asked for is not possible.
    """
    from fp4forge.cli import wanted_server
    from fp4forge.kernels import gpus
    from fp4forge.launch.cluster import division
    from fp4forge.serve import kv_cache_types, link, placing, settings
    from fp4forge.serve import model_sizes as models
    from fp4forge.serve.split import ONE

    kv_cache_types.available(o["kv_cache_dtype"], wanted_server.published(o)[2])
    product = gpus.product(o["product"])
    described = models.read(o["model"], o["kv_cache_dtype"])
    chosen = settings.workload(settings.ServerWishes(workload=o["workload"], version="0", gpus=()))
    wanted = placing.WantedCapacity(
        context=min(chosen.max_model_len, described.max_context or chosen.max_model_len),
        sequences=1,
        utilization=o["utilization"],
        batched_tokens=chosen.max_num_batched_tokens,
    )
    asked = split_of(o)
    _check_ranks(asked, machines, o)
    found = division.options(described, product, machines, wanted, link.ROCE, asked.data)
    if asked != ONE:
        found = [one for one in found if one.split == asked]
        if not found:
            raise FitError(
                f"{asked.text} does not use one GPU of each of {machines} machines, or the"
                " model's widths do not allow it",
                rule="tensor times pipeline times data parallelism is the number of machines",
                remedy="leave the split out: the fastest that fits is taken",
            )
    return found, division.choose(found, product, machines)


def _check_ranks(asked: GpuSplit, machines: int, o: dict[str, Any]) -> None:
    """Refuses data parallelism that the machines are not started with.

    Raises:
        UsageError: a rank would need several machines, or Ray or Kubernetes is to start them.
    """
    if asked.data == 1:
        return
    if not asked.experts:
        raise UsageError(
            "--data-parallel over machines needs --expert-parallel",
            rule="each machine holds a part of the experts, and a copy of everything else",
            remedy="add --expert-parallel, or leave --data-parallel out",
        )
    if asked.data != machines:
        raise UsageError(
            f"--data-parallel {asked.data} over {machines} machines",
            rule="each machine is one rank: it holds all but the other ranks' experts",
            remedy=f"--data-parallel {machines}, or leave it out",
        )
    if o["kind"] != "compose":
        raise UsageError(
            f"--data-parallel does not go with --format {o['kind']}",
            rule="the ranks are started over ssh, each on a machine of its own",
            remedy="leave it out, or use --hosts without --format",
        )
    if o["backend"] != "mp":
        raise UsageError(
            f"--data-parallel does not go with --backend {o['backend']}",
            rule="vLLM starts its own ranks",
            remedy="--backend mp",
        )


def server(o: dict[str, Any], chosen: ClusterOption) -> tuple[ServerSettings, str, str]:
    """The settings with the image by digest, the image as named, and its name on machines."""
    from fp4forge.cli import wanted_server
    from fp4forge.kernels import gpus
    from fp4forge.oci import reference
    from fp4forge.serve import settings

    tag, _, version = wanted_server.published(o)
    if o["release"] or not o["image"]:  # of another image nothing is known
        _check_nccl(wanted_server.decided(o), gpus.product(o["product"]))
    image = wanted_server.named_image(o, tag)
    by_digest = wanted_server.checked_image(image, o)
    digest = reference.parse(by_digest).digest
    wishes = replace(wanted_server.wishes(o, version), split=chosen.split, finishes=False)
    found = wanted_server.with_recipe(settings.server(o["model"], by_digest, wishes), o, wishes)
    name = f"fp4forge.local/{found.name}:{digest.removeprefix('sha256:')[:12]}"
    return found, image, name


def _check_nccl(decided: DecidedRequest, product: Product) -> None:
    """Refuses a release whose NCCL has a known fault on this GPU: machines talk through it.

    Raises:
        UsageError: its lock has such an NCCL.
    """
    from fp4forge.inputs import bases, locks
    from fp4forge.kernels import gpus
    from fp4forge.models import faults

    python = bases.load(decided.base).python
    name = locks.LockName(decided.release, decided.strategy, decided.platform, python)
    pins = dict(locks.pin(block) for block in locks.read(name).values())
    version = next((pins[name] for name in pins if name.startswith("nvidia-nccl")), "")
    for fault in faults.table().faults:
        ranged = fault.component == "nccl" and (fault.first_bad or fault.fixed_in)
        if ranged and fault.concerns(version) and fault.on(gpus.GPUS[product.gpu].label):
            raise UsageError(
                f"release {decided.release} has NCCL {version}: {fault.symptom}",
                rule=f"an NCCL without a known fault on a {product.title} ({fault.source})",
                remedy="--release with a newer one; build.py release list shows them",
            )


def has_extra(image: str, digest: str, name: str) -> bool | None:
    """Whether the image has what ``--with NAME`` adds, by its label; None if nothing says so."""
    from fp4forge.core.errors import ForgeError
    from fp4forge.oci import reference, registry

    try:
        labels = registry.image_labels(reference.parse(image).repository, digest)
    except ForgeError:
        return None
    if not labels or not all("io.fp4forge.extras" in each for each in labels):
        return None
    return all(name in each["io.fp4forge.extras"].split(",") for each in labels)


def check_ray(image: str, digest: str, version: str) -> None:
    """Refuses an image that has no Ray; if nothing says whether it has, a note says so.

    Raises:
        UsageError: it has none, or its vLLM needs more than Ray.
    """
    from fp4forge.serve import ray

    if version:
        ray.check(version)
    found = has_extra(image, digest, "ray")
    if found is None:
        click.echo("note: nothing says whether the image has Ray: its label is not known", err=True)
    elif not found:
        raise UsageError(
            f"{image} has no Ray",
            rule="Ray starts vLLM's workers from the image on every machine",
            remedy="build.py --with ray makes an image that has it, for --image; or --backend mp",
        )


def kubernetes(o: dict[str, Any]) -> None:
    """Prints a LeaderWorkerSet or a RayCluster."""
    from fp4forge.launch.cluster import division
    from fp4forge.oci import reference
    from fp4forge.serve import manifest, ray

    kind = o["kind"]
    if not o["model"] or not o["machines"]:
        raise UsageError(
            f"--format {kind}: which model, over how many machines?",
            rule=f"--format {kind} --model DIR --machines N",
        )
    name = o["rdma_resource"]
    if name is not None and not _RESOURCE.fullmatch(name):
        raise UsageError(
            f"--rdma-resource {name!r} is not the name of a resource in Kubernetes",
            rule="DOMAIN/NAME, such as rdma/hca",
        )
    if name == GPU_RESOURCE:
        raise UsageError(
            f"--rdma-resource {name!r} is the GPU, which every pod asks for already",
            rule="the name under which the cluster's device plugin offers RDMA devices",
            remedy="kubectl describe node lists a node's resources",
        )
    _, chosen = fit(o, o["machines"])
    whole, image, _ = server(o, chosen)
    if kind == "kuberay":
        check_ray(image, reference.parse(whole.image).digest, whole.version)
        whole = ray.settings(whole, ray.HEAD)
    more = {
        "size": o["machines"],
        "master_port": division.MASTER_PORT,
        "rdma_resource": name or "",
    }
    text = manifest.render(whole, kind, **more)
    if o["as_json"]:
        print_json({"manifest": text})
        return
    if o["output"]:
        files.replace(o["output"] / f"{kind}.yaml", text)
    else:
        click.echo(text, nl=False)


def dry_run(
    o: dict[str, Any], whole: ServerSettings, hosts: list[ClusterHost], options: list[ClusterOption]
) -> None:
    """Writes the files with placeholders for what only the machines know."""
    from fp4forge.launch.cluster import division
    from fp4forge.serve import manifest

    addresses = [host.address.rpartition("@")[2] for host in hosts]
    if not o["as_json"]:
        for option in options:
            fits = f"{option.sequences} sequences" if option.fits else "does not fit"
            click.echo(
                f"{option.split.text}: {fits}, at most {option.rate:.0f} tokens a second,"
                f" {option.link_bytes / 1e3:.0f} kB a token on the link",
                err=True,
            )
    texts = {}
    for number, address in enumerate(addresses):
        rank = division.ClusterRank(
            number=number,
            of=len(hosts),
            master=addresses[0],
            address=address,
            interface=o["interface"] or "INTERFACE",
        )
        made = division.server(whole, rank, o["backend"], "TOKEN")
        texts[address] = manifest.render(made, "compose")
    if o["output"]:
        for address, text in texts.items():
            files.replace(o["output"] / address / "compose.yaml", text)
            click.echo(f"{o['output'] / address / 'compose.yaml'}", err=o["as_json"])
    if o["as_json"]:
        print_json({"options": [asdict(option) for option in options], "files": texts})
    elif not o["output"]:
        for address, text in texts.items():
            click.echo(f"# ---- {address}\n{text}")
