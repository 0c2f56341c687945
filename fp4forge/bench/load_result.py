"""What ``vllm bench serve --save-result --save-detailed`` wrote, judged request by request.

Its exit code says nothing: with every request failed it is 0. The fields are those of
vllm/benchmarks/serve.py (``benchmark`` and ``main_async``) of 0.20.2; 0.33.0 has them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from fp4forge.bench.result import ServerCounters, TimedRequest, Trial
from fp4forge.bench.suite import TrialLoad
from fp4forge.core import reading
from fp4forge.core.errors import BenchError
from fp4forge.core.limits import BENCH_BYTES
from fp4forge.core.text import shown

EMPTY_FROM = 8  # tokens asked for, from which on an answer has to have text
# Of the time to the first token: more than this between engine and client is noted.
LATE_SECONDS, LATE_SHARE = 0.01, 0.1
SHOWN = 3  # requests that a problem names


class LoadResult(Struct, frozen=True):
    """The tool's result, as far as it is used; seconds and tokens, an entry for each request."""

    completed: int
    failed: int
    num_prompts: int
    duration: float
    input_lens: list[int]
    output_lens: list[int]
    ttfts: list[float]
    itls: list[list[float]]
    errors: list[str]
    generated_texts: list[str]
    max_concurrency: int | None = None


def read(path: Path) -> LoadResult:
    """The tool's result.

    Raises:
        BenchError: there is none, or it has another form.
    """
    data = reading.content(path, BenchError, BENCH_BYTES, "the load generator's result")
    return reading.json(data, LoadResult, "the load generator's result", BenchError)


def judge(
    raw: LoadResult, load: TrialLoad, server: ServerCounters, *, may_be_empty: bool = False
) -> Trial:
    """A trial, with everything that is wrong with it.

    Args:
        raw: the tool's result.
        load: what was sent.
        server: the server's own counters.
        may_be_empty: an answer without text is no fault. Of a model that reasons first, the tool
            drops that text.
    """
    arrays = (raw.input_lens, raw.output_lens, raw.ttfts, raw.itls, raw.errors)
    lengths = {len(each) for each in (*arrays, raw.generated_texts)}
    if lengths != {load.requests}:
        counts = ", ".join(str(length) for length in sorted(lengths))
        return Trial(
            failed=load.requests,
            server=server,
            problems=(f"the load generator reports {counts} requests, {load.requests} were asked",),
        )
    problems = [
        *_wrong_totals(raw, load),
        *_wrong_requests(raw, load, may_be_empty),
        *_foreign_requests(server, load),
    ]
    good = [number for number in range(load.requests) if not raw.errors[number]]
    return Trial(
        requests=tuple(
            TimedRequest(
                prompt=raw.input_lens[number],
                output=raw.output_lens[number],
                ttft=raw.ttfts[number],
                # Not the mean of the intervals: before 0.33 the first one is that between the
                # chunk with the role and the first token, which come together.
                decode=sum(raw.itls[number]),
            )
            for number in good
        ),
        seconds=raw.duration,
        failed=load.requests - len(good),
        server=server,
        problems=tuple(problems),
        notes=tuple(_trial_notes(raw, load, server)),
    )


def _wrong_totals(raw: LoadResult, load: TrialLoad) -> Iterator[str]:
    if raw.completed != load.requests or raw.num_prompts != load.requests or raw.failed:
        yield (f"{raw.completed} of {load.requests} requests were completed, {raw.failed} failed")
    if raw.duration <= 0:
        yield f"it took {raw.duration:g} s"


def _wrong_requests(raw: LoadResult, load: TrialLoad, may_be_empty: bool) -> Iterator[str]:
    """What is wrong with single requests, a line for each kind of fault."""
    everyone = range(load.requests)
    failed = [n for n in everyone if raw.errors[n]]
    if failed:
        yield _requests_named("failed", failed, shown(_last_line(raw.errors[failed[0]]), 200))
    rest = [n for n in everyone if not raw.errors[n]]
    # The tool puts 1 for a prompt's tokens until the last event of the stream says how many.
    cut = [n for n in rest if raw.input_lens[n] <= 1]
    if cut:
        yield _requests_named("truncated", cut, "the stream ended before its last event, the usage")
    rest = [n for n in rest if n not in set(cut)]
    silent = [n for n in rest if raw.ttfts[n] <= 0 or raw.output_lens[n] < 1]
    if silent:
        yield _requests_named("without a token", silent)
    if load.output >= EMPTY_FROM and not may_be_empty:
        empty = [n for n in rest if not raw.generated_texts[n] and n not in set(silent)]
        if empty:
            yield _requests_named("with an empty answer", empty)
    if load.eos == "ignore":
        short = [n for n in rest if raw.output_lens[n] < load.output]
        if short:
            yield _requests_named(
                "short", short, f"{raw.output_lens[short[0]]} of {load.output} tokens"
            )
    if long := [n for n in rest if raw.output_lens[n] > load.output]:
        yield _requests_named(
            "long", long, f"{raw.output_lens[long[0]]} tokens, {load.output} asked"
        )
    if load.kind == "chat":
        other = [n for n in rest if raw.input_lens[n] != load.prompt]
        if other:
            found = f"{raw.input_lens[other[0]]} tokens in the prompt, not {load.prompt}"
            yield _requests_named("changed on the way", other, found)


def _foreign_requests(server: ServerCounters, load: TrialLoad) -> Iterator[str]:
    if server.requests is not None and server.requests > load.requests:
        yield (
            f"the server finished {server.requests} requests, {load.requests} were ours:"
            " another client used it"
        )


def _trial_notes(raw: LoadResult, load: TrialLoad, server: ServerCounters) -> Iterator[str]:
    if load.eos == "stop":
        early = [n for n in raw.output_lens if n < load.output]
        if early:
            yield f"{len(early)} of {load.requests} answers ended by themselves"

    mean = sum(raw.ttfts) / len(raw.ttfts)
    late = mean - (mean if server.ttft is None else server.ttft)
    if late > max(LATE_SECONDS, LATE_SHARE * mean):
        yield (
            f"the first tokens took {late * 1000:.0f} ms longer than the engine counts, of"
            f" {mean * 1000:.0f} ms: the client, the network or the server's front end is slow"
        )


def _requests_named(what: str, which: list[int], why: str = "") -> str:
    names = ", ".join(str(number + 1) for number in which[:SHOWN])
    more = "" if len(which) <= SHOWN else f" and {len(which) - SHOWN} more"
    plural = "s" if len(which) > 1 else ""
    return f"{len(which)} request{plural} {what} ({names}{more})" + (f": {why}" if why else "")


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
