"""A result's tables: rows of values and texts, for the terminal, Markdown, JSON and the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fp4forge.bench.figures import FIGURES, value
from fp4forge.bench.result import BenchResult, Trial
from fp4forge.bench.suite import SuiteTable, TrialLoad

NOTHING = "–"


@dataclass(frozen=True)
class TableRow:
    """A point's values by figure, with what was remarked about its trials."""

    label: str
    values: dict[str, float | None]
    marks: tuple[str, ...] = ()  # faults first, then notes

    @property
    def measured(self) -> bool:
        """Whether any of its figures has a value."""
        return any(found is not None for found in self.values.values())


@dataclass(frozen=True)
class ShownTable:
    """A table with its rows."""

    id: str
    title: str
    figures: tuple[str, ...]
    rows: tuple[TableRow, ...]
    why: str = ""  # why it was left out

    @property
    def heads(self) -> list[str]:
        """Titles of its columns, with units."""
        named = [FIGURES[name] for name in self.figures]
        return [f"{each.title}, {each.unit}" if each.unit else each.title for each in named]


def tables(result: BenchResult) -> list[ShownTable]:
    """Every table of a result; one that nothing was measured of is left away."""
    found = [_shown_table(result, table) for table in result.measured.tables]
    return [table for table in found if table.why or any(row.measured for row in table.rows)]


def _shown_table(result: BenchResult, table: SuiteTable) -> ShownTable:
    source = table.of or table.id
    loads = [load for load in result.named.loads() if load.table == source]
    single = next((load for load in loads if load.concurrency == 1), None)
    base = result.measured_trials(source, single.label) if single else []
    rows = [
        _table_row(table, load, result.measured_trials(source, load.label), base, result.complete)
        for load in loads
        if result.measured_trials(source, load.label)
    ]
    # A figure that no row has is not of this server: without a drafter nothing is accepted.
    shown = tuple(name for name in table.show if any(row.values[name] is not None for row in rows))
    return ShownTable(table.id, table.title, shown, tuple(rows), result.left_out.get(source, ""))


def _table_row(
    table: SuiteTable, load: TrialLoad, trials: list[Trial], base: list[Trial], complete: bool
) -> TableRow:
    values = {name: value(name, trials, base, load.concurrency) for name in table.show}
    faults = [problem for trial in trials for problem in trial.problems]
    notes = [note for trial in trials for note in trial.notes]
    if len(trials) < load.trials and not complete:
        notes.append(f"{len(trials)} of {load.trials} trials")
    return TableRow(load.label, values, (*_grouped(faults), *_grouped(notes)))


def _grouped(texts: list[str]) -> list[str]:
    """Texts that differ only in their numbers as one: the first, with how many there are."""
    kinds: dict[str, list[str]] = {}
    for each in texts:
        kinds.setdefault(re.sub(r"[0-9]+", "", each), []).append(each)
    return [
        same[0] if len(same) == 1 else f"{same[0]} ({len(same)} trials alike)"
        for same in kinds.values()
    ]


def text(name: str, found: float | None) -> str:
    """A figure's value for people."""
    return NOTHING if found is None else f"{found:,.{FIGURES[name].digits}f}"


def as_data(result: BenchResult) -> dict[str, Any]:
    """What --json prints."""
    import msgspec

    return {
        "suite": result.suite,
        "suite_hash": result.suite_hash,
        "date": result.date,
        "complete": result.complete,
        "identity": msgspec.to_builtins(result.identity),
        "load_seconds": result.load_seconds,
        "left_out": result.left_out,
        "problems": result.problems,
        "peaks": peaks(result),
        "tables": {
            table.id: {row.label: row.values for row in table.rows} for table in tables(result)
        },
    }


def peaks(result: BenchResult) -> dict[str, float]:
    """The best of the whole run: throughput, the server's own peaks, decode of one stream."""
    found: dict[str, float] = {}
    for load in result.named.loads():
        trials = result.measured_trials(load.table, load.label)
        names = ["aggregate", "generation_peak", "total_peak"] if load.concurrency > 1 else []
        names += ["decode_median"] if load.concurrency == 1 else []
        for name in names:
            best = value(name, trials)
            if best is not None and load.kind == "chat":
                found[name] = max(found.get(name, 0.0), best)
    return found


def markdown(result: BenchResult) -> str:
    """The tables for a README."""
    lines = [f"## {result.measured.title}", "", _subtitle(result), ""]
    for table in tables(result):
        lines += [f"### {table.title}", ""]
        if table.why:
            lines += [f"Not measured: {_markdown_cell(table.why)}", ""]
            continue
        lines.append("| | " + " | ".join(table.heads) + " |")
        lines.append("|---|" + "---:|" * len(table.heads))
        for row in table.rows:
            cells = [text(name, row.values[name]) for name in table.figures]
            mark = "*" if row.marks else ""
            lines.append(f"| {_markdown_cell(row.label)}{mark} | " + " | ".join(cells) + " |")
        lines.append("")
        lines += [
            f"\\* {row.label}: {_markdown_cell('; '.join(row.marks))}"
            for row in table.rows
            if row.marks
        ]
        lines += [""] if any(row.marks for row in table.rows) else []
    if result.problems:
        lines += ["**These figures do not count:**", ""]
        lines += [f"- {_markdown_cell(problem)}" for problem in result.problems]
    return "\n".join(lines).rstrip() + "\n"


def _subtitle(result: BenchResult) -> str:
    return ", ".join(_markdown_cell(part) for part in facts(result))


def facts(result: BenchResult) -> list[str]:
    """What was measured, on what and when, in short."""
    who = result.identity
    gpus = [f"{gpu.name} (driver {gpu.driver})" for gpu in who.gpus]
    found = [who.model, *gpus, "" if gpus else who.processor]
    found += [f"vLLM {who.server_version}", who.image and f"image {who.image[:19]}"]
    found += [who.plan and f"plan {who.plan}", f"measured by vLLM {who.client_version}"]
    found += [f"suite {result.suite} {result.suite_hash[:12]}", result.date]
    return [part for part in found if part]


def _markdown_cell(text_: str) -> str:
    return " ".join(text_.replace("|", "\\|").replace("<", "&lt;").split())
