"""What is measured, and on what: image, plan, flags, GPU. Nothing here is needed to measure."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from msgspec import Struct

from fp4forge.bench.result import MeasuredGpu
from fp4forge.core import reading
from fp4forge.core.errors import EngineError, ForgeError, UsageError
from fp4forge.core.text import shown, without_secrets
from fp4forge.oci import dockercli, engine, process
from fp4forge.oci import reference as references

T = TypeVar("T")
READY = "Application startup complete"  # uvicorn's line when the server takes requests
_SECRETS = ("--api-key", "--hf-token", "--ssl-keyfile-password")
_GPU_FIELDS = (
    "name,driver_version,clocks.current.sm,clocks.max.sm,clocks.current.memory,power.limit"
)


class _InspectedState(Struct, frozen=True):
    StartedAt: str = ""
    Running: bool = False


class _InspectedConfig(Struct, frozen=True):
    Labels: dict[str, str] | None = None


class _InspectedContainer(Struct, frozen=True):
    """``docker inspect`` of a container, as far as it is used."""

    Image: str
    Args: list[str] | None = None
    State: _InspectedState = _InspectedState()


class _InspectedImage(Struct, frozen=True):
    """``docker image inspect``, as far as it is used."""

    Id: str
    RepoDigests: list[str] | None = None
    Config: _InspectedConfig = _InspectedConfig()
    Os: str = ""
    Architecture: str = ""


@dataclass(frozen=True)
class MeasuredImage:
    """An image of this engine: its digest, its platform, and what its labels say."""

    reference: str
    digest: str
    labels: dict[str, str]
    platform: str = ""  # such as linux/arm64

    def label(self, name: str) -> str:
        """A label of this project's; empty if the image has none."""
        return self.labels.get(f"io.fp4forge.{name}", "")

    @property
    def version(self) -> str:
        """vLLM's, as the label says."""
        return self.labels.get("org.opencontainers.image.version", "")


@dataclass(frozen=True)
class MeasuredContainer:
    """The server's container: its image, its flags, and how long it took to be ready."""

    image: str
    flags: tuple[str, ...]
    load_seconds: float | None


def _docker_inspect(words: Sequence[str], shape: type[T], what: str) -> T:
    engine.require_client()
    done = dockercli.run(*words)
    if done.returncode != 0 and "daemon" in done.stderr and "connect" in done.stderr:
        raise EngineError(
            f"no Docker engine answers: {shown(done.stderr, 200)}",
            rule="the load generator runs in a container",
            remedy="start the engine, or set DOCKER_HOST",
        )
    if done.returncode != 0:
        raise UsageError(
            f"{what}: {shown(done.stderr, 200)}", rule="a name that this machine's engine knows"
        )
    found: list[T] = reading.json(done.stdout, list[shape], what, EngineError)  # type: ignore[valid-type]
    return found[0]


def image(reference: str) -> MeasuredImage:
    """An image of this engine.

    Raises:
        UsageError: the engine does not have it.
    """
    found = _docker_inspect(
        ("image", "inspect", "--", reference), _InspectedImage, f"image {shown(reference, 200)}"
    )
    digests = [named.digest for named in references.listed(found.RepoDigests)]
    return MeasuredImage(
        reference,
        digests[0] if digests else found.Id,
        found.Config.Labels or {},
        f"{found.Os}/{found.Architecture}",
    )


def container(name: str) -> MeasuredContainer:
    """The server's container.

    Raises:
        UsageError: the engine has none of that name.
    """
    found = _docker_inspect(
        ("container", "inspect", "--", name), _InspectedContainer, f"container {shown(name, 100)}"
    )
    return MeasuredContainer(found.Image, flags(found.Args or ()), _load_seconds(name, found.State))


def serving(url: str) -> str:
    """The one container of this machine that publishes a loopback URL's port; empty if none."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost") or not dockercli.installed():
        return ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    listed = dockercli.run("ps", f"--filter=publish={port}", "--format={{.Names}}")
    found = listed.stdout.split()
    return found[0] if len(found) == 1 else ""


def client_version(found: MeasuredImage) -> str:
    """vLLM's version in an image: its label, or what its vllm prints.

    Raises:
        UsageError: it has no vllm.
    """
    if found.version:
        return found.version
    words = ["run", "--rm", "--network=none", "--pull=never", found.reference, "--version"]
    done = dockercli.run(*words)
    if done.returncode != 0 or not done.stdout.strip():
        raise UsageError(
            f"--image {shown(found.reference, 200)} has no vLLM: {shown(done.stderr, 200)}",
            rule="the load generator is the image's own vllm bench serve",
        )
    return shown(done.stdout.strip().splitlines()[-1], 40)


def flags(arguments: Sequence[str]) -> tuple[str, ...]:
    """A server's arguments without secrets."""
    kept, hide = [], False
    for argument in arguments:
        name, sign, _ = argument.partition("=")
        if hide:
            kept.append("...")
        elif name in _SECRETS and sign:
            kept.append(f"{name}=...")
        else:
            kept.append(shown(without_secrets(argument), 300))
        hide = argument in _SECRETS
    return tuple(kept)


def _load_seconds(name: str, state: _InspectedState) -> float | None:
    """Seconds from the container's start to the server's line that it is ready."""
    done = dockercli.run("logs", "--timestamps", "--since", state.StartedAt, name)
    line = next((s for s in (done.stdout + done.stderr).splitlines() if READY in s), "")
    begin, end = _moment(state.StartedAt), _moment(line.partition(" ")[0])
    return round((end - begin).total_seconds(), 1) if begin and end else None


def _moment(text: str) -> datetime | None:
    """RFC 3339 with nanoseconds, which Python's own parser refuses."""
    try:
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text))
    except ValueError:
        return None


def patches(reference: str) -> tuple[str, ...]:
    """The patches that an image of ours carries; none of others."""
    from fp4forge.oci import acquire, engine

    found = acquire.records(engine.connect(), reference).patches.patches
    return tuple(patch.id for patch in found)


def gpus() -> tuple[MeasuredGpu, ...]:
    """This machine's GPUs; none if nvidia-smi is not here or does not answer."""
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        done = process.run(
            ["nvidia-smi", f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader"], 20
        )
    except ForgeError:
        return ()
    return parse_gpus(done.stdout) if done.returncode == 0 else ()


def parse_gpus(text: str) -> tuple[MeasuredGpu, ...]:
    """``nvidia-smi --query-gpu``; what it does not know is empty."""
    found = []
    for row in text.splitlines():
        cells = [shown(cell, 80) for cell in row.split(", ")]
        if len(cells) == len(_GPU_FIELDS.split(",")):
            known = ["" if "N/A" in c or "Not Supported" in c else c for c in cells]
            names = ("name", "driver", "clock", "clock_limit", "memory_clock", "power_limit")
            found.append(MeasuredGpu(**dict(zip(names, known, strict=True))))
    return tuple(found)


def processor() -> str:
    """This machine's processor, as Linux names it."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"(?m)^model name\s*: (.+)$", text)
    return shown(found[1], 100) if found else ""


def checkpoint(folder: Path) -> str:
    """A hash over a checkpoint's config.json and the names and sizes of its files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    config = folder / "config.json"
    digest.update(reading.content(config, UsageError))
    return digest.hexdigest()
