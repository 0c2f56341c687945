"""Checks of the checkpoint itself, if this host has it: format and completeness."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from packaging.version import Version

from fp4forge.checkpoint import inspect
from fp4forge.core.errors import ForgeError
from fp4forge.core.text import shown
from fp4forge.doctor import facts
from fp4forge.doctor.diagnosis import ERROR, Diagnosis, check, line_of
from fp4forge.doctor.evidence import Evidence

_LOADED = r"Loading weights took|Application startup complete"
_NEWER = "needs-newer-vllm"  # the doctor asks about the server's own vLLM


@check
def checkpoint(found: Evidence) -> Iterator[Diagnosis]:
    """A format that this vLLM does not load, or a checkpoint that is not whole."""
    if line_of(found, _LOADED):
        return
    for folder, _ in facts.folders(found):
        seen = _inspected_checkpoint(folder)
        if seen is None:
            continue
        where = shown(folder, 300)
        if found.version and seen.since and Version(found.version) < Version(seen.since):
            yield Diagnosis(
                "checkpoint-format",
                ERROR,
                f"{where}: {seen.format}",
                f"vLLM {found.version} does not load this format; {seen.since} does",
                f"an image with vLLM {seen.since} or later",
                "models/formats.yaml",
            )
        broken = [f for f in seen.findings if f.severity == inspect.ERROR and f.id != _NEWER]
        if broken:
            yield Diagnosis(
                "checkpoint",
                ERROR,
                f"{where}: " + ", ".join(f.id for f in broken),
                broken[0].text,
                f"build.py checkpoint inspect {where} has the places, and what to do",
            )


@lru_cache(maxsize=8)
def _inspected_checkpoint(folder: Path) -> inspect.Inspection | None:
    """What checkpoint inspect says; None without weights here."""
    try:
        return inspect.inspect(folder)
    except ForgeError:
        return None
