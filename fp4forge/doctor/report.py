"""The doctor's report: as rows for people, as JSON, and as the command's failure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fp4forge.core.errors import ForgeError, ServingError, UnclearError
from fp4forge.core.text import shown
from fp4forge.doctor import diagnosis
from fp4forge.doctor.diagnosis import Diagnosis
from fp4forge.doctor.evidence import Evidence, GivenEvidence
from fp4forge.doctor.verdict import HEALTHY, ILL, DoctorVerdict


def data(found: Evidence, findings: list[Diagnosis], verdict: DoctorVerdict) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "verdict": asdict(verdict),
        "examined": [asdict(entry) for entry in _examined_evidence(found)],
        "log": asdict(diagnosis.read_log(found.parsed.text)),
        "findings": [asdict(f) for f in findings],
    }


def rows(
    found: Evidence, findings: list[Diagnosis], verdict: DoctorVerdict
) -> list[tuple[str, str]]:
    """The report as rows: the verdict, each finding, and what each piece of evidence gave."""
    said = verdict.why
    if verdict.quote:
        said += f"\n{verdict.quote}"
    if verdict.where:
        said += f"\nraised at {verdict.where}"
    out = [(verdict.name, said)]
    for f in findings:
        source = f"\nsource: {f.source}" if f.source else ""
        out.append(
            (f"{f.severity}: {f.id}", f"{f.evidence}\ncause: {f.cause}\nfix: {f.fix}{source}")
        )
    return out + [
        (f"from {shown(entry.name, 200)}", gave(entry)) for entry in _examined_evidence(found)
    ]


def _examined_evidence(found: Evidence) -> list[GivenEvidence]:
    """What was handed over, and the live server."""
    return found.inputs + ([GivenEvidence(found.url, found.live.facts)] if found.live else [])


def gave(entry: GivenEvidence) -> str:
    """What a piece of evidence contributed, or what could be read instead."""
    if entry.gave:
        return shown("; ".join(entry.gave), 2000)
    return "nothing could be read from it" + (f"; readable is {entry.form}" if entry.form else "")


def failure(findings: list[Diagnosis], verdict: DoctorVerdict) -> ForgeError | None:
    """What the command ends with; None if the server is healthy."""
    errors = [f.id for f in findings if f.severity == diagnosis.ERROR]
    if verdict.name == HEALTHY:
        return None
    if verdict.name == ILL:
        return ServingError(f"wrong: {', '.join(errors)}", remedy="each finding has its fix")
    return UnclearError(
        f"unclear: {verdict.why}" + (f": {verdict.quote}" if verdict.quote else ""),
        remedy="the whole log, docker inspect and nvidia-smi say more; --bundle packs them",
    )
