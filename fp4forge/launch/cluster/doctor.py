"""What is wrong with a model over several machines: the doctor on each log, and the odd one out."""

from __future__ import annotations

from dataclasses import dataclass

from fp4forge.doctor import examine, logs, verdict
from fp4forge.doctor.diagnosis import Diagnosis
from fp4forge.doctor.evidence import Evidence

_SILENT_SECONDS = 120.0


@dataclass(frozen=True)
class DiagnosedHost:
    """One machine: the verdict on its log, its findings, and its last sign of life."""

    host: str
    verdict: str
    why: str
    findings: tuple[Diagnosis, ...]
    alive: str
    seconds: float  # of that line, within the day; -1 if it has no time


def look(texts: dict[str, str]) -> list[DiagnosedHost]:
    """The doctor on each machine's log."""
    out = []
    for host, text in texts.items():
        found = Evidence(log=text)
        findings = examine.examine(found)
        judged = examine.judge(found, findings)
        number = logs.alive(found.parsed)
        line = found.parsed.lines[number] if number >= 0 else logs.LogLine("")
        why = judged.why + (f": {judged.quote}" if judged.quote else "")
        out.append(
            DiagnosedHost(
                host,
                judged.name,
                why,
                tuple(findings),
                found.parsed.excerpt(number),
                line.seconds,
            )
        )
    return out


def odd(seen: list[DiagnosedHost]) -> list[str]:
    """Machines that differ from the others, and how: the first place to look."""
    out = [
        f"{one.host} is the only one that is {one.verdict}: {one.why}"
        for one in seen
        if one.verdict != verdict.HEALTHY and sum(o.verdict == one.verdict for o in seen) == 1
    ]
    times = [one.seconds for one in seen if one.seconds >= 0]
    for one in seen:
        if one.seconds >= 0 and max(times) - one.seconds > _SILENT_SECONDS:
            out.append(
                f"{one.host} has been silent for {max(times) - one.seconds:.0f} s longer than the"
                f" others; its last line: {one.alive}"
            )
        if not one.alive:
            out.append(f"{one.host} has printed nothing")
    return out
