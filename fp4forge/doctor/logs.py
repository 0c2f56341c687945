"""A server's log as lines with time and level, whatever program printed or kept it.

vLLM's own prefix, and those of docker compose, kubectl, journald and the runtimes' JSON files.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from fp4forge.core.text import shown

_ALIKE = 200  # lines of one kind that are kept
_NO_DIGITS = str.maketrans("", "", "0123456789")
READY = re.compile(r"Application startup complete|Uvicorn running on ")
START = re.compile(r"vLLM API server version ")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r$")
_SERVICE = re.compile(r"[\w.@/-]{1,80} *\| ?")
_POD = re.compile(r"\[pod/[\w./-]{1,200}\] ?")
_ISO = re.compile(
    r"([0-9]{4}-[01][0-9]-[0-3][0-9])[T ]([0-2][0-9]:[0-5][0-9]:[0-5][0-9])"
    r"(?:[.,][0-9]{1,9})?(?:Z|[+-][0-9]{2}:?[0-9]{2})? +(?:std(?:out|err) [FP] )?"
)
_SYSLOG = re.compile(
    r"[A-Z][a-z]{2} [ 0-9][0-9] ([0-2][0-9]:[0-5][0-9]:[0-5][0-9])(?:\.[0-9]{1,9})? (?=\S+ \S+: )"
)
_FIELD = re.compile(r" {0,8}MESSAGE=")  # journalctl -o verbose and -o export
# With this begins a line of vLLM or uvicorn; what stands before it is a collector's.
_MARK = re.compile(
    r"\([\w-]{1,60} pid=[0-9]{1,9}"
    r"|(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)(?: [01][0-9]-[0-3][0-9] |: {2})"
)
_COLLECTOR = 120  # characters of its prefix, at most
_UNIT = re.compile(r"[\w.-]{1,64} [\w@./-]{1,64}(?:\[[0-9]{1,9}\])?: ")
_PROCESS = re.compile(r"\([\w-]{1,60} pid=[0-9]{1,9}(?:, ip=[^)\s]{1,45})?\) ?")
_LOGGER = re.compile(
    r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ([01][0-9])-([0-3][0-9])"
    r" ([0-2][0-9]:[0-5][0-9]:[0-5][0-9])"
    r"(?:\.[0-9]{1,6})? \[([^\]]{1,200})\] ?"
)
_REQUEST = re.compile(
    r"(.{0,120}?(?:Received request|Request) \S{1,200}(?=[: ]))(?:.*prompt: .*|: .*)$"
)
_SERVER = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL): +")
_RAISED = re.compile(
    r"((?:[A-Za-z_]\w{0,80}\.){0,6}[A-Z]\w{0,80}(?:Error|Exception|Interrupt|Exit|OutOfMemory)"
    r"|Error|fatal error|FATAL|Fatal Python error|terminate called after throwing)(?::|$| an )"
)
# They wrap another exception, which stands before them.
WRAPPERS = re.compile(
    r"See root cause above|Engine core initialization failed|EngineDeadError|"
    r"WorkerProc (?:initialization|hit an exception)|EngineCore encountered|SystemExit|"
    r"KeyboardInterrupt|CancelledError|CalledProcessError|Engine core proc|Traceback \(most recent"
)
_PLACE = re.compile(r'\s*File "([^"]{1,300})", line ([0-9]{1,7}), in (\S{1,100})')


@dataclass(frozen=True)
class LogLine:
    """One line without its prefixes; seconds count within the log, -1 if it has no time."""

    text: str
    level: str = ""
    seconds: float = -1
    place: str = ""


@dataclass(frozen=True)
class LoggedException:
    """An exception: what it says, where it was raised, and the number of its line."""

    text: str
    where: str
    number: int


@dataclass(frozen=True)
class ServerLog:
    """A whole log; ``text`` is its lines without prefixes."""

    lines: tuple[LogLine, ...]
    text: str

    @property
    def ready(self) -> int:
        """The number of the last line that says the server is ready; -1 if none does."""
        return last(self, READY)

    def excerpt(self, number: int) -> str:
        """A line, fit to show."""
        return shown(self.lines[number].text, 300) if 0 <= number < len(self.lines) else ""


@lru_cache(maxsize=8)
def parse(text: str) -> ServerLog:
    """The lines of a log; of several starts, only the last one counts once it was ready."""
    raw = [_ESCAPES.sub("", line) for line in _without_repeats(text.split("\n"))]
    prefixed = sum(1 for line in raw if _SERVICE.match(line) and "| UNEXPECTED" not in line)
    service = prefixed >= max(2, 0.8 * sum(1 for line in raw if line.strip()))
    lines = tuple(_log_line(line, service) for line in raw)
    if collected := _collector_prefix(lines):
        raw = [collected.sub("", line.text, count=1) for line in lines]
        lines = tuple(_log_line(line, False) for line in raw)
    starts = [number for number, line in enumerate(lines) if START.search(line.text)]
    if len(starts) > 1 and any(READY.search(line.text) for line in lines[starts[-1] :]):
        lines = lines[starts[-1] :]
    return ServerLog(lines, "\n".join(line.text for line in lines))


def _collector_prefix(lines: tuple[LogLine, ...]) -> re.Pattern[str] | None:
    """The prefix that a collector unknown here puts before most lines; None if there is none."""
    shapes: Counter[str] = Counter()
    full = [line.text for line in lines if line.text.strip()]
    for text in full:
        if (mark := _MARK.search(text[: _COLLECTOR + 30])) and 0 < mark.start() <= _COLLECTOR:
            parts = re.split(r"([0-9]+)", text[: mark.start()])
            shapes["".join("[0-9]+" if p.isdecimal() else re.escape(p) for p in parts)] += 1
    for shape, _ in shapes.most_common(1):
        pattern = re.compile(shape)
        if sum(1 for text in full if pattern.match(text)) >= max(2, 0.8 * len(full)):
            return pattern
    return None


def _without_repeats(raw: list[str]) -> list[str]:
    """Lines without what a server repeats for days.

    Of lines that differ in numbers alone the first ones are kept, and so is the end of the log.
    """
    seen: Counter[str] = Counter()
    end = len(raw) - _ALIKE
    kept: list[str] = []
    for number, line in enumerate(raw):
        if number >= end:
            return kept + raw[number:]
        key = line[:200].translate(_NO_DIGITS)[:120]
        seen[key] += 1
        if seen[key] <= _ALIKE or not key:
            kept.append(line)
    return kept


def last(log: ServerLog, pattern: re.Pattern[str]) -> int:
    """The number of the last line that matches; -1 if none does."""
    for number in range(len(log.lines) - 1, -1, -1):
        if pattern.search(log.lines[number].text):
            return number
    return -1


def _log_line(raw: str, service: bool) -> LogLine:
    text, seconds = raw, -1.0
    if raw.startswith("{"):
        text = _ESCAPES.sub("", _message_of_json(raw))
    text = _FIELD.sub("", text, count=1) if "MESSAGE=" in text[:20] else text
    if service:
        text = _SERVICE.sub("", text, count=1)
    text = _POD.sub("", text, count=1) if text.startswith("[pod/") else text
    if match := _ISO.match(text):
        seconds = _log_seconds(match[1], match[2])
        text = text[match.end() :]
        if (unit := _UNIT.match(text)) and not text.startswith("("):
            text = text[unit.end() :]
    elif match := _SYSLOG.match(text):
        seconds = _log_seconds(text[:6] + " 2000", match[1], "%b %d %Y")
        text = text[match.end() :]
        text = _UNIT.sub("", text, count=1)
    while match := _PROCESS.match(text):
        text = text[match.end() :]
    if asked := _REQUEST.match(text):
        return LogLine(asked[1], "INFO", seconds)  # the rest is a client's text
    if match := _LOGGER.match(text):
        clock = _log_seconds(f"2000-{match[2]}-{match[3]}", match[4])
        return LogLine(text[match.end() :], match[1], clock if clock >= 0 else seconds, match[5])
    if match := _SERVER.match(text):
        return LogLine(text[match.end() :], match[1], seconds)
    return LogLine(text, "", seconds)


def _message_of_json(raw: str) -> str:
    """The message in a line of JSON: of Docker's json-file driver, the journal, or a collector."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    if not isinstance(found, dict):
        return raw
    for key in ("log", "MESSAGE", "message", "msg", "line"):
        value = found.get(key)
        if isinstance(value, list):  # the journal's form of a text with colours
            value = _from_bytes(value)
        if isinstance(value, str) and value:
            return value.rstrip("\n")
    return raw


def _from_bytes(value: list[object]) -> str:
    numbers = [n for n in value if isinstance(n, int) and 0 <= n < 256]
    return bytes(numbers).decode(errors="replace") if len(numbers) == len(value) else ""


@lru_cache(maxsize=1 << 16)
def _log_seconds(day: str, clock: str, form: str = "%Y-%m-%d") -> float:
    try:
        found = datetime.strptime(f"{day} {clock}", f"{form} %H:%M:%S")
    except ValueError:
        return -1
    return (found - datetime(1970, 1, 1)).total_seconds()


def raised(log: ServerLog, since: int = 0) -> Iterator[LoggedException]:
    """Every exception that a log names, in order, without those that only wrap another."""
    place = ""
    for number, line in enumerate(log.lines[since:], since):
        if match := _PLACE.match(line.text):
            place = f"{match[1]}, line {match[2]}, in {match[3]}"
        elif _RAISED.match(line.text) and not WRAPPERS.search(line.text):
            yield LoggedException(shown(line.text, 400), shown(place, 300), number)
            place = ""


def root(log: ServerLog, since: int = 0) -> LoggedException | None:
    """The exception that came first: what follows is what it caused."""
    return next(raised(log, since), None)


def alive(log: ServerLog) -> int:
    """The number of the last line that shows work, rather than waiting; -1 if none does."""
    waiting = re.compile(r"No available shared memory broadcast block|^\s*$")
    for number in range(len(log.lines) - 1, -1, -1):
        if not waiting.search(log.lines[number].text):
            return number
    return -1


def silence(log: ServerLog) -> float:
    """Seconds between the last line that shows work and the last line of all."""
    number = alive(log)
    times = [line.seconds for line in log.lines if line.seconds >= 0]
    before = [line.seconds for line in log.lines[: number + 1] if line.seconds >= 0]
    return max(0.0, times[-1] - before[-1]) if times and before else 0.0
