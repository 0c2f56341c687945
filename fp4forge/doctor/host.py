"""What this machine reports: memory, swap, /dev/shm, disks, GPUs, and a process's own limits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from fp4forge.doctor.smi import SmiGpu, gpus

GIB = 2**30
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_READ = 1 << 20  # bytes of a file of /proc
_QUERY = "--query-gpu=name,compute_cap,driver_version,memory.total"


@dataclass
class HostResources:
    """A machine's resources in bytes; None: not known."""

    memory_total: int | None = None
    memory_free: int | None = None  # MemFree: without what the page cache holds
    memory_available: int | None = None
    cached: int | None = None
    swap_total: int | None = None
    swap_free: int | None = None
    disks: dict[str, int] = field(default_factory=dict)  # a folder, and what its disk has left


@dataclass(frozen=True)
class ProcessLimits:
    """What one process may use; None: unlimited, or not known."""

    open_files: int | None = None
    memory: int | None = None  # of its cgroup, bytes
    shm_free: int | None = None  # bytes


def here() -> HostResources:
    """This machine's memory."""
    text = _proc_text(_PROC / "meminfo")
    sizes = {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(\w+):\s+([0-9]{1,15}) kB", text, re.M)}
    return HostResources(
        memory_total=sizes.get("MemTotal"),
        memory_free=sizes.get("MemFree"),
        memory_available=sizes.get("MemAvailable"),
        cached=sizes.get("Cached"),
        swap_total=sizes.get("SwapTotal"),
        swap_free=sizes.get("SwapFree"),
    )


def limits(pid: int) -> ProcessLimits:
    """The limits of a process of this machine, as of a container's first one."""
    files = re.search(r"(?m)^Max open files\s+([0-9]{1,12})\s", _proc_text(_PROC / f"{pid}/limits"))
    group = re.search(r"(?m)^0::(/\S*)$", _proc_text(_PROC / f"{pid}/cgroup"))
    return ProcessLimits(
        open_files=int(files[1]) if files else None,
        memory=_cgroup_number(_CGROUP / group[1].lstrip("/") / "memory.max") if group else None,
        shm_free=_disk_free(_PROC / f"{pid}/root/dev/shm"),
    )


def free(folder: str) -> int | None:
    """Bytes that the disk of a folder has left, or of the nearest folder above it that exists."""
    if "\0" in folder or not folder.startswith("/"):
        return None
    place = Path(folder)
    found = (_disk_free(each) for each in (place, *place.parents))
    return next((size for size in found if size is not None), None)


def _disk_free(place: Path) -> int | None:
    try:
        return shutil.disk_usage(place).free
    except (OSError, ValueError):
        return None


def cards() -> list[SmiGpu]:
    """The GPUs that nvidia-smi lists, if it is there."""
    if not shutil.which("nvidia-smi"):
        return []
    line = ["nvidia-smi", _QUERY, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(line, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return gpus(done.stdout.decode(errors="replace"))


def _proc_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_READ).decode(errors="replace")
    except OSError:
        return ""


def _cgroup_number(path: Path) -> int | None:
    """A cgroup's number; None for ``max``."""
    found = _proc_text(path).strip()
    return int(found) if re.fullmatch("[0-9]{1,19}", found) else None


def is_url(url: str) -> bool:
    """Whether a server's address is one of this machine."""
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def has_engine() -> bool:
    """Whether the engine that is asked runs on this machine."""
    return os.environ.get("DOCKER_HOST", "unix:").startswith("unix:")
