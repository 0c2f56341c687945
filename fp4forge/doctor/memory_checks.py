"""Checks of memory: of the GPU, of the host, and of what both share."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fp4forge.doctor import facts
from fp4forge.doctor.diagnosis import (
    ERROR,
    WARNING,
    Diagnosis,
    check,
    failed_line,
    line_of,
)
from fp4forge.doctor.evidence import Evidence
from fp4forge.models import faults

HEADROOM_GIB = 10  # unified memory that the host's own programs and page cache need
# Programs of a server, as the kernel names them (15 characters).
_OURS = r"(?i:vllm|python|pt_main|ray|ninja|nvcc|cicc|ptxas|cudafe|cc1plus)"
_SHARE = re.compile(r"0?\.[0-9]{1,6}|1(\.0{1,6})?")
_FREE = re.compile(
    r"Free memory on device .{0,40}?\(([0-9.]{1,10})/([0-9.]{1,10}) GiB\).{0,60}"
    r"is less than desired.{0,40}?\(([0-9.]{1,10}), ([0-9.]{1,10}) GiB\)"
)


@check
def startup(found: Evidence) -> Iterator[Diagnosis]:
    """Too little free memory before anything was loaded: something else holds it."""
    line = failed_line(found, r"Free memory on device .* is less than desired")
    if not line:
        return
    match = _FREE.search(line)
    if match and float(match[4]) >= float(match[2]):
        cause, fix = "the requested share is all of the GPU's memory", "request less"
    elif facts.unified(found):
        cause = (
            "nothing is loaded yet: vLLM compares free memory, and on unified memory the page"
            " cache counts as used, as do the host's programs"
        )
        fix = (
            "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches, stop other programs, then start"
            " again; or lower --gpu-memory-utilization"
        )
    else:
        cause = "nothing is loaded yet: another process holds the GPU's memory"
        fix = "nvidia-smi lists the processes: stop them, or lower --gpu-memory-utilization"
    yield Diagnosis("startup-memory", ERROR, line, cause, fix)


@check
def gpu_memory(found: Evidence) -> Iterator[Diagnosis]:
    """What is loaded does not fit."""
    line = failed_line(
        found, r"OutOfMemoryError|CUDA out of memory|No available memory for the cache"
    )
    line = line or failed_line(
        found, r"To serve at least one request with the model'?s'?s? max seq"
    )
    if line:
        yield Diagnosis(
            "gpu-memory",
            ERROR,
            line,
            "weights, activations and KV cache do not fit",
            "build.py serve fit --model DIR --gpu NAME says which context and batch do",
        )


@check
def killed(found: Evidence) -> Iterator[Diagnosis]:
    """The kernel ended the server for memory."""
    line = line_of(
        found,
        rf"Killed process [0-9]+ \({_OURS}|oom-kill:.*task={_OURS}|OOMKilled"
        r"|NVRM: .{0,200}(?:NV_ERR_NO_MEMORY|out of memory)",
    )
    # 137 is SIGKILL from whoever sent it: without more it is a symptom of memory, most often.
    if not (found.out_of_memory or found.exit_code == 137 or line):
        return
    yield Diagnosis(
        "killed",
        ERROR,
        line or ("OOMKilled" if found.out_of_memory else "exit code 137 (SIGKILL)"),
        "the kernel took the memory back; on unified memory GPU and host share it"
        if facts.unified(found) or line or found.out_of_memory
        else "something killed the container; the kernel does so when memory runs out",
        "lower --gpu-memory-utilization; see that MAX_JOBS caps FlashInfer's compiling; dmesg"
        " shows what the kernel did",
    )


@check
def others_killed(found: Evidence) -> Iterator[Diagnosis]:
    """The kernel ended another program for memory: the host is short of it."""
    line = line_of(
        found,
        rf"Killed process [0-9]+ \((?!{_OURS})|oom-kill:.*task=(?!{_OURS})"
        r"|Killed \S+ due to memory pressure| invoked oom-killer",
    )
    if line and not line_of(found, rf"Killed process [0-9]+ \({_OURS}"):
        yield Diagnosis(
            "host-memory",
            WARNING,
            line,
            "the machine ran out of memory, and a program was ended",
            "lower --gpu-memory-utilization on unified memory; stop other programs",
        )


@check
def headroom(found: Evidence) -> Iterator[Diagnosis]:
    """A share of unified memory that leaves the host too little."""
    if not facts.unified(found) or not (found.serves or found.flag("--gpu-memory-utilization")):
        return
    given = found.flag("--gpu-memory-utilization")
    text = given or faults.default("--gpu-memory-utilization", found.version)
    if not _SHARE.fullmatch(text):
        return
    share, total = float(text), facts.memory(found)
    rest = total * (1 - share) / 2**30
    if rest >= HEADROOM_GIB:
        return
    said = f"--gpu-memory-utilization {text}" if given else f"vLLM's default share of {text}"
    yield Diagnosis(
        "unified-headroom",
        WARNING if found.ready or found.answered else ERROR,
        f"{said} asks for {total * share / 2**30:.0f} of {total / 2**30:.1f} GiB and leaves the"
        f" host {rest:.1f}",
        "the GPU's memory is the host's: that much is rarely free at the start, and without a"
        " reserve the host freezes",
        f"--gpu-memory-utilization 0.85, or at most {1 - HEADROOM_GIB * 2**30 / total:.2f}",
    )


@check
def shared_memory(found: Evidence) -> Iterator[Diagnosis]:
    """/dev/shm is small, or full."""
    if found.shm_bytes is not None and found.shm_bytes < 2**30 and found.ipc != "host":
        yield Diagnosis(
            "shm",
            WARNING,
            f"/dev/shm has {found.shm_bytes // 2**20} MiB",
            "vLLM's processes pass images and tensors through it",
            "ipc: host, or shm_size: 8g",
        )
    if line := failed_line(found, r"[Bb]us error|No space left on device.*shm|/dev/shm.*No space"):
        yield Diagnosis("shm", ERROR, line, "/dev/shm is full", "ipc: host, or shm_size: 8g")
