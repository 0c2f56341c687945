"""What the doctor looks at: a container's inspection, its log, a compose file, a URL, the host."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp4forge.core.errors import ServingError, UsageError

PATCH_RECORD = "/opt/fp4forge/patches.json"
LEDGER = "/opt/fp4forge/ledger.json"


@dataclass(frozen=True)
class Mount:
    """One mount: place on the host (empty: a named volume) and in the container."""

    source: str
    target: str
    kind: str = "bind"


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi sees it; capability such as 12.1, memory in MiB (0: not told)."""

    name: str
    capability: str
    driver: str
    memory_mib: int = 0


@dataclass
class Evidence:
    """Everything known; what is unknown is None or empty, and no check speaks about it."""

    image: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    mounts: list[Mount] = field(default_factory=list)
    status: str = ""  # of the container: running, exited ...
    exit_code: int | None = None
    out_of_memory: bool = False
    health: str = ""
    shm_bytes: int | None = None
    ipc: str = ""
    gpu_requested: bool | None = None
    published: list[str] = field(default_factory=list)
    log: str | None = None
    url: str = ""
    gpus: list[Gpu] = field(default_factory=list)
    record: dict[str, Any] | None = None  # patches.json of the image
    ledger: dict[str, Any] | None = None  # ledger.json of the image
    memory_total: int | None = None  # of the host, bytes
    memory_free: int | None = None
    sources: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """vLLM's version: from the image's labels, else from its log."""
        label = self.labels.get("org.opencontainers.image.version", "")
        if label and "io.fp4forge.release" in self.labels:
            return label
        found = re.search(r"(?:LLM engine \(v|version )(\d+\.\d+\.\d+)", self.log or "")
        return found[1] if found else ""

    def flag(self, name: str) -> str | None:
        """A flag's value on the server's command line; empty for a bare flag, None if absent."""
        for number, word in enumerate(self.command):
            if word == name:
                following = self.command[number + 1 : number + 2]
                return following[0] if following and not following[0].startswith("--") else ""
            if word.startswith(name + "="):
                return word.split("=", 1)[1]
        return None


def from_inspect(data: Any) -> Evidence:
    """From ``docker inspect``'s JSON: the list that it prints, or one object of it.

    Raises:
        UsageError: it is something else.
    """
    found = data[0] if isinstance(data, list) and data else data
    if not isinstance(found, dict) or "Config" not in found:
        raise UsageError(
            "this is not the JSON of docker inspect CONTAINER",
            rule="a list with one object that has Config, State and Mounts",
        )
    config, host = found["Config"] or {}, found.get("HostConfig") or {}
    state = found.get("State") or {}
    out = Evidence(
        image=config.get("Image", ""),
        labels=config.get("Labels") or {},
        environment=dict(entry.split("=", 1) for entry in config.get("Env") or [] if "=" in entry),
        command=_words([*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]),
        mounts=[
            Mount(m.get("Source", ""), m.get("Destination", ""), m.get("Type", "bind"))
            for m in found.get("Mounts") or []
        ],
        status=state.get("Status", ""),
        exit_code=state.get("ExitCode"),
        out_of_memory=bool(state.get("OOMKilled")),
        health=(state.get("Health") or {}).get("Status", ""),
        shm_bytes=host.get("ShmSize"),
        ipc=host.get("IpcMode", ""),
        gpu_requested=bool(host.get("DeviceRequests")) or host.get("Runtime") == "nvidia",
        sources=["docker inspect"],
    )
    for ports in (host.get("PortBindings") or {}).values():
        out.published += [entry.get("HostPort", "") for entry in ports or []]
    return out


def from_compose(path: Path) -> Evidence:
    """From a compose file: the service that serves a model.

    Raises:
        UsageError: it cannot be read, or no service in it has an image.
    """
    import yaml

    try:
        data = yaml.load(path.read_text(), yaml.CSafeLoader)
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"--compose {path}: {error}", rule="a compose file") from None
    services = data.get("services") if isinstance(data, dict) else None
    usable = [s for s in (services or {}).values() if isinstance(s, dict) and s.get("image")]
    if not usable:
        raise UsageError(f"--compose {path}: no service has an image", rule="a compose file")
    service = next((s for s in usable if "vllm" in json.dumps(s)), usable[0])
    given = service.get("environment") or {}
    if isinstance(given, list):
        given = dict(str(e).split("=", 1) for e in given if "=" in str(e))
    command = service.get("command") or []
    devices = (
        ((service.get("deploy") or {}).get("resources") or {}).get("reservations") or {}
    ).get("devices")
    return Evidence(
        image=str(service["image"]),
        environment={str(k): str(v) for k, v in given.items()},
        command=_words(shlex.split(command) if isinstance(command, str) else command),
        mounts=[_compose_mount(entry, path.parent) for entry in service.get("volumes") or []],
        shm_bytes=_bytes(service.get("shm_size")),
        ipc=str(service.get("ipc", "")),
        gpu_requested=bool(devices) or service.get("runtime") == "nvidia" or "gpus" in service,
        sources=[f"compose file {path}"],
    )


def _compose_mount(entry: Any, folder: Path) -> Mount:
    if isinstance(entry, dict):
        return Mount(str(entry.get("source", "")), str(entry.get("target", "")),
                     str(entry.get("type", "bind")))  # fmt: skip
    source, _, target = str(entry).partition(":")
    target = target.partition(":")[0]
    if source.startswith(("./", "../")):
        source = str((folder / source).resolve())
    kind = "bind" if source.startswith(("/", "~")) else "volume"
    return Mount(str(Path(source).expanduser()) if kind == "bind" else source, target, kind)


def _bytes(text: Any) -> int | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)i?b?", str(text or "").lower())
    if not match:
        return None
    return int(float(match[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[match[2]])


def _words(command: list[Any]) -> list[str]:
    """A command's words, with those inside ``bash -c '...'`` taken apart."""
    words = [str(word) for word in command]
    if len(words) >= 3 and words[0] in ("bash", "sh", "/bin/bash", "/bin/sh") and "-c" in words[1]:
        try:
            return shlex.split(words[2].replace("\\\n", " "))
        except ValueError:
            return words
    return words


def container(name: str) -> Evidence:
    """From a container that the engine has, running or not.

    Raises:
        ServingError: there is no such container.
    """
    from docker.errors import NotFound

    from fp4forge.oci import engine

    client = engine.connect()
    try:
        found = client.containers.get(name)
    except NotFound:
        raise ServingError(
            f"there is no container {name!r}", remedy="docker ps --all lists them"
        ) from None
    out = from_inspect(found.attrs)
    out.log = found.logs(tail=20_000).decode(errors="replace")
    out.record = _file_of(found, PATCH_RECORD)
    out.ledger = _file_of(found, LEDGER)
    out.sources = [f"container {name}, its log and its image"]
    ports = found.attrs.get("NetworkSettings", {}).get("Ports") or {}
    addresses = [entry for entries in ports.values() for entry in entries or []]
    if addresses:
        out.url = f"http://127.0.0.1:{addresses[0]['HostPort']}"
    elif out.ipc and (found.attrs.get("HostConfig") or {}).get("NetworkMode") == "host":
        out.url = f"http://127.0.0.1:{out.flag('--port') or 8000}"
    return out


def _file_of(found: Any, path: str) -> dict[str, Any] | None:
    """A JSON file of a container; what the image put there, mounts aside."""
    from docker.errors import APIError

    try:
        stream, _ = found.get_archive(path)
    except APIError:
        return None
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        member = archive.extractfile(Path(path).name)
        data: dict[str, Any] = json.loads(member.read()) if member else {}
    return data


def host(out: Evidence) -> None:
    """Adds what this machine tells: its memory, and its GPUs if nvidia-smi is there."""
    text = Path("/proc/meminfo").read_text()
    sizes = {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(\w+):\s+(\d+) kB", text, re.M)}
    out.memory_total, out.memory_free = sizes.get("MemTotal"), sizes.get("MemAvailable")
    if shutil.which("nvidia-smi"):
        line = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total"]
        try:
            done = subprocess.run([*line, "--format=csv,noheader,nounits"], capture_output=True,
                                  text=True, timeout=10)  # fmt: skip
        except subprocess.TimeoutExpired:
            return
        out.gpus = gpus(done.stdout)


def gpus(text: str) -> list[Gpu]:
    """GPUs from nvidia-smi's CSV of name, compute_cap, driver_version, memory.total."""
    out = []
    for row in text.splitlines():
        parts = [part.strip() for part in row.split(",")]
        if len(parts) >= 3 and re.fullmatch(r"\d+\.\d+", parts[1]):
            size = parts[3] if len(parts) > 3 and parts[3].isdigit() else "0"  # GB10: [N/A]
            out.append(Gpu(parts[0], parts[1], parts[2], int(size)))
    return out


def digest(path: str) -> str | None:
    """SHA-256 of a file on this host; None where there is none."""
    file = Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
