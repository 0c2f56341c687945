"""What a check is made of: findings, what a vLLM log says, and the list of checks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fp4forge.core.text import shown
from fp4forge.doctor.evidence import Evidence

ERROR, WARNING, NOTE = "error", "warning", "note"
# They say that something is wrong, not what: alone they leave the cause unclear.
SYMPTOMS = ("exited", "unhealthy", "restarts", "stall", "tool-call", "needle")


@dataclass(frozen=True)
class Diagnosis:
    """One thing that is wrong: what was seen, why it happens, what to do, and who says so."""

    id: str
    severity: str
    evidence: str
    cause: str
    fix: str
    source: str = ""


@dataclass(frozen=True)
class LogFacts:
    """What a vLLM log says; empty if it says nothing."""

    linear: str = ""
    moe: str = ""
    attention: str = ""
    kv_tokens: str = ""
    checkpoint: bool = False
    ready: bool = False


def read_log(text: str) -> LogFacts:
    """Backends and state from a log of any supported release."""

    def first(pattern: str) -> str:
        match = re.search(pattern, text)
        return match[1] if match else ""

    return LogFacts(
        # 0.19.1 quantization/utils/nvfp4_utils.py:85; 0.20.2 kernels/linear/__init__.py:683
        linear=first(r"Using (?:NvFp4LinearBackend\.)?(\w+) for NVFP4 GEMM"),
        # fused_moe/oracle/nvfp4.py of both
        moe=first(r"Using '(\w+)' NvFp4 MoE backend"),
        attention=first(r"Using (?:AttentionBackendEnum\.)?(\w+) (?:attention )?backend"),
        kv_tokens=first(r"GPU KV cache size: ([\d,]+) tokens"),
        checkpoint="Detected ModelOpt NVFP4 checkpoint" in text,
        ready="Application startup complete" in text,
    )


Check = Callable[[Evidence], Iterator[Diagnosis]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Registers a check; they run in the order in which they stand here."""
    CHECKS.append(function)
    return function


def line_of(found: Evidence, pattern: str) -> str:
    """The first log line that matches, without its prefix; empty if none does."""
    match = re.search(pattern, found.parsed.text)
    return line_at(found, match.start()) if match else ""


def line_at(found: Evidence, place: int) -> str:
    """The log line at a place of its text, fit to show."""
    log = found.parsed.text
    start = log.rfind("\n", 0, place) + 1
    return shown(log[start:].partition("\n")[0], 300)


def failed_line(found: Evidence, pattern: str) -> str:
    """As ``line_of``, if the server was not ready afterwards: a server that starts refutes it."""
    log = found.parsed.text
    for match in re.finditer(pattern, log):
        if not _ready_after(found, match.start()):
            return line_at(found, match.start())
    return ""


def _ready_after(found: Evidence, place: int) -> bool:
    ready = found.parsed.ready
    return ready >= 0 and found.parsed.text.count("\n", 0, place) < ready
