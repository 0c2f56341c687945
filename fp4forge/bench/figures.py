"""Every figure that a table can show: how it is computed from trials, and which way is better."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Samples = Sequence[float]
# A table's trials, and those of its point with one request at once.
Trials = Sequence[Any]


@dataclass(frozen=True)
class Figure:
    """A column.

    ``each`` gives a trial's samples: one for each request, or one for the trial. ``reduce`` makes
    one value of them. A point's value is the median over its trials.
    """

    title: str
    unit: str
    each: Callable[[Any], list[float]]
    reduce: Callable[[Samples], float] = statistics.median
    better: str = ""  # high, low, or neither
    digits: int = 1


def quantile(samples: Samples, share: float) -> float:
    """A quantile, interpolated as numpy does by default."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _p95(samples: Samples) -> float:
    return quantile(samples, 0.95)


def _rates(trial: Any) -> list[float]:
    return [request.rate for request in trial.requests if request.rate]


def _ttfts(trial: Any) -> list[float]:
    return [request.ttft * 1000 for request in trial.requests]


def _prefill(trial: Any) -> list[float]:
    return [request.prompt / request.ttft for request in trial.requests if request.ttft > 0]


def _aggregate(trial: Any) -> list[float]:
    tokens = sum(request.output for request in trial.requests)
    return [tokens / trial.seconds] if trial.seconds > 0 else []


def _server(name: str, scale: float = 1.0) -> Callable[[Any], list[float]]:
    def each(trial: Any) -> list[float]:
        value = getattr(trial.server, name)
        return [] if value is None else [value * scale]

    return each


def _overhead(trial: Any) -> list[float]:
    """The client's mean TTFT minus the server's, in ms."""
    if trial.server.ttft is None or not trial.requests:
        return []
    return [statistics.fmean(_ttfts(trial)) - trial.server.ttft * 1000]


def _calls(trial: Any) -> list[float]:
    asked = len(trial.requests) + trial.failed
    return [] if trial.right_calls is None or not asked else [100 * trial.right_calls / asked]


FIGURES: dict[str, Figure] = {
    "decode_median": Figure("decode p50", "tok/s", _rates, better="high"),
    "decode_p95": Figure("decode p95", "tok/s", _rates, _p95),
    "decode_min": Figure("decode min", "tok/s", _rates, min),
    "decode_max": Figure("decode max", "tok/s", _rates, max),
    "ttft_median": Figure("TTFT p50", "ms", _ttfts, better="low"),
    "ttft_p95": Figure("TTFT p95", "ms", _ttfts, _p95),
    "ttft_min": Figure("TTFT min", "ms", _ttfts, min),
    "ttft_max": Figure("TTFT max", "ms", _ttfts, max),
    "prefill": Figure("prefill", "tok/s", _prefill, better="high", digits=0),
    "prompt": Figure(
        "prompt", "tokens", lambda trial: [float(r.prompt) for r in trial.requests], digits=0
    ),
    "output": Figure(
        "output", "tokens", lambda trial: [float(r.output) for r in trial.requests], digits=0
    ),
    "latency": Figure(
        "latency", "s", lambda trial: [r.ttft + r.decode for r in trial.requests], digits=2
    ),
    "aggregate": Figure("aggregate", "tok/s", _aggregate, better="high"),
    "errors": Figure("errors", "", lambda trial: [float(trial.failed)], sum, digits=0),
    "right_calls": Figure("right calls", "%", _calls, better="high"),
    "generation_peak": Figure("server's generation peak", "tok/s", _server("generation_peak")),
    "total_peak": Figure("server's peak, prompts included", "tok/s", _server("total_peak")),
    "hit_rate": Figure("prefix-cache hits", "%", _server("hit_rate", 100)),
    "cache_peak": Figure("KV cache used at most", "%", _server("cache_peak", 100)),
    "acceptance": Figure("drafts accepted", "%", _server("acceptance", 100), better="high"),
    "tokens_per_step": Figure(
        "tokens a step", "", _server("tokens_per_step"), better="high", digits=2
    ),
    "client_overhead": Figure("client's overhead", "ms", _overhead, digits=2),
    # Relative to the point with one request at once, so a table computes them.
    "gain": Figure("gain over one", "x", _aggregate, digits=1),
    "efficiency": Figure("efficiency", "%", _aggregate, digits=0),
}
RELATIVE = ("gain", "efficiency")


def samples(name: str, trials: Trials) -> tuple[list[float], bool]:
    """A point's samples of a figure, and whether each is one trial's value.

    Values of single requests if there are fewer than three trials.
    """
    figure = FIGURES[name]
    each = [found for trial in trials if trial.valid for found in [figure.each(trial)] if found]
    if len(each) >= 3:
        return [figure.reduce(found) for found in each], True
    return [value for found in each for value in found], False


def value(name: str, trials: Trials, single: Trials = (), concurrency: int = 1) -> float | None:
    """A point's value of a figure: the median over its valid trials; None if it has none.

    Args:
        name: of FIGURES.
        trials: of the point.
        single: those of the same table's point with one request at once.
        concurrency: requests at once.
    """
    figure = FIGURES[name]
    if name == "errors":
        return float(sum(trial.failed for trial in trials))
    found = [figure.reduce(each) for t in trials if t.valid for each in [figure.each(t)] if each]
    if not found:
        return None
    middle = statistics.median(found)
    if name not in RELATIVE:
        return middle
    base = value("aggregate", single)
    if not base:
        return None
    return middle / base if name == "gain" else 100 * middle / base / concurrency
