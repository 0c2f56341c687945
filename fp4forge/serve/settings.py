"""What a server is started with: flags and environment that are right for a vLLM release.

Each has its reason, shown by --explain and as a comment in the manifest. Which release knows
which switch is in ``releases/switches`` and ``models/switches.yaml``.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp4forge.checkpoint import config as configs
from fp4forge.core import reading
from fp4forge.core.errors import UsageError
from fp4forge.core.limits import INPUT_BYTES
from fp4forge.core.text import steers
from fp4forge.image.render import UID
from fp4forge.kernels.gpus import PRODUCTS
from fp4forge.models import family
from fp4forge.models.switch_history import left_out
from fp4forge.serve import flags, kv_cache_types, lora, speculation
from fp4forge.serve.memory import check_share
from fp4forge.serve.setting import ServerSetting
from fp4forge.serve.split import ONE, GpuSplit

PORT = 8000
MODEL_DIR = "/models"
CACHE_DIR = "/home/vllm/.cache"
# Compilers that keep their results outside ~/.cache by default, which a restart empties.
_COMPILERS = {"TRITON_CACHE_DIR": "triton", "HUMMING_CACHE_DIR": "humming"}
KEY_FILE = "/run/secrets/api_key"
KEY_VARIABLE = "VLLM_API_KEY_FILE"  # read by the image's entrypoint
SHM_GB = 8
PIDS = 16384  # processes and threads: vLLM's, and those of compilers at the first start
HOST_GB = 64  # beside a GPU of its own memory; on unified memory what the product has
START_MINUTES = 10
# A server that is stopped finishes its requests (vllm/v1/engine/core.py, "drain"); its processes
# then need some seconds to end.
FINISH_SECONDS = 60
STOP_SECONDS = FINISH_SECONDS + 15
_CACHES = {kv_cache_types.DEFAULT: "twice the tokens of BF16; the format by name"}
LOOPBACK = "127.0.0.1"
LOOPBACKS = (LOOPBACK, "::1")


@dataclass(frozen=True)
class Workload:
    """One row of the reference card's table; lengths and batches in tokens."""

    name: str
    card: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int | None = None


# "Workload-tuned configs" of the card; the batch of its second benchmark for throughput.
WORKLOADS = {
    w.name: w
    for w in (
        Workload("interactive", "Long-context (RAG, docs): few long conversations", 65536, 4),
        Workload("balanced", "Balanced: mixed chat and agents", 8192, 32),
        Workload("throughput", "Max throughput: many short agents", 2048, 256, 16384),
        Workload("long-context", "Max context: one stream, the whole window", 262144, 1),
    )
}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything a manifest needs."""

    name: str
    image: str
    model: str
    drafter: str
    adapters: dict[str, str]
    served_name: str
    family: str
    gpus: int
    listen: str
    port: int
    key_file: str
    version: str
    workload: Workload
    flags: tuple[ServerSetting, ...]
    environment: tuple[ServerSetting, ...]
    notes: tuple[str, ...]
    start_minutes: int
    stop_seconds: int
    shm_gb: int
    memory_gb: int
    pids: int
    data_parallel: int = 1  # ranks, each with requests of its own
    multi_node: bool = False  # one of several machines: the host's network, and locked memory
    rdma: bool = False
    headless: bool = False  # it answers no requests
    ray: str = ""  # its part in a cluster on Ray: a role of serve.ray

    @property
    def arguments(self) -> list[str]:
        """The command after the image: ``serve MODEL`` and its flags."""
        out = ["serve", MODEL_DIR + "/" + self.served_name]
        for flag in self.flags:
            out += flag.words
        return out

    def as_json(self) -> dict[str, Any]:
        """For --json and --explain."""
        from dataclasses import asdict

        return asdict(self) | {"arguments": self.arguments, "left_out": left_out()}


@dataclass(frozen=True, kw_only=True)
class ServerWishes:
    """What a server is to be, beside its model.

    Attributes:
        workload: one of WORKLOADS.
        version: vLLM's version in the image.
        gpus: the chips that it may run on (``kernels.gpus.GPUS``); none: any.
        split: how the model is divided over GPUs.
        utilization: --gpu-memory-utilization, 0.1 to 0.98.
        listen: the host's address that the port is published on.
        port: on the host.
        key_file: file on the host with the API's key.
        served_name: name in the API; None: the folder's.
        speculative: a mode of ``models.family.SPECULATIVE``, or None.
        drafter: the drafter's folder on the host.
        adapters: LoRA adapters' folders on the host, by name.
        offline: whether the server is kept from asking a hub.
        kv_cache: --kv-cache-dtype.
        quantisation: vLLM's option for the checkpoint's format, as an inspection found it; None:
            what config.json declares decides.
        remarks: what the inspection found that a reader of the manifest should know.
        finishes: whether a server that is stopped finishes its requests first; a part of several
            machines, which cannot without the others, does not.
    """

    workload: str = "interactive"
    version: str
    gpus: tuple[str, ...] = ()
    split: GpuSplit = ONE
    utilization: float = 0.85
    listen: str = LOOPBACK
    port: int = PORT
    key_file: Path | None = None
    served_name: str | None = None
    speculative: str | None = None
    drafter: Path | None = None
    adapters: dict[str, Path] = field(default_factory=dict)
    offline: bool = False
    kv_cache: str = kv_cache_types.DEFAULT
    quantisation: str | None = None
    remarks: tuple[str, ...] = ()
    finishes: bool = True


def server(model: Path, image: str, wishes: ServerWishes) -> ServerSettings:
    """The settings of a server.

    Args:
        model: the checkpoint's folder on the host that serves.
        image: reference, by digest if it was resolved.
        wishes: what it is to be.

    Raises:
        UsageError: a value that cannot be used, with the rule.
        CheckpointError: the folder's config.json cannot be read.
    """
    chosen = workload(wishes)
    folder, served = _mounted_path(model, "--model"), _served_name(model, wishes)
    read = os.path.lexists(model)
    config = configs.read(model) if read else configs.ModelConfig()
    _check_key_file(wishes.key_file)
    if served in wishes.adapters:
        raise UsageError(
            f"--lora {served} has the model's own name in the API", rule="names differ"
        )
    name = config.family
    cache = kv_cache_types.check(wishes.kv_cache, wishes.version, wishes.gpus, name)
    known = family.get(name)
    limit = config.text.max_position_embeddings
    length = min(chosen.max_model_len, limit) if limit else chosen.max_model_len
    found = [ServerSetting("--served-model-name", served, "the model's name in the API")]
    found += flags.quantisation(model, config, wishes.quantisation)
    found += flags.of_family(known, config, wishes.version, wishes.gpus, "flag")
    found += [
        ServerSetting(
            "--kv-cache-dtype", wishes.kv_cache, _CACHES.get(wishes.kv_cache, "as asked for")
        ),
        *flags.of_split(wishes.split, config),
        ServerSetting("--max-model-len", str(length), f"workload {chosen.name}: {chosen.card}"),
        ServerSetting("--max-num-seqs", str(chosen.max_num_seqs), f"workload {chosen.name}"),
    ]
    if chosen.max_num_batched_tokens:
        found.append(
            ServerSetting(
                "--max-num-batched-tokens",
                str(chosen.max_num_batched_tokens),
                f"workload {chosen.name}: larger prefill chunks",
            )
        )
    found += [
        ServerSetting(
            "--gpu-memory-utilization",
            f"{wishes.utilization:g}",
            "the rest is the driver's, and on unified memory the host's programs'",
        ),
        ServerSetting(
            "--enable-chunked-prefill", "", "long prompts come in pieces between decodes"
        ),
        ServerSetting(
            "--enable-prefix-caching", "", "a shared beginning of prompts is computed once"
        ),
        *flags.parsers(known, wishes.version),
        *speculation.flags(
            config, model, wishes.speculative, wishes.drafter, wishes.version, wishes.gpus
        ),
        *lora.flags(wishes.adapters, config, wishes.split),
        ServerSetting("--host", "0.0.0.0", "inside the container"),  # noqa: S104
        ServerSetting("--port", str(PORT), "inside the container; the health check asks there"),
    ]
    if wishes.finishes:
        why = "a server that is stopped finishes its requests first"
        found.append(ServerSetting("--shutdown-timeout", str(FINISH_SECONDS), why))
    return ServerSettings(
        # A DNS label (RFC 1035), as Kubernetes wants for a Service; Docker takes it too.
        name=re.sub("[^a-z0-9]+", "-", f"vllm-{served.lower()}")[:63].rstrip("-"),
        image=image,
        model=folder,
        drafter=_mounted_path(wishes.drafter, "--draft") if wishes.drafter else "",
        adapters={name: _mounted_path(path, "--lora") for name, path in wishes.adapters.items()},
        served_name=served,
        family=name,
        gpus=wishes.split.gpus,
        data_parallel=wishes.split.data,
        listen=_listen_address(wishes.listen),
        port=wishes.port,
        key_file=_mounted_path(wishes.key_file, "--api-key-file") if wishes.key_file else "",
        version=wishes.version,
        workload=chosen,
        flags=tuple({flag.name: flag for flag in found}.values()),  # the last of a name counts
        environment=(
            *_server_environment(wishes),
            *flags.of_family(known, config, wishes.version, wishes.gpus, "variable"),
        ),
        notes=(*_manifest_notes(known, name, wishes, read), *([cache] if cache else [])),
        start_minutes=START_MINUTES,
        stop_seconds=STOP_SECONDS,
        shm_gb=SHM_GB,
        memory_gb=_host_memory(wishes.gpus),
        pids=PIDS,
    )


def workload(wishes: ServerWishes) -> Workload:
    """The workload that is wished for.

    Raises:
        UsageError: there is none of that name, or --utilization cannot be used.
    """
    if wishes.workload not in WORKLOADS:
        raise UsageError(
            f"--workload {wishes.workload!r} is not known", rule="one of " + ", ".join(WORKLOADS)
        )
    check_share(wishes.utilization)
    return WORKLOADS[wishes.workload]


def _absolute(path: Path) -> Path:
    """The path from the root. Kubernetes refuses ``..`` in it; other links stay as they are."""
    return path.resolve() if ".." in path.parts else path.absolute()


def _mounted_path(path: Path, flag: str) -> str:
    """A path of the host as it is mounted."""
    absolute = str(_absolute(path))
    if steers(absolute):
        raise UsageError(
            f"{flag} {absolute!r} cannot be mounted",
            rule="a path without control characters",
            remedy="give another path; a symbolic link will do",
        )
    return absolute


def _served_name(model: Path, wishes: ServerWishes) -> str:
    served = wishes.served_name or _absolute(model).name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", served):
        raise UsageError(
            f"the served name {served!r} cannot be used",
            rule="a letter or digit first, then letters, digits, '.', '_' and '-'; at most 128",
            remedy="give another --name" if wishes.served_name else "give --name",
        )
    return served


def _check_key_file(file: Path | None) -> None:
    """Refuses a key's file without a usable key; one on another host cannot be seen here."""
    if file and os.path.lexists(file):
        words = reading.text(file, UsageError, INPUT_BYTES, "--api-key-file").split()
        if len(words) != 1:
            raise UsageError(
                f"--api-key-file {str(file)!r} "
                + (f"holds {len(words)} words" if words else "is empty"),
                rule="the file holds the key and nothing else",
            )
        if steers(words[0]):
            raise UsageError(
                f"--api-key-file {str(file)!r} holds a control character",
                rule="a key is sent in a header, which takes none",
                remedy="write the key again, as plain text",
            )


def _reads(file: Path, user: int) -> bool:
    """Whether a user of a container, who is in no group of the file's, reads it by its mode."""
    found = file.stat()
    return bool(found.st_mode & (stat.S_IRUSR if found.st_uid == user else stat.S_IROTH))


def _listen_address(text: str) -> str:
    try:
        found = ipaddress.ip_address(text)
        if "%" not in text:
            return str(found)
        raise UsageError(
            f"--listen {text!r} has a zone",
            rule="Docker publishes a port on an address alone",
            remedy="another address of this host, or :: for all of them",
        )
    except ValueError:
        raise UsageError(
            f"--listen {text!r} is not an address",
            rule="an address of this host: 127.0.0.1, 0.0.0.0 for all of them, or one of its own",
        ) from None


def _server_environment(wishes: ServerWishes) -> list[ServerSetting]:
    out = [
        ServerSetting(
            "PYTORCH_CUDA_ALLOC_CONF",
            "expandable_segments:True",
            "less fragmentation when prompts differ in length",
        ),
        *(
            ServerSetting(
                variable,
                f"{CACHE_DIR}/{folder}",
                "kernels compiled once are found after a restart, in the cache volume",
            )
            for variable, folder in _COMPILERS.items()
        ),
    ]
    if wishes.key_file:
        why = "the API's key; the entrypoint reads the file, so that no list of settings has it"
        out.append(ServerSetting(KEY_VARIABLE, KEY_FILE, why))
    if wishes.offline:
        out.append(
            ServerSetting("HF_HUB_OFFLINE", "1", "this site has no hub: nothing is asked of one")
        )
    return out


def published(listen: str, port: int) -> str:
    """Address and port on the host; IPv6 addresses in brackets."""
    return f"[{listen}]:{port}" if ":" in listen else f"{listen}:{port}"


def _host_memory(gpus: tuple[str, ...]) -> int:
    """GiB of host memory that the container may use."""
    unified = [p.memory_mib // 1024 for p in PRODUCTS.values() if p.gpu in gpus and p.unified]
    return max([HOST_GB, *unified])


def _manifest_notes(
    known: family.Family, name: str, wishes: ServerWishes, read: bool
) -> Iterator[str]:
    """What a reader of the manifest should know."""
    if not read:
        yield "the model's folder is not on this machine: its family and its size were not checked"
    elif not name:
        yield (
            "no file of models/families covers this model: it is served with neutral flags, without"
            " parsers for tool calls and reasoning"
        )
    elif not known.tool_parser:
        parsers = next((q.fix for q in known.quirks if q.id == "parsers-by-checkpoint"), "")
        yield f"no parsers are written for {known.title}" + (
            f": choose by {parsers}" * bool(parsers)
        )
    elif known.chat_template:
        yield f"for tool calls: {known.chat_template}"
    yield from wishes.remarks
    for quirk in known.quirks:
        if quirk.until and quirk.holds(wishes.version):
            yield f"vLLM {wishes.version}: {quirk.text}" + (f"; {quirk.fix}" if quirk.fix else "")
    if wishes.key_file and not os.path.lexists(wishes.key_file):
        yield "the key's file is not on this machine: it was not checked"
    elif wishes.key_file and not _reads(wishes.key_file, UID):
        yield (
            f"the container's user {UID} cannot read the key's file, so the server will not start:"
            " chmod 644 it, in a folder that others cannot enter"
        )
    if wishes.listen not in LOOPBACKS and not wishes.key_file:
        yield (
            f"anyone who reaches {published(wishes.listen, wishes.port)} can use the model; with"
            " --api-key-file FILE it asks for a key"
        )
