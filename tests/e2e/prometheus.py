"""Debian's Prometheus with the files that ``--with monitoring`` writes, on loopback."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from fp4forge.serve import monitoring
from tests.e2e.conftest import free_port

DASHBOARD = json.loads((monitoring.SOURCE / "grafana/dashboards/vllm.json").read_text())
# What Grafana puts in place of its variables.
_VARIABLES = {"$__rate_interval": "4s", "$model": ".*"}


def expressions() -> dict[str, str]:
    """Each query of the dashboard by its panel's title and its own letter."""
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in _VARIABLES.items():
                text = text.replace(name, value)
            found[f"{panel['title']} {target['refId']}"] = text
    return found


class Prometheus:
    """A Prometheus that scrapes one server every second, until it is closed."""

    def __init__(self, folder: Path, target: str) -> None:
        """Starts it.

        Args:
            folder: for its files and data.
            target: HOST:PORT of the server.
        """
        config = monitoring.write(folder, "m") / "prometheus/prometheus.yml"
        text = config.read_text()
        assert text.count('"vllm:8000"') == 1 and text.count(": 15s") == 2
        config.write_text(text.replace("vllm:8000", target).replace(": 15s", ": 1s"))
        self.url = f"http://127.0.0.1:{free_port()}"
        line = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        line += [f"--web.listen-address={self.url.removeprefix('http://')}"]
        self.log = folder / "prometheus.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log)

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer; a refusal is an error with Prometheus's own words."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None

    def values(self, expression: str) -> list[float]:
        """What an expression gives now."""
        return [float(row["value"][1]) for row in self.ask("query", query=expression)["result"]]

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Waits until an expression gives something."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            try:
                if self.values(expression):
                    return
            except urllib.error.URLError:
                assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.3)
        raise AssertionError(f"{expression} is empty:\n{self.log.read_text()[-2000:]}")

    def alerts(self) -> dict[str, str]:
        """State of each alert's rule: inactive, pending or firing."""
        (group,) = self.ask("rules")["groups"]
        assert all(rule["health"] == "ok" for rule in group["rules"]), group
        return {rule["name"]: rule["state"] for rule in group["rules"]}

    def close(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait()
