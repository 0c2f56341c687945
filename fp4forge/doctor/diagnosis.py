"""What a check is made of: findings, what a vLLM log says, and the list of checks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fp4forge.core.text import shown
from fp4forge.doctor.evidence import Evidence

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what was seen, why it happens, what to do."""

    id: str
    severity: str
    evidence: str
    cause: str
    fix: str


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


Check = Callable[[Evidence], Iterator[Finding]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Registers a check; they run in the order in which they stand here."""
    CHECKS.append(function)
    return function


def line_of(found: Evidence, pattern: str) -> str:
    """The first log line that matches, without its prefix; empty if none does."""
    log = found.log or ""
    match = re.search(pattern, log)
    if not match:
        return ""
    start = log.rfind("\n", 0, match.start()) + 1
    line = log[start:].partition("\n")[0]
    return shown(re.sub(r"^(\(\w+ pid=\d+\) )?(\w+ [\d-]+ [\d:]+ \[\S+\] )?", "", line), 300)
