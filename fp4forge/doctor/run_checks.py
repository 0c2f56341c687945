"""Checks of a running server: its container's state, Kubernetes' events, and what it answers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fp4forge.core.text import shown
from fp4forge.doctor import logs
from fp4forge.doctor.diagnosis import ERROR, NOTE, WARNING, Finding, check
from fp4forge.doctor.evidence import Evidence
from fp4forge.serve import client

# What Kubernetes reports of a pod that does not start: event, cause, fix.
_EVENTS = (
    (
        r"FailedScheduling.*Insufficient nvidia\.com/",
        "no node has a GPU left, or none offers one",
        "kubectl describe nodes shows nvidia.com/gpu; install the NVIDIA device plugin",
    ),
    (
        r"(ErrImagePull|ImagePullBackOff|Failed to pull image)",
        "the node cannot pull the image",
        "check the image's name, the registry's address and imagePullSecrets",
    ),
    (
        r"FailedMount",
        "a volume of the pod cannot be mounted",
        "kubectl describe pvc shows the claim",
    ),
    (
        r"(Liveness|Startup) probe failed",
        "the probe gives up before the model is loaded",
        "a startupProbe with failureThreshold times periodSeconds above the loading time",
    ),
)


@check
def state(found: Evidence) -> Iterator[Finding]:
    """The container is not running, not healthy, or starts again and again."""
    if found.status in ("exited", "dead"):
        raised = logs.root(found.parsed)
        lines = [line for line in (found.log or "").splitlines() if line.strip()]
        tail = shown(" / ".join(lines[-2:])[-300:])
        yield Finding(
            "exited",
            ERROR,
            f"the container ended with exit code {found.exit_code}",
            f"it raised {raised.text}" if raised else f"the last lines of its log: {tail}",
            "docker logs shows the rest; mend what the other findings name",
        )
    if found.health == "unhealthy":
        yield Finding(
            "unhealthy",
            ERROR,
            "the health check fails",
            "the server hangs or never started",
            "docker inspect --format '{{json .State.Health}}' shows its answers",
        )
    starts = sum(1 for line in found.parsed.lines if logs.START.search(line.text))
    if starts >= 3 and not found.ready:
        yield Finding(
            "restarts",
            ERROR,
            f"the server started {starts} times and was never ready",
            "whoever restarts it hides the first failure",
            "start it once without a restart policy",
        )


@check
def events(found: Evidence) -> Iterator[Finding]:
    """What Kubernetes reports."""
    for pattern, cause, fix in _EVENTS:
        seen = next((line for line in found.events if re.search(pattern, line)), "")
        if seen:
            yield Finding("kubernetes", ERROR, shown(seen, 300), cause, fix)


@check
def server(found: Evidence) -> Iterator[Finding]:
    """The live server: reachable, and does it know Paris."""
    if not found.url:
        return
    reason = client.unreachable(found.url)
    if reason:
        starting = found.log is not None and not found.ready
        yield Finding(
            "port",
            WARNING if starting and found.status == "running" else ERROR,
            f"{found.url}/health: {reason}",
            "the server is still loading" if starting else "nothing answers at that port",
            "wait: loading takes 4 to 5 minutes on a DGX Spark"
            if starting
            else "publish the port, start the server with --host 0.0.0.0",
        )
        return
    answer = client.paris(found.url)
    found.answered = answer.ok
    if not answer.ok:
        yield _judged(answer)


def _judged(answer: client.Answer) -> Finding:
    """An answer that does not name Paris: by its status, its end, then its text."""
    text, problem = answer.text, answer.problem
    if re.match(r"HTTP 40[13]\b", problem):
        return Finding(
            "api-key",
            WARNING,
            problem,
            "the server wants an API key: it was started with --api-key or VLLM_API_KEY",
            "set OPENAI_API_KEY for the doctor",
        )
    thinks = (answer.reasoning and not text.strip()) or text.lstrip().startswith("<think>")
    if thinks and answer.finish == "length":
        return Finding(
            "thinking",
            NOTE,
            f"finish_reason length after {len(answer.reasoning or text):,} characters of reasoning",
            "a thinking model: its tokens ended before the answer began",
            "ask with more max_tokens, or chat_template_kwargs enable_thinking false",
        )
    symptom = "wrong-answer" if text.strip() else "empty-answer"
    if re.search(r"(-?\w{2,}-?)\1{3,}", text[:2000]):
        symptom = "gibberish"
    if problem.startswith("HTTP"):
        symptom, cause = "refused", "the server refuses a plain question"
    else:
        cause = "scales are read wrongly, or the chat template is not the model's"
    return Finding(
        symptom,
        ERROR,
        problem or f"asked for France's capital: {text[:120]!r}",
        cause,
        "see the other findings; then build.py checkpoint inspect DIR",
    )
