"""What an engine must have before a build starts: an image store, a platform, room on its disk."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from fp4forge.core.errors import DiskError, EngineError, PlatformError, UsageError
from fp4forge.core.platform import AMD64, PLATFORMS, host_platform
from fp4forge.core.text import shown
from fp4forge.oci import dockercli, engine


def check_store(info: dict[str, Any], builder: str | None) -> None:
    """Refuses an engine whose own builder cannot make attestations and OCI layouts.

    Args:
        info: what the engine says of itself (Docker Engine API, GET /info).
        builder: the buildx builder, or None for the engine's own.

    Raises:
        EngineError: the engine's own builder has no containerd image store.
    """
    store = dict(info.get("DriverStatus") or []).get("driver-type", "")
    if builder is None and "containerd" not in store:
        raise EngineError(
            f"the engine stores images with {info.get('Driver')}",
            rule="provenance, zstd layers and OCI layouts need the containerd image store",
            remedy='set {"features": {"containerd-snapshotter": true}} in daemon.json,'
            " or give --builder with a docker-container builder",
        )


def check_platform(info: dict[str, Any], platform: str, builder: str | None) -> None:
    """Refuses a platform that the builder cannot run.

    Args:
        info: what the engine says of itself (Docker Engine API, GET /info).
        platform: os/architecture.
        builder: the buildx builder, or None for the engine's own.

    Raises:
        PlatformError: with the choices that there are.
        EngineError: the client has no buildx, or the builder does not exist.
    """
    if builder is None and PLATFORMS[platform].machine == info["Architecture"]:
        return  # its own platform: asking buildx would take a tenth of a rebuild's time
    done = dockercli.run("buildx", "inspect", *([builder] if builder else []))
    if "is not a docker command" in done.stderr or "unknown command" in done.stderr:
        raise EngineError("the docker client has no buildx", remedy="run make setup")
    if done.returncode != 0:
        raise EngineError(
            f"builder {builder or 'default'}: {engine.last_words(done.stderr)}",
            remedy="docker buildx ls lists the builders",
        )
    found = set(
        re.findall(
            r"linux/[a-z0-9]+",
            " ".join(
                line for line in done.stdout.splitlines() if line.strip().startswith("Platforms:")
            ),
        )
    )
    if builder is None and platform != host_platform() and not emulated(platform):
        found.discard(platform)  # BuildKit goes on listing what ran once
    if platform not in found:
        raise PlatformError(
            f"this builder cannot build {platform};"
            f" it builds {', '.join(sorted(found)) or 'nothing'}",
            rule="the builder's platforms, as docker buildx inspect shows them",
            remedy=f"make setup PLATFORM={platform} (emulation), run on a {platform} machine,"
            " give --builder with one that has it,"
            f" or --platform {AMD64 if AMD64 in found else min(found, default=AMD64)}",
        )


def emulated(platform: str) -> bool:
    """Whether this kernel hands another platform's programs to an emulator (binfmt_misc).

    True if that cannot be seen from here: the engine is on another machine.
    """
    if not engine.is_here():
        return True
    entries = Path("/proc/sys/fs/binfmt_misc").glob("*")
    return any(
        re.search(
            rf"^interpreter .*{PLATFORMS[platform].machine}",
            entry.read_text(errors="replace"),
            re.M,
        )
        for entry in entries
        if entry.name not in ("register", "status")
    )


def check_disk(info: dict[str, Any], need_gb: float) -> None:
    """Refuses to start a build that would fill the engine's disk.

    Args:
        info: what the engine says of itself (Docker Engine API, GET /info).
        need_gb: free space wanted, in GB (10^9 bytes); FP4FORGE_MIN_FREE_GB overrides it.

    Raises:
        DiskError: there is less.
        UsageError: FP4FORGE_MIN_FREE_GB is not a number.
    """
    given = os.environ.get("FP4FORGE_MIN_FREE_GB") or f"{need_gb:g}"
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", given):
        raise UsageError(
            f"FP4FORGE_MIN_FREE_GB is {shown(given, 40)!r}", rule="gigabytes, such as 46.5"
        )
    need_gb = float(given) or need_gb
    root = Path(info.get("DockerRootDir", "/"))
    if not root.exists():  # a remote engine: its disk cannot be seen from here
        return
    free = shutil.disk_usage(root).free / 1e9
    if free < need_gb:
        raise DiskError(
            f"{root} has {free:.1f} GB free",
            rule=f"a build needs {need_gb:.0f} GB",
            remedy="docker buildx prune, or docker image prune, frees some",
        )
