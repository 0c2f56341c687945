"""Memory of the device that calibrates: what is free, and what a forward pass adds."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import batching

_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")


def free() -> int:
    """Bytes that a forward pass may add: on the fullest GPU, or of the machine or container."""
    if torch.cuda.is_available():
        least: int = min(
            torch.cuda.mem_get_info(i)[0]
            + torch.cuda.memory_reserved(i)
            - torch.cuda.memory_allocated(i)
            for i in range(torch.cuda.device_count())
        )
        return least
    found = [_status("/proc/meminfo", "MemAvailable")]
    with contextlib.suppress(OSError, ValueError):  # cgroup v2; "max": no limit
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()) - used)
    return min(found)


def added(run: Callable[[], None]) -> int:
    """Bytes that something adds at its peak."""
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        before = [torch.cuda.memory_allocated(i) for i in devices]
        for i in devices:
            torch.cuda.reset_peak_memory_stats(i)
        run()
        peaks = [torch.cuda.max_memory_allocated(i) for i in devices]
        most: int = max(peak - had for peak, had in zip(peaks, before, strict=True))
        return most
    with contextlib.suppress(OSError):  # proc(5): 5 resets the peak; some containers forbid it
        Path("/proc/self/clear_refs").write_text("5")
    had = _status("/proc/self/status", "VmRSS")
    run()
    return max(0, _status("/proc/self/status", "VmHWM") - had)


def peak() -> int:
    """Bytes at this process's peak: on the GPUs, or of the host."""
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Turns what torch raises for want of memory into one error, and gives the memory back."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(text in str(error) for text in _MESSAGES):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise batching.OutOfMemory(str(error)) from None


def _status(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0
