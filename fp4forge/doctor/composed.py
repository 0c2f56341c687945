"""Compose files, as ``docker compose config`` resolves them, as evidence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import UsageError
from fp4forge.core.text import shown
from fp4forge.doctor import command_line as commands
from fp4forge.doctor import variables
from fp4forge.doctor.evidence import Evidence, Mount
from fp4forge.doctor.variables import UNKNOWN

_Scalar = str | int | float | bool | None
FORM = "a compose file with a service that has an image"


class _Volume(Struct, frozen=True):
    source: _Scalar = None
    target: _Scalar = None
    type: _Scalar = None


class _EnvFile(Struct, frozen=True):
    path: str = ""


class _Service(Struct, frozen=True):
    """One service of a compose file (Compose specification), as far as it is read."""

    image: str
    environment: dict[str, _Scalar] | list[_Scalar] | None = None
    env_file: str | list[str | _EnvFile] | None = None
    entrypoint: str | list[_Scalar] | None = None
    command: str | list[_Scalar] | None = None
    volumes: list[str | _Volume] | None = None
    labels: Any = None
    shm_size: _Scalar = None
    mem_limit: _Scalar = None
    ulimits: Any = None
    ipc: _Scalar = None
    runtime: _Scalar = None
    gpus: Any = None
    devices: Any = None
    deploy: Any = None


class _Compose(Struct, frozen=True):
    services: dict[str, Any] | None = None


def from_compose(path: Path) -> Evidence:
    """From a compose file: the service that serves a model.

    Raises:
        UsageError: it cannot be read, or no service in it has an image.
    """
    where = f"--compose {shown(path, 300)}"
    return from_text(reading.text(path, UsageError), where, path.parent)


def from_text(text: str, where: str, folder: Path) -> Evidence:
    """As ``from_compose``, from the file's content; its folder has ``.env`` and relative mounts.

    Raises:
        UsageError: as ``from_compose``.
    """
    data = reading.yaml(text, where, UsageError)
    services = reading.shaped(data, _Compose, where, UsageError).services or {}
    usable = [s for s in services.values() if isinstance(s, dict) and s.get("image")]
    if not usable:
        raise UsageError(f"{where}: no service has an image", rule="a compose file")
    chosen = min(usable, key=_service_rank)  # the first of the best
    known = variables.environment(folder)
    service = reading.shaped(variables.resolve(chosen, known), _Service, where, UsageError)
    given = variables_of(service, folder)
    words = commands.words([*_command_list(service.entrypoint), *_command_list(service.command)])
    # What no variable here decides is left out.
    image = "" if UNKNOWN in service.image else service.image
    requested, count = _gpus_requested(service, given)
    return Evidence(
        image=image,
        environment=given,
        command=commands.served(image, words, service.entrypoint is not None),
        mounts=[
            _compose_mount(entry, raw, folder)
            for entry, raw in zip(service.volumes or (), chosen.get("volumes") or (), strict=True)
        ],
        shm_bytes=_compose_bytes(service.shm_size),
        memory_limit=_compose_bytes(service.mem_limit)
        or _compose_bytes(_memory_limit(service.deploy)),
        open_files=_soft_nofile(service.ulimits),
        ipc=_scalar_text(service.ipc),
        gpu_requested=requested,
        gpu_count=count,
    )


def _service_rank(service: dict[str, Any]) -> int:
    """0 for a service that serves a model by image or command, 1 if it only mentions vLLM."""
    runs = f"{service.get('image')} {service.get('command')} {service.get('entrypoint')}"
    return 0 if "vllm" in runs else 1 if "vllm" in str(service) else 2


def variables_of(service: _Service, folder: Path) -> dict[str, str]:
    """The service's environment: its env files, then its own entries."""
    out: dict[str, str] = {}
    files = [service.env_file] if isinstance(service.env_file, str) else service.env_file or []
    for entry in files:
        name = entry if isinstance(entry, str) else entry.path
        if "\0" not in name:
            out |= variables.pairs(folder / name)
    given = service.environment or {}
    if isinstance(given, list):
        pairs = (str(entry).partition("=") for entry in given)
        given = {name: value for name, equals, value in pairs if equals}
    out |= {name: _scalar_text(value) for name, value in given.items() if value is not None}
    return {name: value for name, value in out.items() if UNKNOWN not in value}


def _gpus_requested(service: _Service, given: dict[str, str]) -> tuple[bool, int | None]:
    """Whether the service asks for a GPU, in any of compose's ways, and for how many."""
    devices = _reserved_devices(service.deploy)
    if isinstance(service.gpus, list):
        devices += [entry for entry in service.gpus if isinstance(entry, dict)]
    if devices:
        counts = [_gpu_count(entry) for entry in devices]
        return True, None if None in counts else sum(n for n in counts if n)
    if (
        service.gpus
        or "nvidia.com/gpu" in str(service.devices)
        or "/dev/nvidia" in str(service.devices)
    ):
        return True, service.gpus if type(service.gpus) is int and service.gpus > 0 else None
    if service.runtime == "nvidia" or "NVIDIA-GPU" in str(service.deploy):
        listed = given.get("NVIDIA_VISIBLE_DEVICES", "all")
        numbers = re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3}){0,63}", listed)
        return True, listed.count(",") + 1 if numbers else None
    return False, None


def _memory_limit(deploy: Any) -> _Scalar:
    """``deploy.resources.limits.memory``."""
    for name in ("resources", "limits", "memory"):
        deploy = deploy.get(name) if isinstance(deploy, dict) else None
    return deploy if isinstance(deploy, str | int) else None


def _soft_nofile(ulimits: Any) -> int | None:
    """The soft limit of open files, in both of compose's forms."""
    given = ulimits.get("nofile") if isinstance(ulimits, dict) else None
    soft = str(given.get("soft") if isinstance(given, dict) else given)
    return int(soft) if re.fullmatch("[0-9]{1,12}", soft) else None


def _reserved_devices(deploy: Any) -> list[Any]:
    for name in ("resources", "reservations", "devices"):
        deploy = deploy.get(name) if isinstance(deploy, dict) else None
    found = (
        [entry for entry in deploy if isinstance(entry, dict)] if isinstance(deploy, list) else []
    )
    return [e for e in found if re.search("gpu|nvidia|cdi", f"{e.get('capabilities')} {e}", re.I)]


def _gpu_count(entry: dict[str, Any]) -> int | None:
    ids = entry.get("device_ids")
    if isinstance(ids, list) and ids and not any("all" in str(name) for name in ids):
        return len(ids)
    count = str(entry.get("count", "all"))
    return int(count) if re.fullmatch("[0-9]{1,4}", count) else None


def _scalar_text(value: _Scalar) -> str:
    return "" if value is None else str(value)


def _command_list(command: str | list[_Scalar] | None) -> list[str]:
    if isinstance(command, str):
        return commands.split(command.replace("\\\n", " "))
    return [_scalar_text(word) for word in command or ()]


def _compose_mount(entry: str | _Volume, raw: Any, folder: Path) -> Mount:
    certain = "$" not in str(raw)
    if isinstance(entry, _Volume):
        source, target, kind = (
            _scalar_text(entry.source),
            _scalar_text(entry.target),
            _scalar_text(entry.type) or "bind",
        )
    else:
        source, _, target = entry.partition(":")
        target, kind = target.partition(":")[0], ""
    if source.startswith(("./", "../")) or source in (".", ".."):
        source = os.path.normpath(folder.absolute() / source)
    kind = kind or ("bind" if source.startswith(("/", "~", UNKNOWN)) else "volume")
    # os.path's: pathlib's raises for a user who is not known here.
    source = os.path.expanduser(source) if kind == "bind" else source  # noqa: PTH111
    return Mount(source, target, kind, certain)


def _compose_bytes(text: _Scalar) -> int | None:
    match = re.fullmatch(
        r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmg]?)i?b?", _scalar_text(text).lower()
    )
    if not match:
        return None
    return int(float(match[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[match[2]])
