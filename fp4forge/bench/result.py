"""A result: what was measured, on what, with every trial; written whole after each trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fp4forge.bench.suite import NamedSuite, Suite
from fp4forge.core import files, reading
from fp4forge.core.errors import BenchError
from fp4forge.core.limits import BENCH_BYTES

FORM = 1  # of the file; another form is refused
FILE = "result.json"


class TimedRequest(Struct, frozen=True, kw_only=True):
    """One request, as the client saw it; tokens and seconds."""

    prompt: int
    output: int
    ttft: float
    decode: float  # from the first token to the last

    @property
    def rate(self) -> float:
        """Tokens a second, not counting the first token; 0 for a single token."""
        return (self.output - 1) / self.decode if self.output > 1 and self.decode > 0 else 0.0


class ServerCounters(Struct, frozen=True, kw_only=True):
    """What the server's own counters say of a trial; None where it does not say."""

    requests: int | None = None
    ttft: float | None = None  # mean, seconds
    generation_peak: float | None = None  # tokens in the best second
    total_peak: float | None = None
    hit_rate: float | None = None
    cache_peak: float | None = None  # share of the KV cache
    preemptions: int | None = None
    acceptance: float | None = None
    tokens_per_step: float | None = None


class Trial(Struct, frozen=True, kw_only=True):
    """One run of the load generator. It counts only if ``problems`` is empty."""

    requests: tuple[TimedRequest, ...] = ()
    seconds: float = 0.0  # from the first request to the last answer
    failed: int = 0
    right_calls: int | None = None  # of tool calls
    server: ServerCounters = ServerCounters()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    date: str = ""

    @property
    def valid(self) -> bool:
        """Whether its figures count."""
        return not self.problems


class MeasuredGpu(Struct, frozen=True, kw_only=True):
    """A GPU as nvidia-smi sees it; clocks in MHz, power limit in W."""

    name: str
    driver: str = ""
    clock: str = ""
    clock_limit: str = ""
    memory_clock: str = ""
    power_limit: str = ""


class MeasuredIdentity(Struct, frozen=True, kw_only=True):
    """What was measured, and with what. Empty: not known."""

    model: str
    model_root: str = ""
    model_hash: str = ""
    context: int = 0
    server_version: str = ""
    image: str = ""
    plan: str = ""
    release: str = ""
    variant: str = ""
    patches: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    gpus: tuple[MeasuredGpu, ...] = ()
    processor: str = ""
    client_image: str = ""
    client_version: str = ""
    thinking: bool = False  # whether the model reasons before it answers
    allow_empty: bool = False  # as --allow-empty

    def differences(self, other: MeasuredIdentity) -> list[tuple[str, str, str]]:
        """Fields that differ, with both values; clocks aside, which never stay the same."""
        mine, theirs = (_comparable(each) for each in (self, other))
        return [
            (name, str(value), str(theirs[name]))
            for name, value in mine.items()
            if value != theirs[name]
        ]


def _comparable(identity: MeasuredIdentity) -> dict[str, Any]:
    found = {name: getattr(identity, name) for name in identity.__struct_fields__}
    found["gpus"] = [(gpu.name, gpu.driver) for gpu in identity.gpus]
    return found


class Roofline(Struct, frozen=True, kw_only=True):
    """What memory bandwidth allows one stream to decode at most, from ``serve fit``."""

    gpu: str
    rates: dict[int, float] = {}  # context -> tokens a second


class BenchResult(Struct, kw_only=True):
    """A whole result."""

    form: int = FORM
    suite: str  # its name
    suite_hash: str
    measured: Suite  # the suite itself: an old result needs no file of this project
    fp4forge: str
    date: str
    identity: MeasuredIdentity
    tables: dict[str, dict[str, list[Trial]]] = {}
    left_out: dict[str, str] = {}  # table or point -> why
    load_seconds: float | None = None  # from the container's start until the server was ready
    roofline: Roofline | None = None
    complete: bool = False

    @property
    def named(self) -> NamedSuite:
        """Its suite."""
        return NamedSuite(self.suite, self.measured)

    def trials(self, table: str, label: str) -> list[Trial]:
        """The trials of a point, in order; a list that can be added to."""
        return self.tables.setdefault(table, {}).setdefault(label, [])

    def measured_trials(self, table: str, label: str) -> list[Trial]:
        """The trials of a point; none if it was not measured."""
        return self.tables.get(table, {}).get(label, [])

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong with it, a line each."""
        return [
            f"{table} {label}, trial {number}: {problem}"
            for table, points in self.tables.items()
            for label, trials in points.items()
            for number, trial in enumerate(trials, 1)
            for problem in trial.problems
        ]


def save(result: BenchResult, folder: Path) -> None:
    """Writes the file of a result; it is never seen half written."""
    text = msgspec.json.format(msgspec.json.encode(result), indent=1)
    files.replace(folder / FILE, text)


def load(path: Path) -> BenchResult:
    """A result, from its file or its folder.

    Raises:
        BenchError: there is none, or it is not of this form.
    """
    path = path / FILE if reading.is_folder(path) else path
    data = reading.content(path, BenchError, BENCH_BYTES)
    found = reading.json(data, BenchResult, str(path), BenchError)
    if found.form != FORM:
        raise BenchError(
            f"{path} has form {found.form}",
            rule=f"this fp4forge reads form {FORM}",
            remedy="measure again, or use the fp4forge that wrote it",
        )
    return found
