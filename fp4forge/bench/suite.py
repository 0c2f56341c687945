"""Suites of measurements, read from ``benchmarks/suites/<name>.yaml``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from fp4forge.bench.figures import FIGURES
from fp4forge.core.errors import BenchError, UsageError
from fp4forge.core.paths import BENCHMARKS
from fp4forge.inputs.reader import BrokenField, InputFormat, one_of

KINDS = ("chat", "image", "tools")
PROMPTS = ("fresh", "cached", "shared")
EOS = ("ignore", "stop")

_Name = Annotated[str, Meta(pattern="^[a-z0-9-]{1,40}$", description="lower-case letters, digits")]
_Tokens = Annotated[int, Meta(ge=1, le=2_000_000)]
_Count = Annotated[int, Meta(ge=1, le=4096)]
_Temperature = Annotated[float, Meta(ge=0, le=2)]
_Prompts = Annotated[
    str,
    one_of(
        PROMPTS,
        "fresh: never sent before; cached: sent once before the trial; shared: a trial's requests"
        " begin with the same text",
    ),
]
_Eos = Annotated[str, one_of(EOS, "whether an answer may end before its length")]


class PointSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a point measures; a point's own fields go before its table's."""

    prompt: Annotated[
        _Tokens | None, Meta(description="tokens of the prompt, the chat template's included")
    ] = None
    output: Annotated[_Tokens | None, Meta(description="tokens of each answer")] = None
    concurrency: Annotated[_Count | None, Meta(description="requests at once")] = None
    requests: Annotated[
        _Count | None, Meta(description="requests of a trial; by default the concurrency")
    ] = None
    trials: Annotated[_Count | None, Meta(description="runs of the load generator")] = None
    temperature: _Temperature | None = None
    eos: _Eos | None = None
    prompts: _Prompts | None = None
    shared: Annotated[
        _Tokens | None, Meta(description="tokens that shared prompts begin with, about")
    ] = None


class SuitePoint(PointSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of a table."""

    label: Annotated[str, Meta(min_length=1, max_length=40)]


class SuiteTable(PointSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table: what it shows, and its rows."""

    id: _Name
    title: Annotated[str, Meta(min_length=3)]
    kind: Annotated[str, one_of(KINDS, "what is asked")] = "chat"
    show: Annotated[
        tuple[Annotated[str, one_of(FIGURES, "a figure")], ...],
        Meta(min_length=1, description="its columns"),
    ]
    of: Annotated[
        str, Meta(description="another table's id: shows other figures of its trials")
    ] = ""
    points: tuple[SuitePoint, ...] = ()

    def __post_init__(self) -> None:
        """Checks that it measures, or shows what another one measured."""
        if bool(self.of) == bool(self.points):
            raise BrokenField("points", "and of do not go together", "a table has one of them")
        labels = [point.label for point in self.points]
        if len(set(labels)) < len(labels):
            raise BrokenField("points", "have a label twice", "every label of a table is its own")


class Suite(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A suite."""

    title: Annotated[str, Meta(min_length=3)]
    seed: Annotated[int, Meta(ge=0, le=1_000_000, description="of every prompt")] = 0
    threshold: Annotated[
        float, Meta(gt=0, lt=1, description="a difference beyond it is a regression")
    ] = 0.05
    warmup: Annotated[PointSettings, Meta(description="what is sent before the first trial")] = (
        PointSettings(prompt=64, output=16)
    )
    tables: Annotated[tuple[SuiteTable, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        """Checks names across tables."""
        measured = [table.id for table in self.tables if not table.of]
        names = [table.id for table in self.tables]
        if len(set(names)) < len(names):
            raise BrokenField("tables", "have an id twice", "every table has an id of its own")
        for table in self.tables:
            if table.of and table.of not in measured:
                raise BrokenField("tables", f"have no {table.of!r}", "of names a table with points")


FORMAT = InputFormat(Suite, "suite", BenchError)


@dataclass(frozen=True, kw_only=True)
class TrialLoad:
    """A point with all its settings: what one trial sends."""

    table: str
    label: str
    kind: str = "chat"
    prompt: int = 64
    output: int = 64
    concurrency: int = 1
    requests: int = 1
    trials: int = 1
    temperature: float = 0.0
    eos: str = "ignore"
    prompts: str = "fresh"
    shared: int = 0

    @property
    def context(self) -> int:
        """Tokens of one request, with its answer."""
        return self.prompt + self.output

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.table} {self.label}"

    @property
    def weight(self) -> float:
        """About how long a trial takes, in tokens of one stream."""
        return self.requests / self.concurrency * (self.output + self.prompt / 100) + 200


def load_of(
    table: str, point: PointSettings, defaults: PointSettings, kind: str = "chat"
) -> TrialLoad:
    """A point's load: its own settings, then its table's, then the general ones."""
    given = {
        name: value
        for name in PointSettings.__struct_fields__
        for value in [getattr(point, name)]
        if value is not None
    }
    base = {
        name: value
        for name in PointSettings.__struct_fields__
        for value in [getattr(defaults, name)]
        if value is not None
    }
    merged = base | given
    merged.setdefault("requests", merged.get("concurrency", 1))
    return TrialLoad(table=table, label=getattr(point, "label", "warm-up"), kind=kind, **merged)


@dataclass(frozen=True)
class NamedSuite:
    """A suite with its name and the hash of what it measures."""

    name: str
    suite: Suite
    only: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """SHA-256 of the suite's values; comments and layout do not count."""
        return hashlib.sha256(msgspec.json.encode(self.suite)).hexdigest()

    @property
    def tables(self) -> tuple[SuiteTable, ...]:
        """The tables that were chosen, with those that show their trials."""
        chosen = [t for t in self.suite.tables if not self.only or t.id in self.only]
        wanted = {t.id for t in chosen} | {t.of for t in chosen}
        return tuple(t for t in self.suite.tables if t.id in wanted or (t.of and t.of in wanted))

    def loads(self) -> list[TrialLoad]:
        """Every point of the chosen tables, in order."""
        return [
            load_of(table.id, point, table, table.kind)
            for table in self.tables
            for point in table.points
        ]

    @property
    def warmup(self) -> TrialLoad:
        """What is sent before the first trial."""
        return load_of("warm-up", self.suite.warmup, PointSettings())


def names() -> list[str]:
    """The suites that ship with the project."""
    return sorted(path.stem for path in (BENCHMARKS / "suites").glob("*.yaml"))


def load(name: str, only: tuple[str, ...] = ()) -> NamedSuite:
    """A suite by its name, or by the path of its file.

    Raises:
        BenchError: its file is malformed.
        UsageError: there is no such suite, or it has no such table.
    """
    path = BENCHMARKS / "suites" / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    elif name not in names():
        raise UsageError(
            f"no suite {name!r}", rule=f"{', '.join(names())}, or the path of a YAML file"
        )
    suite = FORMAT.read(path, f"suites/{path.name}")
    ids = [table.id for table in suite.tables]
    if unknown := [table for table in only if table not in ids]:
        raise UsageError(
            f"the suite has no table {', '.join(unknown)}", rule="--only takes " + ", ".join(ids)
        )
    return NamedSuite(path.stem, suite, only)
