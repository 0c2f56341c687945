"""Starts a server and follows it until it answers, or until it is clear that it never will."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fp4forge.core.errors import EngineError, ForgeError, ServingError
from fp4forge.core.limits import COPY_SILENCE_SECONDS, LOG_LINE_CHARACTERS
from fp4forge.core.text import shown
from fp4forge.doctor import examine, gather
from fp4forge.doctor import report as reports
from fp4forge.kernels.base import Progress
from fp4forge.launch.deployment import Deployment
from fp4forge.launch.phases import StartTracker
from fp4forge.oci import dockercli, engine, process
from fp4forge.serve.manifest import HEALTHCHECK

_PAUSE = 0.5  # seconds between two looks at the log
_LOOK = 2.0  # seconds between two questions to the engine and the server


@dataclass(frozen=True)
class StartFailed:
    """A start that failed: why, and the doctor's report."""

    why: str
    rows: list[tuple[str, str]]
    data: dict[str, Any]
    error: ForgeError


def create(deployment: Deployment, report: Progress) -> None:
    """Creates the containers of several servers and starts none; old ones go, with their memory.

    Raises:
        ServingError: Docker Compose refuses it.
    """
    deployment.run("down", seconds=COPY_SILENCE_SECONDS)
    _compose_up(deployment, report, "--no-start")


def start(deployment: Deployment, report: Progress, *services: str) -> None:
    """Creates the container and starts it; of several servers, starts these services alone.

    Raises:
        ServingError: Docker Compose refuses it.
    """
    more = ("--no-deps", "--no-recreate", *services) if services else ("--force-recreate",)
    _compose_up(deployment, report, "--detach", *more)


def _compose_up(deployment: Deployment, report: Progress, *words: str) -> None:
    said: list[str] = []

    def each(line: str) -> None:
        said.append(line.strip())
        report(line.strip())

    line = deployment.compose("up", *words)
    code = process.follow(line, each, COPY_SILENCE_SECONDS, ServingError)
    if code == 0:
        return
    deployment.run("down")
    last = next((line for line in reversed(said) if line), "")
    if "could not select device driver" in last:
        raise EngineError(
            "the engine cannot give a container a GPU",
            rule="the NVIDIA container toolkit connects them",
            remedy="install it, run nvidia-ctk runtime configure --runtime=docker, restart Docker",
        )
    raise ServingError(f"the server cannot be started: {shown(last, 400)}")


def healthy(container: str) -> bool:
    """Whether a server that publishes no port answers, by the image's own health check."""
    return dockercli.run("exec", container, HEALTHCHECK).returncode == 0


def wait(
    name: str,
    ready: Callable[[], bool],
    tracker: StartTracker,
    seconds: float,
    report: Progress,
) -> str:
    """Follows a start until the server answers.

    Args:
        name: of a container that was started.
        ready: whether it answers.
        tracker: takes the log's lines.
        seconds: how long it may take.
        report: called with the phase.

    Returns:
        Why it does not answer; empty if it does.
    """
    container = engine.connect().containers.get(name)
    lines = _Lines(name)
    begin, looked = time.monotonic(), 0.0
    try:
        while (now := time.monotonic() - begin) < seconds:
            for line in lines.new():
                tracker.feed(line, now)
            report(tracker.text(now))
            if now - looked >= _LOOK:
                looked = now
                container.reload()
                state = container.attrs["State"]
                if container.attrs["RestartCount"] or not state["Running"]:
                    return f"it ended with exit code {state['ExitCode']}"
                if ready():
                    tracker.ready(now)
                    return ""
            time.sleep(_PAUSE)
    finally:
        lines.close()
    return f"it is not ready after {seconds:.0f} s"


def failed(deployment: Deployment, why: str, container: str) -> StartFailed:
    """What the doctor says of a server that did not come up; all are stopped, the log stays."""
    found = gather.evidence(gather.EvidenceSources(container=container))
    deployment.run("stop", seconds=COPY_SILENCE_SECONDS)
    findings = examine.examine(found)
    verdict = examine.judge(found, findings)
    error = reports.failure(findings, verdict) or ServingError(
        why, remedy=f"build.py serve logs {deployment.name}"
    )
    error.message = f"{container} did not come up: {why}\n{error.message}"
    return StartFailed(
        why,
        reports.rows(found, findings, verdict),
        reports.data(found, findings, verdict),
        error,
    )


def gateway_failed(deployment: Deployment, why: str) -> ServingError:
    """Why the gateway of several servers did not come up; all are stopped, the log stays."""
    said = dockercli.run("logs", "--tail", "20", deployment.gateway)
    lines = [line for line in (said.stdout + said.stderr).splitlines() if line.strip()]
    deployment.run("stop", seconds=COPY_SILENCE_SECONDS)
    return ServingError(
        f"{deployment.gateway} did not come up: {why}; it said last:"
        f" {shown(lines[-1] if lines else 'nothing', 300)}",
        remedy=f"build.py serve logs {deployment.name}",
    )


class _Lines:
    """What a container prints, from its last start on."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            dockercli.line("logs", "--follow", name),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._queue.put(line[:LOG_LINE_CHARACTERS])

    def new(self) -> list[str]:
        """Lines since the last call."""
        found = []
        while not self._queue.empty():
            found.append(self._queue.get())
        return found

    def close(self) -> None:
        """Stops following."""
        self._process.kill()
        self._process.wait()
