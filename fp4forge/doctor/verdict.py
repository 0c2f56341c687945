"""The verdict: ill, unclear or healthy, with what it stands on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fp4forge.doctor import logs
from fp4forge.doctor.diagnosis import ERROR, SYMPTOMS, Diagnosis
from fp4forge.doctor.evidence import Evidence

ILL, UNCLEAR, HEALTHY = "ill", "unclear", "healthy"
_BAD = re.compile(
    # What kills a process without a Python exception: signals, glibc, C++, Rust, compilers.
    r"Segmentation fault|SIGSEGV|SIGABRT|core dumped|^Killed|: segfault at |: Assertion `"
    r"|double free|free\(\): invalid|malloc\(\): |corrupted size|panicked at |CUDA error: "
    r"|^nvcc fatal|^ninja: build stopped|^Exception in thread |^Process \S+:$|slurmstepd: error"
    r"|blocked for more than [0-9]+ seconds"
    # What whoever started it says of its end.
    r"|(?:exited with|terminated with exit) code [1-9]|Main process exited|Failed with result"
    # vLLM's and uvicorn's own words.
    r"|EngineDeadError|EngineCore encountered|\b50[0-9] Internal Server Error|\" 50[0-9]\b"
    r"|Engine core proc \S+ died"
)
_AGAIN = re.compile(rf"{logs.START.pattern}|Initializing a V1 LLM engine")
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]{2,200}(?::|$)")
_ENDED = re.compile(r"^Application shutdown complete|^Finished server process")
# A client's mistake is no fault of the server.
_CLIENT = re.compile(
    r"code=4[0-9][0-9]|Error in preprocessing prompt|\b(?:BadRequest|NotFound)Error"
    r"|maximum context length"
    r"|RequestValidationError|VLLMValidationError|ClientDisconnect|HTTPException"
)


@dataclass(frozen=True)
class DoctorVerdict:
    """What the doctor says of the server as a whole."""

    name: str
    why: str
    quote: str = ""
    where: str = ""


def judge(found: Evidence, findings: list[Diagnosis]) -> DoctorVerdict:
    """The verdict on all the findings together."""
    log = found.parsed
    ready = log.ready
    first = _first_exception(log, ready + 1)
    quote, where = (first.text, first.where) if first else ("", "")
    errors = [f for f in findings if f.severity == ERROR]
    if any(f.id not in SYMPTOMS for f in errors):
        return DoctorVerdict(ILL, "each finding has its cause and its fix", quote, where)
    if not quote and (bad := _bad_line(log, ready + 1)):
        quote = bad
    if quote:
        after = " after the server was ready" if ready >= 0 else ""
        return DoctorVerdict(
            UNCLEAR, f"something went wrong{after}; cause not known here", quote, where
        )
    if errors:
        seen = "; ".join(f.evidence for f in errors)
        return DoctorVerdict(UNCLEAR, f"{seen}; cause not known here", log.excerpt(logs.alive(log)))
    if found.live and found.answered:
        minutes = found.live.seconds / 60
        asked = f"{len(found.live.asked)} answers" + (f" in {minutes:.0f} minutes" * (minutes > 2))
        return DoctorVerdict(HEALTHY, f"the server knows France's capital; nothing bad in {asked}")
    if found.url:
        return DoctorVerdict(UNCLEAR, "the server gave no answer that can be judged")
    if ready >= 0 and (again := _later_line(log, ready, _AGAIN)):
        return DoctorVerdict(
            UNCLEAR, "the server started again, and has not been ready since", again
        )
    if ready >= 0:
        ended = "; it was shut down in order" if _later_line(log, ready, _ENDED) else ""
        why = f"the server became ready, and nothing bad follows{ended}"
        return DoctorVerdict(HEALTHY, why, log.excerpt(ready))
    return _silent_verdict(found, log)


def _later_line(log: logs.ServerLog, since: int, pattern: re.Pattern[str]) -> str:
    """The first line after another that matches."""
    found = (n for n in range(since + 1, len(log.lines)) if pattern.search(log.lines[n].text))
    return log.excerpt(next(found, -1))


def _silent_verdict(found: Evidence, log: logs.ServerLog) -> DoctorVerdict:
    """Of evidence that ends before the server is ready."""
    alive = log.excerpt(logs.alive(log))
    if alive:
        why = "no line says that the server is ready; this is its last sign of life"
        return DoctorVerdict(UNCLEAR, why, alive)
    if found.events:
        return DoctorVerdict(UNCLEAR, "no log; this is the last event", found.events[-1])
    why = "nothing given shows whether the server works: a log or --url would"
    return DoctorVerdict(UNCLEAR, why)


def _first_exception(log: logs.ServerLog, since: int) -> logs.LoggedException | None:
    """The first exception that no client caused."""
    return next((r for r in logs.raised(log, since) if not _CLIENT.search(r.text)), None)


def _bad_line(log: logs.ServerLog, since: int) -> str:
    for number, line in enumerate(log.lines[since:], since):
        if _CLIENT.search(line.text):
            continue
        if _BAD.search(line.text) or line.level == "CRITICAL":
            return log.excerpt(number)
        if line.level == "ERROR" and line.text.strip() and line.place:
            return log.excerpt(number)
    return _traceback(log, since)


def _traceback(log: logs.ServerLog, since: int) -> str:
    """The exception of a traceback, whatever its name; of one that was cut, its first line."""
    begun = -1
    for number, line in enumerate(log.lines[since:], since):
        if line.text.startswith("Traceback (most recent call last)"):
            begun = number
        elif begun >= 0 and line.text[:1].strip():
            ends = _EXCEPTION.match(line.text) and not logs.WRAPPERS.search(line.text)
            if ends and not _CLIENT.search(line.text):
                return log.excerpt(number)
            begun = -1
    return log.excerpt(begun)
