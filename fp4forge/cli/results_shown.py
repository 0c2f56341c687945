"""What commands do with a benchmark's results: hold their folder, show, judge and compare them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from fp4forge.core.console import print_json
from fp4forge.core.errors import BenchError, RegressionError

if TYPE_CHECKING:
    from fp4forge.bench.result import BenchResult

LISTED = 10  # faults in a message


def hold_result_folder(folder: Path) -> Any:
    """Holds a folder: two runs in one would spoil each other's figures.

    Raises:
        BenchError: another run holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise BenchError(f"another run is measuring in {folder}", remedy="wait for it") from None
    return lock


def write_report(result: BenchResult, folder: Path) -> None:
    """The page and the Markdown beside the result."""
    from fp4forge.bench import result_page, tables
    from fp4forge.core import files

    files.replace(folder / "index.html", result_page.page(result))
    files.replace(folder / "README.md", tables.markdown(result))


def show_result(result: BenchResult) -> None:
    """Its facts and its tables, for people."""
    from fp4forge.bench import tables
    from fp4forge.core.console import rich, table

    terminal = rich()
    terminal.print(", ".join(tables.facts(result)))
    for shown in tables.tables(result):
        if shown.why:
            terminal.print(f"{shown.title}: not measured: {shown.why}")
            continue
        rows = (
            (
                row.label + ("*" if row.marks else ""),
                *(tables.text(name, row.values[name]) for name in shown.figures),
            )
            for row in shown.rows
        )
        terminal.print(table(("", *shown.heads), rows, title=shown.title, right=shown.heads))
        for row in shown.rows:
            if row.marks:
                terminal.print(f"* {row.label}: {'; '.join(row.marks)}")
    for name, why in result.left_out.items():
        terminal.print(f"left out: {name}: {why}")


def refuse_faults(result: BenchResult, as_json: bool) -> None:
    """Ends with exit code 24 if a trial has a fault."""
    faults = result.problems
    if faults and as_json:
        sys.exit(BenchError.exit_code)
    if faults:
        more = f"\n(and {len(faults) - LISTED} more)" if len(faults) > LISTED else ""
        raise BenchError(
            "these trials do not count:\n" + "\n".join(faults[:LISTED]) + more,
            rule="every request is answered, whole, and as long as it was asked",
            remedy="the server's log says why; running again with the same --out repeats them",
        )


def compare(
    first: BenchResult,
    second: BenchResult,
    threshold: float | None,
    as_json: bool,
    *,
    card: bool = False,
    about: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Shows what changed from one result to another.

    Args:
        first: the old result.
        second: the new one.
        threshold: a difference beyond it is a regression; None: the suite's.
        as_json: whether to print JSON.
        card: whether to show the reference card's figures too.
        about: what the JSON says beside it.

    Raises:
        BenchError: they do not compare.
        RegressionError: a figure is worse by more than the threshold, with 95 % confidence.
    """
    from fp4forge.bench import compare as comparing

    comparing.check(first, second)
    limit = threshold or first.measured.threshold
    found = comparing.changes(first, second, limit, card)
    different = first.identity.differences(second.identity)
    if as_json:
        print_json({**about, "differences": different, "changes": [asdict(e) for e in found]})
    else:
        for name, one, other in different:
            click.echo(f"{name}: {one[:200]} -> {other[:200]}")
        print_ratios(found, "old", "new", with_card=card)
        if card:
            print_caveats()
    worse = [each for each in found if each.verdict == "worse"]
    if worse and as_json:
        sys.exit(RegressionError.exit_code)
    if worse:
        raise RegressionError(
            "\n".join(
                f"{w.table} {w.label}: {w.figure} {w.old:,.4g} -> {w.new:,.4g}" for w in worse
            ),
            rule=f"no figure is worse by more than {limit:.1%}, with 95 % confidence",
            remedy="repeat both runs; build.py compare shows what differs between the images",
        )


def print_caveats() -> None:
    """What keeps the card's figures from being repeated."""
    from fp4forge.bench import reference_card

    card = reference_card.card()
    click.echo(f"card: {card.machine}")
    for caveat in card.caveats:
        click.echo(f"  {caveat}")


def print_ratios(changes: Any, old: str, new: str, with_card: bool = False) -> None:
    """A table of what changed, for people; ``old`` and ``new`` are its heads."""
    from fp4forge.bench.figures import FIGURES
    from fp4forge.core.console import rich, table

    rows = []
    for each in changes:
        figure = FIGURES[each.figure]
        interval = "" if each.low is None else f"{each.low:.3f} to {each.high:.3f}"
        cells = [f"{each.table} {each.label}", f"{figure.title}, {figure.unit}".removesuffix(", ")]
        cells += [f"{value:,.{figure.digits}f}" for value in (each.old, each.new)]
        cells += [f"{each.ratio:.3f}", interval, each.verdict]
        if with_card:
            cells.append("" if each.card is None else f"{each.card:,.{figure.digits}f}")
        rows.append(cells)
    numbers = (old, new, "ratio", "95 %")
    more = ("card",) if with_card else ()
    rich().print(table(("", "figure", *numbers, "verdict", *more), rows, right=(*numbers, *more)))
