"""Compares two results: ratios with confidence, from the same points and the same prompts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fp4forge.bench import reference_card
from fp4forge.bench.figures import FIGURES, RELATIVE, quantile, samples, value
from fp4forge.bench.result import BenchResult
from fp4forge.bench.suite import TrialLoad
from fp4forge.core.errors import BenchError

Reduce = Callable[[Sequence[float]], float]
DRAWS = 4000  # of the bootstrap
SEED = 20261127
CONFIDENCE = 0.95
LEAST = 3  # samples, below which no interval is given


@dataclass(frozen=True)
class FigureChange:
    """A figure of a point in both results; ratio is new / old."""

    table: str
    label: str
    figure: str
    old: float
    new: float
    ratio: float
    low: float | None = None
    high: float | None = None
    verdict: str = ""  # worse, better, same, or unsure
    card: float | None = None


def check(old: BenchResult, new: BenchResult) -> None:
    """Refuses results that do not compare.

    Raises:
        BenchError: with the reason.
    """
    rule = "results compare if suite, model and load generator agree and no trial has a fault"
    for name, result in (("the first", old), ("the second", new)):
        if result.problems:
            raise BenchError(
                f"{name} result has faults: {result.problems[0]}", rule=rule, remedy="run it again"
            )
        if not result.complete:
            raise BenchError(
                f"{name} result is not complete", rule=rule, remedy="bench --out DIR resumes it"
            )
    for what, mine, theirs, remedy in (
        ("suites", old.suite_hash[:12], new.suite_hash[:12], "measure both with one suite"),
        ("models", old.identity.model, new.identity.model, "serve both under one name"),
        (
            "checkpoints",
            old.identity.model_hash[:12],
            new.identity.model_hash[:12],
            "measure one checkpoint on both",
        ),
        (
            "load generators",
            old.identity.client_version,
            new.identity.client_version,
            "measure both with one --image: releases of vLLM take the first token's time"
            " differently",
        ),
    ):
        if mine and theirs and mine != theirs:
            raise BenchError(
                f"the results' {what} differ: {mine} and {theirs}", rule=rule, remedy=remedy
            )


def changes(
    old: BenchResult, new: BenchResult, threshold: float, with_card: bool
) -> list[FigureChange]:
    """Every figure that both results have and that has a better way."""
    return [
        made
        for load in old.named.loads()
        for name in _figures_shown(old, load)
        for made in _figure_change(old, new, load, name, threshold, with_card)
    ]


def _figures_shown(result: BenchResult, load: TrialLoad) -> list[str]:
    """Figures of a point that have a better way, once each, over all tables that show it."""
    shown = [
        name
        for table in result.measured.tables
        if load.table in (table.id, table.of)
        for name in table.show
    ]
    return [n for n in dict.fromkeys(shown) if FIGURES[n].better and n not in RELATIVE]


def _figure_change(
    old: BenchResult,
    new: BenchResult,
    load: TrialLoad,
    name: str,
    threshold: float,
    with_card: bool,
) -> Iterator[FigureChange]:
    trials = [result.measured_trials(load.table, load.label) for result in (old, new)]
    before, after = (value(name, each) for each in trials)
    if not before or after is None:
        return
    (first, whole), (second, whole_too) = (samples(name, each) for each in trials)
    reduce = statistics.median if whole and whole_too else FIGURES[name].reduce
    low, high = interval(first, second, reduce)
    ratio = after / before
    yield FigureChange(
        table=load.table,
        label=load.label,
        figure=name,
        old=before,
        new=after,
        ratio=ratio,
        low=low,
        high=high,
        verdict=verdict(FIGURES[name].better, low, high, threshold),
        card=reference_card.figures(load.table, load.label).get(name) if with_card else None,
    )


def interval(
    first: Sequence[float], second: Sequence[float], reduce: Reduce
) -> tuple[float | None, float | None]:
    """The interval of ``reduce(second) / reduce(first)``, by a bootstrap with a fixed seed.

    If there are equally many samples they are pairs: trial for trial the prompts are the same.
    """
    import numpy as np

    if min(len(first), len(second)) < LEAST:
        return None, None
    draw = np.random.default_rng(SEED)
    places = draw.integers(len(first), size=(DRAWS, len(first))).tolist()
    others = places
    if len(first) != len(second):
        others = draw.integers(len(second), size=(DRAWS, len(second))).tolist()
    ratios = []
    for mine, theirs in zip(places, others, strict=True):
        below = reduce([first[place] for place in mine])
        if below > 0:
            ratios.append(reduce([second[place] for place in theirs]) / below)
    if not ratios:
        return None, None
    edge = (1 - CONFIDENCE) / 2
    return quantile(ratios, edge), quantile(ratios, 1 - edge)


def verdict(better: str, low: float | None, high: float | None, threshold: float) -> str:
    """What an interval says: a difference counts if all of it is beyond the threshold."""
    if low is None or high is None:
        return "unsure"
    if better == "low":  # as if it were a rate
        low, high = 1 / high if high else 0.0, 1 / low if low else float("inf")
    if high < 1 - threshold:
        return "worse"
    if low > 1 + threshold:
        return "better"
    return "same" if low >= 1 - threshold and high <= 1 + threshold else "unsure"


def against_card(result: BenchResult) -> list[FigureChange]:
    """Every figure that the card has too; a ratio without an interval or a verdict."""
    found = []
    for row in reference_card.card().rows:
        loads = [load for load in result.named.loads() if load.label == row.label]
        table = next((t for t in result.measured.tables if t.id == row.table), None)
        if table is None:
            continue
        source = table.of or table.id
        load = next((load for load in loads if load.table == source), None)
        if load is None:
            continue
        single = next(
            (
                each
                for each in result.named.loads()
                if each.table == source and each.concurrency == 1
            ),
            load,
        )
        trials = result.measured_trials(source, row.label)
        base = result.measured_trials(source, single.label)
        for name, theirs in row.figures.items():
            ours = value(name, trials, base, load.concurrency)
            if ours is not None and name not in ("errors", "prompt", "output"):
                ratio = ours / theirs if theirs else 0.0
                found.append(FigureChange(row.table, row.label, name, theirs, ours, ratio))
    return found
