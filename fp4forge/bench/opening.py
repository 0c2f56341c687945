"""Opens a run: who is measured, which points it can take, and what an earlier run left."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import fp4forge
from fp4forge.bench import extras, identity, suite_run
from fp4forge.bench import result as results
from fp4forge.bench.load_command import LoadGenerator
from fp4forge.bench.result import BenchResult, MeasuredIdentity, Roofline
from fp4forge.bench.server import MeasuredServer, ServedModel, check_context
from fp4forge.bench.suite import NamedSuite
from fp4forge.bench.suite_run import SuiteRun
from fp4forge.core import reading
from fp4forge.core.errors import BenchError, UsageError
from fp4forge.kernels import gpus
from fp4forge.kernels.base import Progress

# What may differ between the two parts of a run that was resumed: nothing that a figure needs.
_FREE = ("processor", "patches")


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """The command's options."""

    url: str
    suite: NamedSuite
    folder: Path
    model: str = ""
    image: str = ""
    container: str = ""
    network: str = "host"
    max_context: int = 0
    checkpoint: Path | None = None
    gpu: str = ""
    allow_empty: bool = False


def start(wanted: BenchRequest, report: Progress) -> SuiteRun:
    """Everything that can be refused is refused here, before the first trial.

    Raises:
        ServingError: the server is not there, or has no such model.
        BenchError: a point is too long for it, or the folder has another run's result.
        UsageError: no image is known.
    """
    key = os.environ.get("OPENAI_API_KEY", "")
    report("asking the server")
    described = MeasuredServer(wanted.url, wanted.model, key).describe()
    server = MeasuredServer(wanted.url, described.model, key)
    left_out = _too_long(wanted, described)
    loads = [(load.name, load.context) for load in wanted.suite.loads() if load.kind == "chat"]
    check_context([entry for entry in loads if entry[0] not in left_out], described.context)
    name = wanted.container or identity.serving(wanted.url)
    found = identity.container(name) if name else None
    image = wanted.image or (found.image if found else "")
    if not image:
        raise UsageError(
            "no image to run vllm bench serve in: no container here publishes the server's port",
            rule="the load generator runs in an image with vLLM",
            remedy="give --image IMAGE, or --container NAME",
        )
    report("looking at the image")
    who = _measured_identity(wanted, server, described, found, image)
    client = LoadGenerator(image, wanted.network, _container_name(wanted.folder))
    result = _open_result(wanted, who)
    result.left_out |= left_out
    for table in wanted.suite.tables:
        if why := extras.why_not(server, table.kind):
            result.left_out[table.id] = f"the server cannot run it: {why}"
    result.load_seconds = found.load_seconds if found else None
    result.roofline = _roofline(wanted)
    return SuiteRun(server, client, wanted.suite, result, wanted.folder, report)


def _container_name(folder: Path) -> str:
    """One name for each folder: a client that a killed run left is found and removed."""
    return "fp4forge-bench-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]


def _too_long(wanted: BenchRequest, described: ServedModel) -> dict[str, str]:
    """Points beyond --max-context, with the reason."""
    most = wanted.max_context
    return {
        load.name: f"{load.context:,} tokens, --max-context is {most:,}"
        for load in wanted.suite.loads()
        if load.kind == "chat" and 0 < most < load.context
    }


def _measured_identity(
    wanted: BenchRequest,
    server: MeasuredServer,
    described: ServedModel,
    container: identity.MeasuredContainer | None,
    image: str,
) -> MeasuredIdentity:
    client = identity.image(image)
    served = identity.image(container.image) if container else None
    return MeasuredIdentity(
        model=described.model,
        model_root=described.root,
        model_hash=identity.checkpoint(wanted.checkpoint) if wanted.checkpoint else "",
        context=described.context,
        server_version=described.version,
        image=served.digest if served else "",
        plan=served.label("plan") if served else "",
        release=served.label("release") if served else "",
        variant=served.label("variant") if served else "",
        patches=identity.patches(served.reference) if served and served.label("plan") else (),
        flags=container.flags if container else (),
        gpus=identity.gpus(),
        processor=identity.processor(),
        client_image=client.digest,
        client_version=identity.client_version(client),
        thinking=extras.thinks(server),
        allow_empty=wanted.allow_empty,
    )


def _open_result(wanted: BenchRequest, who: MeasuredIdentity) -> BenchResult:
    """A new result, or the one that the folder has.

    Raises:
        BenchError: that one is of another suite, server or image.
    """
    if not reading.is_file(wanted.folder / results.FILE):
        return BenchResult(
            suite=wanted.suite.name,
            suite_hash=wanted.suite.hash,
            measured=wanted.suite.suite,
            fp4forge=fp4forge.__version__,
            date=suite_run.now(),
            identity=who,
        )
    found = results.load(wanted.folder)
    other = [
        f"{name}: {old} and {new}"
        for name, old, new in found.identity.differences(who)
        if name not in _FREE
    ]
    if found.suite_hash != wanted.suite.hash:
        other.insert(0, f"suite: {found.suite_hash[:12]} and {wanted.suite.hash[:12]}")
    if other:
        raise BenchError(
            f"{wanted.folder} has the result of another run ({'; '.join(other)[:600]})",
            rule="a run resumes with the same suite, server and image",
            remedy="give another --out, or remove that folder",
        )
    found.complete, found.left_out = False, {}
    return found


def _roofline(wanted: BenchRequest) -> Roofline | None:
    """What ``serve fit`` says of one stream, if checkpoint and GPU are given."""
    if not wanted.checkpoint or not wanted.gpu:
        return None
    from fp4forge.serve import memory, model_sizes

    product = gpus.product(wanted.gpu)
    described = model_sizes.read(wanted.checkpoint, "fp8_e4m3")
    contexts = [2**power for power in range(7, 18)]
    rates = {context: memory.decode_rate(described, product, 1, context) for context in contexts}
    return Roofline(gpu=product.title, rates=rates)
