"""What this machine brings to a server: its GPU, its free memory, a free port."""

from __future__ import annotations

import math
import re
import shutil
import socket
from pathlib import Path

from fp4forge.core.errors import EngineError, FitError, UsageError
from fp4forge.core.text import shown
from fp4forge.doctor import smi
from fp4forge.kernels.gpus import GPUS, PRODUCTS, Product
from fp4forge.oci import process

_QUERY = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv"]
_MEMINFO = Path("/proc/meminfo")
UTILIZATION = 0.85  # of the GPU's memory, for vLLM, if nothing else runs
# Of unified memory, what a host with a desktop and Docker's daemon goes on needing.
_HOST_BYTES = 6 << 30
# Below this share of the memory no server of a model that fits its GPU is worth starting.
_LEAST = 0.3


def product(given: str | None) -> tuple[Product, int]:
    """The GPU that a server here runs on, and how many of it there are.

    Args:
        given: a name of ``kernels.gpus.PRODUCTS``; nvidia-smi is not asked then.

    Raises:
        UsageError: there is none that this project builds for.
    """
    if given:
        if given not in PRODUCTS:
            raise UsageError(
                f"--gpu {given!r} is not a product that fp4forge knows",
                rule="one of " + ", ".join(PRODUCTS),
            )
        return PRODUCTS[given], 1
    remedy = "--gpu PRODUCT names it: " + ", ".join(PRODUCTS)
    if shutil.which("nvidia-smi") is None:
        raise UsageError(
            "no GPU is known: nvidia-smi is not installed",
            rule="nvidia-smi lists this machine's GPUs",
            remedy=remedy,
        )
    done = process.run(_QUERY, kind=EngineError)
    found = smi.gpus(done.stdout)
    known = [match for gpu in found if (match := match_product(gpu))]
    if not known:
        names = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in found)
        raise UsageError(
            f"no GPU here is one that fp4forge builds for: {shown(names or done.stderr, 300)}",
            rule="compute capability " + ", ".join(gpu.label for gpu in GPUS.values()),
            remedy=remedy,
        )
    return known[0], sum(1 for match in known if match == known[0])


def match_product(gpu: smi.SmiGpu) -> Product | None:
    """The product of that compute capability whose memory is nearest; None if there is none."""
    alike = [p for p in PRODUCTS.values() if GPUS[p.gpu].label == gpu.capability]
    if not gpu.memory_mib:  # GB10: nvidia-smi says [N/A]
        return alike[0] if alike else None
    return min(alike, key=lambda p: abs(p.memory_mib - gpu.memory_mib), default=None)


def memory() -> tuple[int, int]:
    """Bytes that programs can have without swapping, and bytes of page cache (proc(5))."""
    found = dict(re.findall(r"(\w+): +([0-9]+) kB", _MEMINFO.read_text()))
    return int(found["MemAvailable"]) << 10, int(found["Cached"]) << 10


def share(found: Product, wanted: float, needed: int) -> tuple[float, str]:
    """--gpu-memory-utilization that unified memory has room for, and what to say of it.

    Args:
        found: the GPU.
        wanted: the share if nothing else runs.
        needed: bytes of the model's weights.

    Raises:
        FitError: what is free does not hold the weights.
    """
    if not found.unified or needed > found.memory_bytes:  # of that, serve fit says what to do
        return wanted, ""
    free, cached = memory()
    able = math.floor((free - _HOST_BYTES) / found.memory_bytes * 100) / 100
    said = f"{free / 1e9:.1f} GB are free, {cached / 1e9:.1f} GB of them page cache"
    if able * found.memory_bytes < needed or able < _LEAST:
        raise FitError(
            f"the memory that is free does not hold the server: {said}",
            rule=f"{found.title} has one memory for the host and the GPU: the host keeps"
            f" {_HOST_BYTES / 1e9:.1f} GB, the weights take {needed / 1e9:.1f} GB, and a server"
            f" gets at least {_LEAST:.0%} of {found.memory_bytes / 1e9:.0f} GB",
            remedy="stop other programs and servers (build.py serve status), then run again; or"
            " --utilization decides instead",
        )
    if able >= wanted:
        return wanted, said
    return able, f"{said}: --gpu-memory-utilization is {able:g} instead of {wanted:g}"


def check_port(address: str, port: int) -> None:
    """Refuses a port that another program listens on.

    Raises:
        UsageError: it is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise UsageError(
                f"port {port} of {address} is not available: {error.strerror}",
                rule="a server needs a port of its own",
                remedy="--port takes another one; build.py serve status lists the servers here",
            ) from None
