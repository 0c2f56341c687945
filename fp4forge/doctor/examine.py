"""Finds what is wrong with a server, from whatever evidence there is."""

from __future__ import annotations

from fp4forge.doctor import (
    backend_checks,
    checkpoint_checks,
    fault_checks,
    gpu_checks,
    host_checks,
    live_checks,
    memory_checks,
    model_checks,
    parallel_checks,
    run_checks,
    setup_checks,
    verdict,
)
from fp4forge.doctor.diagnosis import CHECKS, ERROR, NOTE, WARNING, Diagnosis
from fp4forge.doctor.evidence import Evidence

__all__ = [
    "backend_checks",
    "checkpoint_checks",
    "examine",
    "fault_checks",
    "gpu_checks",
    "host_checks",
    "judge",
    "live_checks",
    "memory_checks",
    "model_checks",
    "parallel_checks",
    "run_checks",
    "setup_checks",
]

judge = verdict.judge


def examine(found: Evidence) -> list[Diagnosis]:
    """Every finding, the worst first."""
    findings = [finding for look in CHECKS for finding in look(found)]
    return sorted(findings, key=lambda f: (ERROR, WARNING, NOTE).index(f.severity))
