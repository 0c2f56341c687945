"""Checks of a live server: what it answers, at once, streamed, at length and later; its metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fp4forge.bench.metrics import Values
from fp4forge.doctor.diagnosis import ERROR, NOTE, WARNING, Diagnosis, check
from fp4forge.doctor.evidence import Evidence
from fp4forge.doctor.live import CAPITAL, STREAMED, TOOL, LiveQuestion
from fp4forge.serve import client

_ENDLESS = re.compile(r"(-?\w{2,}-?)\1{3,}|(\S)\2{30,}|(\b\S{1,20} )\3{9,}")
_REPORT = "build.py serve doctor with --logs and --bundle packs the evidence for a report"
_FULL = 0.95  # of the KV cache
_CLOCK = 120.0  # seconds
_METRICS = "vLLM, vllm/v1/metrics/loggers.py"


@check
def server(found: Evidence) -> Iterator[Diagnosis]:
    """The live server: reachable, and does it know Paris."""
    seen = found.live
    if seen is None:
        return
    if seen.unreachable:
        starting = found.log is not None and not found.ready
        yield Diagnosis(
            "port",
            WARNING if starting and found.status == "running" else ERROR,
            f"{found.url}/health: {seen.unreachable}",
            "the server is still loading" if starting else "nothing answers at that port",
            "wait: loading takes 4 to 5 minutes on a DGX Spark"
            if starting
            else "publish the port, start the server with --host 0.0.0.0",
        )
        return
    capital = next((asked for asked in seen.asked if asked.name == CAPITAL), None)
    if capital and capital.answer_fault:
        yield _judged_answer(capital.answer)
    if seen.ahead is not None and abs(seen.ahead) > _CLOCK:
        yield Diagnosis(
            "clock",
            WARNING,
            f"the server's clock differs from this machine's by {seen.ahead:+.0f} s",
            "one of the two is wrong: certificates, tokens and signatures seem expired or not valid"
            " yet",
            "timedatectl set-ntp true on the machine whose clock is wrong",
        )


def _judged_answer(answer: client.ChatAnswer) -> Diagnosis:
    """An answer that does not name Paris: by its status, its end, then its text."""
    text, problem = answer.text, answer.problem
    if re.match(r"HTTP 40[13]\b", problem):
        return Diagnosis(
            "api-key",
            WARNING,
            problem,
            "the server wants an API key: it was started with --api-key or VLLM_API_KEY",
            "set OPENAI_API_KEY for the doctor",
        )
    if _thinks(answer):
        return _thinking(answer)
    symptom = "wrong-answer" if text.strip() else "empty-answer"
    if _ENDLESS.search(text[:2000]):
        symptom = "gibberish"
    if problem.startswith("HTTP"):
        symptom, cause = "refused", "the server refuses a plain question"
    else:
        cause = "scales are read wrongly, or the chat template is not the model's"
    return Diagnosis(
        symptom,
        ERROR,
        problem or f"asked for France's capital: {text[:120]!r}",
        cause,
        "see the other findings; then build.py checkpoint inspect DIR",
    )


def _thinks(answer: client.ChatAnswer) -> bool:
    """Whether its tokens ended inside its reasoning."""
    text = answer.text
    thought = (answer.reasoning and not text.strip()) or text.lstrip().startswith("<think>")
    return bool(thought) and answer.finish == "length"


def _thinking(answer: client.ChatAnswer) -> Diagnosis:
    return Diagnosis(
        "thinking",
        NOTE,
        f"finish_reason length after {len(answer.reasoning or answer.text):,} characters of"
        " reasoning",
        "a thinking model: its tokens ended before the answer began",
        "ask with more max_tokens, or chat_template_kwargs enable_thinking false",
    )


@check
def tools(found: Evidence) -> Iterator[Diagnosis]:
    """A call of a named function, at once and as a stream."""
    asked = _first_answers(found)
    plain, streamed = asked.get(TOOL), asked.get(STREAMED)
    if plain is None or streamed is None:
        return
    if re.match(r"HTTP 4", plain.answer_fault):
        yield Diagnosis(
            "tools",
            NOTE,
            plain.answer_fault,
            "this server takes no tool calls: its chat template has no tools, or flags are missing",
            "the family's --tool-call-parser and --enable-auto-tool-choice, if clients use tools",
        )
    elif plain.answer_fault:
        yield _unexplained("tool-call", plain)
    elif streamed.answer_fault:
        yield Diagnosis(
            "tool-stream",
            ERROR,
            f"{streamed.name}: {streamed.answer_fault}",
            "the same call is right as a whole answer: the server's streaming of tool calls is"
            " wrong",
            "clients ask for tool calls without stream; another release of vLLM",
        )


@check
def needles(found: Evidence) -> Iterator[Diagnosis]:
    """A number that is to be found in a long text."""
    for asked in _first_answers(found).values():
        if not asked.length or not asked.answer_fault:
            continue
        if _thinks(asked.answer):
            yield _thinking(asked.answer)
        elif _ENDLESS.search(asked.answer.text[:4000]):
            yield Diagnosis(
                "gibberish",
                ERROR,
                f"{asked.name}: {asked.answer.text[:120]!r}",
                "short questions are answered correctly, long ones with garbage: attention or KV"
                " cache fails at length",
                "another --attention-backend, or --kv-cache-dtype auto; then compare the release's"
                " known faults",
            )
        elif re.match(r"HTTP 4", asked.answer_fault):
            yield Diagnosis(
                "needle-refused",
                NOTE,
                f"{asked.name}: {asked.answer_fault}",
                "the server takes no text of this length",
                "a larger --max-model-len, if clients need one",
            )
        else:
            yield _unexplained("needle", asked)


def _unexplained(name: str, asked: LiveQuestion) -> Diagnosis:
    said = asked.answer.text.strip()
    return Diagnosis(
        name,
        ERROR,
        f"{asked.name}: {asked.answer_fault}" + (f": {said[:120]!r}" if said else ""),
        "not known: a small model may fail at this, a large one does not",
        f"compare with another backend or release; {_REPORT}",
    )


@check
def degraded(found: Evidence) -> Iterator[Diagnosis]:
    """A question that was answered rightly, and is not any more."""
    first = _first_answers(found)
    for asked in found.live.asked if found.live else ():
        before = first[asked.name]
        if asked.answer_fault and not before.answer_fault:
            said = asked.answer.text.strip()
            yield Diagnosis(
                "degraded",
                ERROR,
                f"{asked.name} was answered correctly, and after {asked.seconds / 60:.0f} minutes:"
                f" {asked.answer_fault}" + (f": {said[:120]!r}" if said else ""),
                "the server's state was damaged while it ran: the checkpoint is the same",
                "restart the server; if it happens again, try --no-enable-prefix-caching;"
                f" {_REPORT}",
            )
            return


def _first_answers(found: Evidence) -> dict[str, LiveQuestion]:
    """The first answer to each question."""
    out: dict[str, LiveQuestion] = {}
    for asked in found.live.asked if found.live else ():
        out.setdefault(asked.name, asked)
    return out


@check
def counters(found: Evidence) -> Iterator[Diagnosis]:
    """What /metrics says of the queue, the KV cache, preemptions and errors."""
    looks = found.live.looks if found.live else []
    if not looks:
        return
    first, last = looks[0], looks[-1]
    waiting, running = (last.get(f"vllm:num_requests_{kind}", 0) for kind in ("waiting", "running"))
    moved = _counter_grown(first, last, "vllm:generation_tokens_total")
    if waiting and len(looks) > 1 and not moved:
        yield Diagnosis(
            "stuck-queue",
            ERROR,
            f"{waiting:.0f} requests wait, and no token was generated between two readings",
            "the engine takes no requests from its queue: it hangs",
            "restart the server; its log's last lines say where it hangs",
            _METRICS,
        )
    elif waiting:
        yield Diagnosis(
            "queue",
            NOTE,
            f"{waiting:.0f} requests wait and {running:.0f} run",
            "more requests arrive than the server runs at once",
            "--max-num-seqs, if the KV cache has room; another server otherwise",
            _METRICS,
        )
    yield from _cache_growth(first, last)
    yield from _server_errors(last)


def _cache_growth(first: Values, last: Values) -> Iterator[Diagnosis]:
    usage = last.get("vllm:kv_cache_usage_perc", 0)
    preempted = _counter_grown(first, last, "vllm:num_preemptions_total")
    ever = last.get("vllm:num_preemptions_total", 0)
    if preempted or (ever and usage >= _FULL):
        yield Diagnosis(
            "preemptions",
            WARNING,
            f"{ever:.0f} preemptions so far, {preempted:.0f} of them now; the KV cache is"
            f" {usage:.0%} full",
            "the KV cache is too small for the requests that run: some are computed twice",
            "a lower --max-num-seqs or --max-model-len, or --kv-cache-dtype fp8_e4m3",
            _METRICS,
        )


def _server_errors(last: Values) -> Iterator[Diagnosis]:
    if corrupted := last.get("vllm:corrupted_requests_total"):
        yield Diagnosis(
            "corrupted-requests",
            ERROR,
            f"{corrupted:.0f} requests had NaN in their logits",
            "kernels or scales produce NaN",
            "see the other findings; another backend (build.py backends); then build.py checkpoint"
            " inspect DIR",
            _METRICS,
        )
    failed = sum(
        value
        for name, value in last.items()
        if re.match(r'http_requests_total\{.*status="5', name)
        or name == 'vllm:request_success_total{finished_reason="error"}'
    )
    if failed:
        yield Diagnosis(
            "request-errors",
            WARNING,
            f"{failed:.0f} requests ended with the server's error (5xx) since it started",
            "the server failed on these requests; its log has the exception",
            "build.py serve doctor --logs LOG names it",
            _METRICS,
        )


def _counter_grown(first: Values, last: Values, name: str) -> float:
    return max(0.0, last.get(name, 0) - first.get(name, 0))
