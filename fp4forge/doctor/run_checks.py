"""Checks of a container's state, and of what Kubernetes reports."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fp4forge.core.text import shown
from fp4forge.doctor import logs
from fp4forge.doctor.diagnosis import ERROR, Diagnosis, check
from fp4forge.doctor.evidence import Evidence

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
def state(found: Evidence) -> Iterator[Diagnosis]:
    """The container is not running, not healthy, or starts again and again."""
    if found.status in ("exited", "dead"):
        raised = logs.root(found.parsed)
        lines = [line for line in (found.log or "").splitlines() if line.strip()]
        tail = shown(" / ".join(lines[-2:])[-300:])
        yield Diagnosis(
            "exited",
            ERROR,
            f"the container ended with exit code {found.exit_code}",
            f"it raised {raised.text}" if raised else f"the last lines of its log: {tail}",
            "docker logs shows the rest; fix what the other findings name",
        )
    if found.health == "unhealthy":
        yield Diagnosis(
            "unhealthy",
            ERROR,
            "the health check fails",
            "the server hangs or never started",
            "docker inspect --format '{{json .State.Health}}' shows its answers",
        )
    starts = sum(1 for line in found.parsed.lines if logs.START.search(line.text))
    if starts >= 3 and not found.ready:
        yield Diagnosis(
            "restarts",
            ERROR,
            f"the server started {starts} times and was never ready",
            "the restarts hide the first failure",
            "start it once without a restart policy",
        )


@check
def events(found: Evidence) -> Iterator[Diagnosis]:
    """What Kubernetes reports."""
    for pattern, cause, fix in _EVENTS:
        seen = next((line for line in found.events if re.search(pattern, line)), "")
        if seen:
            yield Diagnosis("kubernetes", ERROR, shown(seen, 300), cause, fix)
