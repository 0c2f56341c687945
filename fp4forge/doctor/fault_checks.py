"""Known faults (``models/faults.yaml``) against the evidence."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fp4forge.core.text import shown
from fp4forge.doctor import facts
from fp4forge.doctor.diagnosis import ERROR, Diagnosis, check, failed_line, line_of
from fp4forge.doctor.evidence import Evidence
from fp4forge.models import faults
from fp4forge.models.faults import KnownFault


@check
def known(found: Evidence) -> Iterator[Diagnosis]:
    """Every known fault that the evidence shows and does not refute."""
    versions = facts.versions(found)
    for fault in faults.table().faults:
        version = versions.get(fault.component, "")
        seen = _fault_seen(fault, found, version)
        if seen and not _fault_refuted(fault, found, version):
            yield Diagnosis(fault.id, fault.severity, seen, fault.symptom, fault.fix, fault.source)


def _fault_seen(fault: KnownFault, found: Evidence, version: str) -> str:
    """What shows the fault; empty if nothing does."""
    if fault.signature:
        if fault.persists or fault.severity != ERROR:
            return line_of(found, fault.signature)
        return failed_line(found, fault.signature)
    if fault.flags and not (fault.first_bad or fault.fixed_in):
        return _needed_flags(fault, found) or ""
    return f"{fault.component} {shown(version, 40)}" if fault.concerns(version) else ""


def _needed_flags(fault: KnownFault, found: Evidence) -> str | None:
    """The flags that the fault needs; None if one is missing."""
    said = []
    for flag, pattern in fault.flags.items():
        value = facts.setting(found, flag.removeprefix("--"))
        if value is None or not re.search(pattern, value, re.I):
            return None
        said.append(f"{flag} {shown(value, 100)}".strip())
    return ", ".join(said)


def _fault_refuted(fault: KnownFault, found: Evidence, version: str) -> bool:
    """Whether what is known speaks against the fault; without a signature, what is unknown too."""
    certain = bool(fault.signature)
    if fault.concerns(version) is False:
        return True
    unsure = fault.concerns(version) is None
    # A fault that came with a release is one of known releases only.
    if unsure and (fault.first_bad or (fault.fixed_in and not certain)):
        return True
    if fault.unless and re.search(fault.unless, found.parsed.text):
        return True
    known = facts.capabilities(found)
    if fault.gpus and not any(fault.on(name) for name in known) and (known or not certain):
        return True
    if fault.families and facts.family_name(found) not in fault.families:
        return True
    if fault.flags and _needed_flags(fault, found) is None:
        return True
    return fault.split and facts.split(found).world < 2
