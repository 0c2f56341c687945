"""Replaces a server's image, and puts the old one back."""

from __future__ import annotations

import re
import time

from fp4forge.core import files, http, reading
from fp4forge.core.errors import ServingError
from fp4forge.core.limits import CONFIG_BYTES, METRICS_BYTES, SERVER_SECONDS
from fp4forge.kernels.base import Progress
from fp4forge.launch.deployment import Deployment

# vLLM's gauges (v1/metrics/loggers.py).
_IN_FLIGHT = re.compile(rb"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([0-9.e+]+)$", re.M)


def drain(deployment: Deployment, seconds: float, report: Progress) -> str:
    """Waits until a server has no request in flight, or for so long; returns what is left.

    What is left is finished by the server itself while it stops (``settings.FINISH_SECONDS``).
    """
    begin = time.monotonic()
    while True:
        try:
            limits = http.HttpLimits(SERVER_SECONDS, METRICS_BYTES)
            answer = http.ask("GET", f"{deployment.url}/metrics", limits, proxies=False)
        except http.NoHttpAnswer:
            return "it does not answer"
        left = sum(float(number) for number in _IN_FLIGHT.findall(answer.content))
        if not left:
            return "no request is in flight"
        if time.monotonic() - begin > seconds:
            return f"{left:.0f} requests are still in flight after {seconds:.0f} s"
        report(f"{left:.0f} requests in flight")
        time.sleep(0.5)


def switch(old: Deployment, new: Deployment) -> None:
    """Has the server's file name another image.

    Raises:
        ServingError: the file does not name the old one.
    """
    file = old.folder / "compose.yaml"
    text = reading.text(file, ServingError, CONFIG_BYTES)
    if text.count(old.image) != 1:
        raise ServingError(
            f"{file} does not name {old.image}",
            rule="the file is as 'serve up' wrote it",
            remedy="build.py serve up writes it anew",
        )
    files.replace(file, text.replace(old.image, new.image))
    new.save()
