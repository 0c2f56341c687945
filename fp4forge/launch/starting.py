"""Starts a server and follows it until it answers, or until it is clear that it never will."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
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
from fp4forge.serve import client

_PAUSE = 0.5  # seconds between two looks at the log
_LOOK = 2.0  # seconds between two questions to the engine and the server


@dataclass(frozen=True)
class StartFailed:
    """A start that failed: why, and the doctor's report."""

    why: str
    rows: list[tuple[str, str]]
    data: dict[str, Any]
    error: ForgeError


def start(deployment: Deployment, report: Progress) -> None:
    """Creates the container and starts it.

    Raises:
        ServingError: Docker Compose refuses it.
    """
    said: list[str] = []

    def each(line: str) -> None:
        said.append(line.strip())
        report(line.strip())

    line = deployment.compose("up", "--detach", "--force-recreate")
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


def wait(deployment: Deployment, tracker: StartTracker, seconds: float, report: Progress) -> str:
    """Follows a start until the server answers.

    Args:
        deployment: a server whose container was started.
        tracker: takes the log's lines.
        seconds: how long it may take.
        report: called with the phase.

    Returns:
        Why it does not answer; empty if it does.
    """
    container = engine.connect().containers.get(deployment.name)
    lines = _Lines(deployment.name)
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
                if not client.unreachable(deployment.url, timeout=2):
                    tracker.ready(now)
                    return ""
            time.sleep(_PAUSE)
    finally:
        lines.close()
    return f"it is not ready after {seconds:.0f} s"


def failed(deployment: Deployment, why: str) -> StartFailed:
    """What the doctor says of a server that did not come up; it is stopped, its log stays."""
    found = gather.evidence(gather.EvidenceSources(container=deployment.name))
    deployment.run("stop", seconds=COPY_SILENCE_SECONDS)
    findings = examine.examine(found)
    verdict = examine.judge(found, findings)
    error = reports.failure(findings, verdict) or ServingError(
        why, remedy=f"build.py serve logs {deployment.name}"
    )
    error.message = f"{deployment.name} did not come up: {why}\n{error.message}"
    return StartFailed(
        why,
        reports.rows(found, findings, verdict),
        reports.data(found, findings, verdict),
        error,
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
