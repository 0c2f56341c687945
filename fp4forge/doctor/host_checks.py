"""Checks of the machine's resources: disks, memory, swap, and the limits of the container."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fp4forge.core.text import shown
from fp4forge.doctor import facts
from fp4forge.doctor.diagnosis import ERROR, NOTE, WARNING, Diagnosis, check
from fp4forge.doctor.evidence import Evidence
from fp4forge.doctor.host import GIB
from fp4forge.models import faults

_DISK = GIB  # compiled kernels and logs need that much
_HOST = 2 * GIB  # of MemAvailable: below, the kernel is about to end programs
_LIMIT = 8 * GIB  # of a container's memory: vLLM's processes and their CUDA contexts
_FILES = 4096  # vllm/utils/system_utils.py (set_ulimit) asks for 65,535


@check
def disks(found: Evidence) -> Iterator[Diagnosis]:
    """A mounted folder whose disk is full, or nearly."""
    for folder, left in found.host.disks.items():
        if left < _DISK:
            yield Diagnosis(
                "disk",
                ERROR if left < 1 << 20 else WARNING,
                f"the disk of {shown(folder, 200)} has {left / 2**20:,.0f} MiB left",
                "downloads, compiled kernels and logs need room",
                "df -h and docker system df show what takes it",
            )


@check
def host_memory(found: Evidence) -> Iterator[Diagnosis]:
    """A host that is out of memory, or has begun to swap where GPU and host share it."""
    host = found.host
    if host.memory_available is not None and host.memory_available < _HOST:
        yield Diagnosis(
            "host-memory",
            WARNING,
            f"MemAvailable is {host.memory_available / GIB:.1f} GiB",
            "the machine is almost out of memory: the kernel ends programs next",
            "stop other programs; on unified memory lower --gpu-memory-utilization",
        )
    swapped = (host.swap_total or 0) - (host.swap_free or 0)
    if facts.unified(found) and swapped > GIB:
        yield Diagnosis(
            "swap",
            WARNING,
            f"{swapped / GIB:.1f} GiB are swapped out",
            "GPU and host share the memory, and it was full: swapped pages come back slowly",
            "lower --gpu-memory-utilization; sudo swapoff -a && sudo swapon -a when there is room",
        )


@check
def page_cache(found: Evidence) -> Iterator[Diagnosis]:
    """Unified memory that the page cache holds, before a server starts."""
    host = found.host
    if found.answered or found.ready or not (found.serves and facts.unified(found)):
        return
    given = found.flag("--gpu-memory-utilization")
    text = given or faults.default("--gpu-memory-utilization", found.version)
    known = (host.memory_total, host.memory_free, host.memory_available, host.cached)
    if None in known or not re.fullmatch(r"0?\.[0-9]{1,6}|1(\.0{1,6})?", text):
        return
    total, free, available, cached = (size or 0 for size in known)
    if free < float(text) * total <= available:
        yield Diagnosis(
            "page-cache",
            NOTE if found.status == "running" else WARNING,
            f"MemFree is {free / GIB:.0f} GiB, MemAvailable {available / GIB:.0f}, and the page"
            f" cache holds {cached / GIB:.0f}; {float(text) * total / GIB:.0f} are asked for",
            "vLLM compares free memory, and on unified memory the page cache counts as used",
            "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches before the server starts",
        )


@check
def container_limits(found: Evidence) -> Iterator[Diagnosis]:
    """A container that may use little memory or few files."""
    if found.memory_limit is not None and found.memory_limit < _LIMIT:
        yield Diagnosis(
            "memory-limit",
            ERROR if found.out_of_memory else WARNING,
            f"the container may use {found.memory_limit / GIB:.1f} GiB of the host's memory",
            "vLLM loads weights through it; the kernel kills what exceeds the limit",
            "remove --memory, mem_limit or deploy.resources.limits.memory, or raise it",
        )
    if found.open_files is not None and found.open_files < _FILES:
        yield Diagnosis(
            "open-files",
            WARNING,
            f"the server may open {found.open_files:,} files",
            "each connection and each file of weights is one",
            "--ulimit nofile=1048576:1048576",
        )
    if found.shm_free is not None and found.shm_free < 1 << 20:
        yield Diagnosis(
            "shm",
            ERROR if not (found.ready or found.answered) else WARNING,
            f"/dev/shm has {found.shm_free // 1024} KiB left",
            "vLLM's processes pass images and tensors through it",
            "ipc: host, or shm_size: 8g",
        )
