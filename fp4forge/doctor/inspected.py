"""What ``docker inspect`` and ``podman inspect`` print, as evidence."""

from __future__ import annotations

import re
from typing import Any

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import UsageError
from fp4forge.doctor import command_line as commands
from fp4forge.doctor.evidence import Evidence, Mount

_PORT = re.compile(r"[0-9]{1,5}")
_NVIDIA = re.compile(r"nvidia\.com/gpu|/dev/nvidia")
FORM = (
    "JSON of docker inspect or podman inspect, kubectl describe pod, or kubectl get pod -o json or"
    " yaml"
)


class _ContainerConfig(Struct, frozen=True):
    """``Config`` of docker inspect; these types follow GET /containers/ID/json of the engine."""

    Image: str | None = None
    Labels: dict[str, str] | None = None
    Env: list[str] | None = None
    Entrypoint: list[str] | str | None = None
    Cmd: list[str] | str | None = None
    CreateCommand: list[str] | None = None  # podman's


class _Port(Struct, frozen=True):
    HostPort: str | None = None


_Ports = dict[str, list[_Port] | None]


class _DeviceRequest(Struct, frozen=True):
    """A device request; Count -1 asks for all."""

    Driver: str | None = None
    Count: int | None = None
    DeviceIDs: list[str] | None = None


class _Device(Struct, frozen=True):
    PathOnHost: str | None = None


class _Ulimit(Struct, frozen=True):
    Name: str | None = None
    Soft: int | None = None


class _HostConfig(Struct, frozen=True):
    Memory: int | None = None  # bytes; 0: no limit
    Ulimits: list[_Ulimit] | None = None
    ShmSize: int | None = None
    IpcMode: str | None = None
    NetworkMode: str | None = None
    Runtime: str | None = None
    DeviceRequests: list[_DeviceRequest] | None = None
    Devices: list[_Device] | None = None
    PortBindings: _Ports | None = None


class _Health(Struct, frozen=True):
    Status: str | None = None


class _ContainerState(Struct, frozen=True):
    Status: str | None = None
    Pid: int | None = None
    ExitCode: int | None = None
    OOMKilled: bool | None = None
    Health: _Health | None = None
    Healthcheck: _Health | None = None  # podman's name of it


class _Mounted(Struct, frozen=True):
    Source: str | None = None
    Destination: str | None = None
    Type: str | None = None


class _Network(Struct, frozen=True):
    Ports: _Ports | None = None


class Inspected(Struct, frozen=True):
    """One object of docker inspect; podman adds ImageName and OCIRuntime."""

    Config: _ContainerConfig | None
    HostConfig: _HostConfig | None = None
    State: _ContainerState | None = None
    Mounts: list[_Mounted] | None = None
    NetworkSettings: _Network | None = None
    ImageName: str | None = None


def from_inspect(data: object, where: str = "docker inspect", here: bool = False) -> Evidence:
    """From docker inspect's JSON as a value.

    Args:
        data: the value.
        where: names it in messages.
        here: whether the container is one of this machine, so its mounts are too.

    Raises:
        UsageError: it is something else.
    """
    if data == []:
        raise UsageError(f"{where} describes no container", rule=FORM)
    if isinstance(data, list):
        data = next((one for one in data if "vllm" in str(one)[:100_000].lower()), data[0])
    found = reading.shaped(data, Inspected, where, UsageError)
    config, host = found.Config or _ContainerConfig(), found.HostConfig or _HostConfig()
    state = found.State or _ContainerState()
    image = found.ImageName or config.Image or ""
    entrypoint = _word_list(config.Entrypoint)
    given = commands.words([*entrypoint, *_word_list(config.Cmd)])
    requested, count = _devices_requested(config, host, known=found.HostConfig is not None)
    out = Evidence(
        image=image,
        labels=config.Labels or {},
        environment=dict(entry.split("=", 1) for entry in config.Env or () if "=" in entry),
        command=commands.served(image, given, bool(entrypoint)),
        mounts=[_inspected_mount(entry, here) for entry in found.Mounts or ()],
        status=(state.Status or "").lower(),
        exit_code=state.ExitCode,
        out_of_memory=bool(state.OOMKilled),
        health=(state.Health or state.Healthcheck or _Health()).Status or "",
        shm_bytes=host.ShmSize,
        ipc=host.IpcMode or "",
        gpu_requested=requested,
        gpu_count=count,
        memory_limit=host.Memory or None,
        open_files=next((u.Soft for u in host.Ulimits or () if _is_nofile(u.Name)), None),
        pid=state.Pid or None,
        published=_host_ports(host.PortBindings),
    )
    _published_address(out, found, host)
    return out


def _is_nofile(name: str | None) -> bool:
    """Whether it is the limit of open files; podman's is RLIMIT_NOFILE."""
    return (name or "").lower().removeprefix("rlimit_") == "nofile"


def _inspected_mount(entry: _Mounted, here: bool) -> Mount:
    kind = entry.Type or "bind"
    return Mount(entry.Source or "", entry.Destination or "", kind, here)


def _devices_requested(
    config: _ContainerConfig, host: _HostConfig, *, known: bool
) -> tuple[bool | None, int | None]:
    """Whether the container asks for a GPU, and for how many; None is all, or unknown.

    Args:
        config: of the container.
        host: of the container.
        known: whether the description has a HostConfig; an image's has none.
    """
    if requests := host.DeviceRequests:
        ids = [name for entry in requests for name in entry.DeviceIDs or ()]
        if any("=" in name or name == "all" for name in ids):  # CDI: nvidia.com/gpu=0
            ids = [] if any(name.endswith("all") for name in ids) else ids
        counts = [entry.Count or 0 for entry in requests]
        return True, len(ids) or (None if any(n <= 0 for n in counts) else sum(counts))
    devices = " ".join(entry.PathOnHost or "" for entry in host.Devices or ())
    if _NVIDIA.search(devices + " " + " ".join(config.CreateCommand or ())):
        return True, None
    if host.Runtime == "nvidia":
        visible = dict(entry.split("=", 1) for entry in config.Env or () if "=" in entry)
        return True, _visible_gpus(visible.get("NVIDIA_VISIBLE_DEVICES", "all"))
    return False if known else None, None


def _visible_gpus(text: str) -> int | None:
    """How many GPUs NVIDIA_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES names; None: all."""
    if not text or text in ("all", "void", "none") or not re.fullmatch(r"[\w,-]{1,300}", text):
        return None
    return len(text.split(","))


def visible(found: Evidence) -> int | None:
    """How many GPUs the environment leaves to the server; None: all."""
    return _visible_gpus(found.environment.get("CUDA_VISIBLE_DEVICES", ""))


def _published_address(out: Evidence, found: Inspected, host: _HostConfig) -> None:
    """Where the server is published on this host."""
    addresses = _host_ports((found.NetworkSettings or _Network()).Ports)
    if addresses and _PORT.fullmatch(addresses[0]):
        out.address = f"http://127.0.0.1:{addresses[0]}"
    elif out.ipc and host.NetworkMode == "host":
        port = out.flag("--port") or ""
        out.address = f"http://127.0.0.1:{port if _PORT.fullmatch(port) else 8000}"


def _word_list(words: list[str] | str | None) -> list[str]:
    return commands.split(words) if isinstance(words, str) else words or []


def _host_ports(ports: _Ports | None) -> list[str]:
    return [entry.HostPort or "" for entries in (ports or {}).values() for entry in entries or ()]


def summary(found: Evidence) -> tuple[str, ...]:
    """What a description contributed, in a few words."""
    facts: list[Any] = [
        found.image and f"image {found.image}",
        found.command and f"{len(found.command)} words of command",
        found.mounts and f"{len(found.mounts)} mounts",
        found.environment and f"{len(found.environment)} variables",
        found.status and f"state {found.status}",
        found.events and f"{len(found.events)} events",
    ]
    return tuple(str(fact) for fact in facts if fact)
