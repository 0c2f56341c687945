"""How a server is described: docker inspect's JSON and compose files, as evidence."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import ServingError, UsageError
from fp4forge.core.limits import LOG_BYTES
from fp4forge.core.text import shown
from fp4forge.doctor import evidence
from fp4forge.doctor.evidence import Evidence, Mount
from fp4forge.oci import acquire, engine

_PORT = re.compile(r"[0-9]{1,5}")


class _Container(Struct, frozen=True):
    """``Config`` of docker inspect; these types follow GET /containers/ID/json of the engine."""

    Image: str | None = None
    Labels: dict[str, str] | None = None
    Env: list[str] | None = None
    Entrypoint: list[str] | str | None = None
    Cmd: list[str] | str | None = None


class _Port(Struct, frozen=True):
    HostPort: str | None = None


_Ports = dict[str, list[_Port] | None]


class _Host(Struct, frozen=True):
    ShmSize: int | None = None
    IpcMode: str | None = None
    NetworkMode: str | None = None
    Runtime: str | None = None
    DeviceRequests: list[Any] | None = None
    PortBindings: _Ports | None = None


class _Health(Struct, frozen=True):
    Status: str | None = None


class _State(Struct, frozen=True):
    Status: str | None = None
    ExitCode: int | None = None
    OOMKilled: bool | None = None
    Health: _Health | None = None


class _Mounted(Struct, frozen=True):
    Source: str | None = None
    Destination: str | None = None
    Type: str | None = None


class _Network(Struct, frozen=True):
    Ports: _Ports | None = None


class Inspected(Struct, frozen=True):
    """One object of docker inspect."""

    Config: _Container | None
    HostConfig: _Host | None = None
    State: _State | None = None
    Mounts: list[_Mounted] | None = None
    NetworkSettings: _Network | None = None


def read_inspect(path: Path) -> Evidence:
    """From a file with docker inspect's JSON: the list that it prints, or one object of it.

    Raises:
        UsageError: it is something else.
    """
    data = reading.json_file(path, object, UsageError)
    return from_inspect(data, f"--inspect {shown(path, 300)}")


def from_inspect(data: object, where: str = "docker inspect") -> Evidence:
    """From docker inspect's JSON as a value.

    Raises:
        UsageError: it is something else.
    """
    found = reading.shaped(
        data[0] if isinstance(data, list) and data else data, Inspected, where, UsageError
    )
    config, host = found.Config or _Container(), found.HostConfig or _Host()
    state = found.State or _State()
    out = Evidence(
        image=config.Image or "",
        labels=config.Labels or {},
        environment=dict(entry.split("=", 1) for entry in config.Env or () if "=" in entry),
        command=_words([*_listed(config.Entrypoint), *_listed(config.Cmd)]),
        mounts=[
            Mount(m.Source or "", m.Destination or "", m.Type or "bind") for m in found.Mounts or ()
        ],
        status=state.Status or "",
        exit_code=state.ExitCode,
        out_of_memory=bool(state.OOMKilled),
        health=(state.Health or _Health()).Status or "",
        shm_bytes=host.ShmSize,
        ipc=host.IpcMode or "",
        gpu_requested=bool(host.DeviceRequests) or host.Runtime == "nvidia",
        published=_host_ports(host.PortBindings),
        sources=["docker inspect"],
    )
    addresses = _host_ports((found.NetworkSettings or _Network()).Ports)
    if addresses and _PORT.fullmatch(addresses[0]):
        out.address = f"http://127.0.0.1:{addresses[0]}"
    elif out.ipc and host.NetworkMode == "host":
        port = out.flag("--port") or ""
        out.address = f"http://127.0.0.1:{port if _PORT.fullmatch(port) else 8000}"
    return out


def _listed(words: list[str] | str | None) -> list[str]:
    return [words] if isinstance(words, str) else words or []


def _host_ports(ports: _Ports | None) -> list[str]:
    return [entry.HostPort or "" for entries in (ports or {}).values() for entry in entries or ()]


_Scalar = str | int | float | bool | None


class _Volume(Struct, frozen=True):
    source: _Scalar = None
    target: _Scalar = None
    type: _Scalar = None


class _Reservations(Struct, frozen=True):
    devices: list[Any] | None = None


class _Resources(Struct, frozen=True):
    reservations: _Reservations | None = None


class _Deploy(Struct, frozen=True):
    resources: _Resources | None = None


class _Service(Struct, frozen=True):
    """One service of a compose file (Compose specification), as far as it is read."""

    image: str
    environment: dict[str, _Scalar] | list[_Scalar] | None = None
    command: str | list[_Scalar] | None = None
    volumes: list[str | _Volume] | None = None
    shm_size: _Scalar = None
    ipc: _Scalar = None
    runtime: _Scalar = None
    gpus: Any = None
    deploy: _Deploy | None = None


class _Compose(Struct, frozen=True):
    services: dict[str, Any] | None = None


def from_compose(path: Path) -> Evidence:
    """From a compose file: the service that serves a model.

    Raises:
        UsageError: it cannot be read, or no service in it has an image.
    """
    where = f"--compose {shown(path, 300)}"
    data = reading.yaml(reading.text(path, UsageError), where, UsageError)
    services = reading.shaped(data, _Compose, where, UsageError).services or {}
    usable = [s for s in services.values() if isinstance(s, dict) and s.get("image")]
    if not usable:
        raise UsageError(f"{where}: no service has an image", rule="a compose file")
    chosen = next((s for s in usable if "vllm" in str(s)), usable[0])
    service = reading.shaped(chosen, _Service, where, UsageError)
    given = service.environment or {}
    if isinstance(given, list):
        pairs = (str(entry).partition("=") for entry in given)
        given = {name: value for name, equals, value in pairs if equals}
    command = service.command or []
    resources = (service.deploy or _Deploy()).resources or _Resources()
    devices = (resources.reservations or _Reservations()).devices
    return Evidence(
        image=service.image,
        environment={name: _text(value) for name, value in given.items()},
        command=_words(_split(command) if isinstance(command, str) else command),
        mounts=[_compose_mount(entry, path.parent) for entry in service.volumes or ()],
        shm_bytes=_bytes(service.shm_size),
        ipc=_text(service.ipc),
        gpu_requested=bool(devices) or service.runtime == "nvidia" or "gpus" in chosen,
        sources=[f"compose file {path}"],
    )


def _text(value: _Scalar) -> str:
    return "" if value is None else str(value)


def _compose_mount(entry: str | _Volume, folder: Path) -> Mount:
    if isinstance(entry, _Volume):
        return Mount(_text(entry.source), _text(entry.target), _text(entry.type) or "bind")
    source, _, target = entry.partition(":")
    target = target.partition(":")[0]
    if source.startswith(("./", "../")):
        source = os.path.normpath(folder.absolute() / source)
    kind = "bind" if source.startswith(("/", "~")) else "volume"
    # os.path's: pathlib's raises for a user who is not known here.
    return Mount(os.path.expanduser(source) if kind == "bind" else source, target, kind)  # noqa: PTH111


def _bytes(text: _Scalar) -> int | None:
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmg]?)i?b?", _text(text).lower())
    if not match:
        return None
    return int(float(match[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[match[2]])


def _split(line: str) -> list[str]:
    """A command line's words; quotes that do not close quote nothing."""
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _words(command: Sequence[_Scalar]) -> list[str]:
    """A command's words, with those inside ``bash -c '...'`` taken apart."""
    words = [str(word) for word in command]
    if len(words) >= 3 and words[0] in ("bash", "sh", "/bin/bash", "/bin/sh") and "-c" in words[1]:
        return _split(words[2].replace("\\\n", " "))
    return words


def container(name: str) -> Evidence:
    """From a container that the engine has, running or not.

    Raises:
        ServingError: the container does not exist.
    """
    from docker.errors import NotFound

    client = engine.connect()
    try:
        found = client.containers.get(name)
        out = from_inspect(found.attrs, f"docker inspect {shown(name, 100)}")
        out.log = evidence.as_log(found.logs(tail=20_000)[-LOG_BYTES:])
    except NotFound:
        raise ServingError(
            f"container {shown(name, 200)!r} does not exist", remedy="docker ps --all lists them"
        ) from None
    out.record = acquire.read(found, evidence.PATCH_RECORD, acquire.Patches)
    out.ledger = acquire.read(found, evidence.LEDGER, acquire.Ledger)
    out.sources = [f"container {name}, its log and its image"]
    out.url = out.address
    return out
