"""The verdict: ill, unclear or healthy, with what it stands on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fp4forge.doctor import logs
from fp4forge.doctor.diagnosis import ERROR, SYMPTOMS, Finding
from fp4forge.doctor.evidence import Evidence

ILL, UNCLEAR, HEALTHY = "ill", "unclear", "healthy"
_BAD = re.compile(
    r"Segmentation fault|core dumped|^Killed|: segfault at |blocked for more than [0-9]+ seconds"
    r"|EngineDeadError|EngineCore encountered"
    r"|\b50[0-9] Internal Server Error|\" 50[0-9]\b|Engine core proc \S+ died"
)
# A client's mistake is no fault of the server.
_CLIENT = re.compile(
    r"code=4[0-9][0-9]|Error in preprocessing prompt|BadRequestError|NotFoundError"
    r"|maximum context length"
    r"|RequestValidationError|VLLMValidationError|ClientDisconnect|HTTPException"
)


@dataclass(frozen=True)
class Verdict:
    """What the doctor says of the server as a whole."""

    name: str
    why: str
    quote: str = ""
    where: str = ""


def judge(found: Evidence, findings: list[Finding]) -> Verdict:
    """The verdict on all the findings together."""
    log = found.parsed
    ready = log.ready
    first = _first(log, ready + 1)
    quote, where = (first.text, first.where) if first else ("", "")
    errors = [f for f in findings if f.severity == ERROR]
    if any(f.id not in SYMPTOMS for f in errors):
        return Verdict(ILL, "each finding has its cause and its fix", quote, where)
    if not quote and (bad := _bad(log, ready + 1)):
        quote = bad
    if quote:
        after = " after the server was ready" if ready >= 0 else ""
        return Verdict(UNCLEAR, f"something went wrong{after}; cause not known here", quote, where)
    if errors:
        seen = "; ".join(f.evidence for f in errors)
        return Verdict(UNCLEAR, f"{seen}; cause not known here", log.excerpt(logs.alive(log)))
    if found.live and found.answered:
        minutes = found.live.seconds / 60
        asked = f"{len(found.live.asked)} answers" + (f" in {minutes:.0f} minutes" * (minutes > 2))
        return Verdict(HEALTHY, f"the server knows France's capital; nothing bad in {asked}")
    if found.url:
        return Verdict(UNCLEAR, "the server gave no answer that can be judged")
    if ready >= 0:
        return Verdict(
            HEALTHY, "the server became ready, and nothing bad follows", log.excerpt(ready)
        )
    return _silent(found, log)


def _silent(found: Evidence, log: logs.Log) -> Verdict:
    """Of evidence that ends before the server is ready."""
    alive = log.excerpt(logs.alive(log))
    if alive:
        why = "no line says that the server is ready; this is its last sign of life"
        return Verdict(UNCLEAR, why, alive)
    if found.events:
        return Verdict(UNCLEAR, "no log; this is the last event", found.events[-1])
    why = "nothing given shows whether the server works: a log or --url would"
    return Verdict(UNCLEAR, why)


def _first(log: logs.Log, since: int) -> logs.Raised | None:
    """The first exception that no client caused."""
    return next((r for r in logs.raised(log, since) if not _CLIENT.search(r.text)), None)


def _bad(log: logs.Log, since: int) -> str:
    for number, line in enumerate(log.lines[since:], since):
        if _CLIENT.search(line.text):
            continue
        if _BAD.search(line.text) or line.level == "CRITICAL":
            return log.excerpt(number)
        if line.level == "ERROR" and line.text.strip() and line.place:
            return log.excerpt(number)
    return ""
