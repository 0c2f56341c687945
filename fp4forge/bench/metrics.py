"""vLLM's own counters (/metrics, Prometheus text format): what a trial changed, and its peaks."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fp4forge.bench.result import ServerCounters

# Names of vllm/v1/metrics/loggers.py and vllm/v1/spec_decode/metrics.py; the Prometheus client
# adds _total to counters, and _sum and _count to histograms.
_GENERATED = "vllm:generation_tokens_total"
_PROMPTS = "vllm:prompt_tokens_total"
_QUERIES = "vllm:prefix_cache_queries_total"
_HITS = "vllm:prefix_cache_hits_total"
_FINISHED = "vllm:request_success_total"
_TTFT = "vllm:time_to_first_token_seconds"
_CACHE = "vllm:kv_cache_usage_perc"
_PREEMPTIONS = "vllm:num_preemptions_total"
_DRAFTS = "vllm:spec_decode_num_drafts_total"
_DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"

_LABEL = re.compile(r'(\w{1,100})="[^"\\]{0,200}"')

Values = dict[str, float]
PAUSE = 0.25  # seconds between two looks
WINDOW = 1.0  # seconds that a peak is taken over


def parse(text: str, *labels: str) -> Values:
    """Each metric's value, summed over its labels; of the named ones, by their values.

    ``parse('a{x="1",y="2"} 3', "y")`` is ``{'a{y="2"}': 3.0}``.
    """
    found: Values = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
        inside, _, after = rest.rpartition("}")
        words = after.split()
        try:
            value = float(words[0])
        except (IndexError, ValueError):
            continue
        kept = [m[0] for m in _LABEL.finditer(inside) if m[1] in labels] if labels else []
        key = name.strip() + (f"{{{','.join(kept)}}}" if kept else "")
        if math.isfinite(value):
            found[key] = found.get(key, 0.0) + value
    return found


def _counter_change(name: str, before: Values, after: Values) -> float | None:
    if name not in after:
        return None
    change = after[name] - before.get(name, 0.0)
    return change if change >= 0 else None  # a restarted server counts from 0


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


@dataclass
class CounterWatch:
    """Reads the counters while a trial runs."""

    read: Callable[[], str]
    times: list[float] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def look(self) -> None:
        """Reads them once."""
        found = parse(self.read())
        self.times.append(time.monotonic())
        self.values.append(found)

    def start(self) -> None:
        """Reads them now, and again and again in a thread."""
        self.look()

        def run() -> None:
            while not self._over.wait(PAUSE):
                self.look()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def stop(self) -> ServerCounters:
        """Ends the thread, and says what the trial changed."""
        self._over.set()
        if self._thread:
            self._thread.join()
        self.look()
        return changes(self.times, self.values)


def changes(times: list[float], values: list[Values]) -> ServerCounters:
    """What the server's counters say of the time between the first look and the last."""
    before, after = values[0], values[-1]
    if not before or not after:
        return ServerCounters()
    requests = _counter_change(_FINISHED, before, after)
    preempted = _counter_change(_PREEMPTIONS, before, after)
    drafts, accepted = (_counter_change(name, before, after) for name in (_DRAFTS, _ACCEPTED))
    steps = _ratio(accepted, drafts)
    return ServerCounters(
        requests=None if requests is None else round(requests),
        ttft=_ratio(
            _counter_change(f"{_TTFT}_sum", before, after),
            _counter_change(f"{_TTFT}_count", before, after),
        ),
        generation_peak=_peak_rate(times, values, (_GENERATED,)),
        total_peak=_peak_rate(times, values, (_GENERATED, _PROMPTS)),
        hit_rate=_ratio(
            _counter_change(_HITS, before, after), _counter_change(_QUERIES, before, after)
        ),
        cache_peak=max((v[_CACHE] for v in values if _CACHE in v), default=None),
        preemptions=None if preempted is None else round(preempted),
        acceptance=_ratio(accepted, _counter_change(_DRAFTED, before, after)),
        tokens_per_step=None if steps is None else 1 + steps,
    )


def _peak_rate(times: list[float], values: list[Values], names: tuple[str, ...]) -> float | None:
    """Tokens a second in the best window; None if the trial was shorter than one."""
    totals = [
        (moment, sum(found[name] for name in names))
        for moment, found in zip(times, values, strict=True)
        if all(name in found for name in names)
    ]
    best, start = None, 0
    for moment, total in totals:
        while start + 1 < len(totals) and moment - totals[start + 1][0] >= WINDOW:
            start += 1
        length = moment - totals[start][0]
        if length >= WINDOW:
            best = max(best or 0.0, (total - totals[start][1]) / length)
    return best
