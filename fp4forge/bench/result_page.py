"""One self-contained page for a result: tables, charts, and what was measured on what."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from fp4forge.bench import charts, tables
from fp4forge.bench.charts import ChartAxis, ChartSeries
from fp4forge.bench.figures import value
from fp4forge.bench.result import BenchResult
from fp4forge.bench.suite import TrialLoad
from fp4forge.image.render import html

CURVES = 8  # distributions in one chart


@dataclass(frozen=True)
class TitledChart:
    """A chart with its title."""

    title: str
    svg: str


def page(result: BenchResult) -> str:
    """The page; whatever comes from a server or an image is escaped."""
    identity = {
        name.replace("_", " "): ", ".join(map(str, found)) if isinstance(found, list) else found
        for name, found in msgspec.to_builtins(result.identity).items()
        if found not in ("", [], 0, False) and name != "gpus"
    }
    for number, gpu in enumerate(result.identity.gpus):
        identity[f"GPU {number}"] = ", ".join(
            f"{name.replace('_', ' ')} {found}" for name, found in msgspec.to_builtins(gpu).items()
        )
    return html(
        "bench.html.j2",
        result=result,
        facts=tables.facts(result),
        peaks=tables.peaks(result),
        identity=identity,
        tables=tables.tables(result),
        text=tables.text,
        charts=[chart for chart in _charts(result) if chart.svg],
    )


def _charts(result: BenchResult) -> list[TitledChart]:
    loads = [load for load in result.named.loads() if load.kind == "chat"]
    crowds = _widest(loads)
    return [
        TitledChart("Throughput against concurrency", _throughput(result, crowds)),
        TitledChart("Time to first token: share of requests", _distribution(result, crowds)),
        TitledChart("Throughput against time to first token", _pareto(result, crowds)),
        TitledChart("Decode rate of one stream against context", _context(result, loads)),
    ]


def _widest(loads: list[TrialLoad]) -> list[TrialLoad]:
    """The points of the table with the most steps of concurrency and more than one token."""
    by_table: dict[str, list[TrialLoad]] = {}
    for load in loads:
        if load.output > 1:
            by_table.setdefault(load.table, []).append(load)
    return max(by_table.values(), key=lambda each: len({p.concurrency for p in each}), default=[])


def _figure_values(
    result: BenchResult, loads: list[TrialLoad], figure: str
) -> list[tuple[TrialLoad, float]]:
    found = [
        (load, value(figure, result.measured_trials(load.table, load.label))) for load in loads
    ]
    return [(load, each) for load, each in found if each is not None]


def _throughput(result: BenchResult, loads: list[TrialLoad]) -> str:
    points = tuple((float(p.concurrency), v) for p, v in _figure_values(result, loads, "aggregate"))
    return charts.lines(
        [ChartSeries("aggregate", points)],
        ChartAxis("requests at once", log=True),
        ChartAxis("tokens a second"),
    )


def _distribution(result: BenchResult, loads: list[TrialLoad]) -> str:
    series = []
    for load in loads[:: max(-(-len(loads) // CURVES), 1)]:
        times = sorted(
            request.ttft * 1000
            for trial in result.measured_trials(load.table, load.label)
            if trial.valid
            for request in trial.requests
        )
        points = tuple((time, 100 * (n + 1) / len(times)) for n, time in enumerate(times))
        series.append(ChartSeries(f"{load.label} at once", points, marked=len(points) < 2))
    return charts.lines(
        series, ChartAxis("time to first token, ms", log=True), ChartAxis("% of requests")
    )


def _pareto(result: BenchResult, loads: list[TrialLoad]) -> str:
    times = dict(_figure_values(result, loads, "ttft_median"))
    points = tuple(
        (times[load], rate)
        for load, rate in _figure_values(result, loads, "aggregate")
        if load in times
    )
    return charts.lines(
        [ChartSeries("aggregate", points)],
        ChartAxis("time to first token p50, ms", log=True),
        ChartAxis("tokens a second"),
    )


def _context(result: BenchResult, loads: list[TrialLoad]) -> str:
    single = [p for p in loads if p.concurrency == 1 and p.output > 1 and p.prompts == "fresh"]
    by_context: dict[float, list[float]] = {}
    for load, rate in _figure_values(result, single, "decode_median"):
        by_context.setdefault(load.prompt + load.output / 2, []).append(rate)
    points = tuple((x, sum(rates) / len(rates)) for x, rates in sorted(by_context.items()))
    series = [ChartSeries("measured", points)]
    if result.roofline and points:
        most = max(x for x, _ in points)
        rates = sorted((float(x), rate) for x, rate in result.roofline.rates.items())
        line = tuple(point for point in rates if point[0] <= 2 * most)
        series.append(ChartSeries("bandwidth allows", line, marked=False, dashed=True))
    return charts.lines(
        series, ChartAxis("context, tokens", log=True, binary=True), ChartAxis("tokens a second")
    )
