"""LiteLLM's own proxy, outside a container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from fp4forge.serve import gateway, manifest, settings
from tests.e2e.conftest import free_port, shell
from tests.unit.test_serving import model, server

# litellm[proxy] with its dependencies, hashed; `uv pip compile --universal --generate-hashes`.
PINS = Path(__file__).with_name("litellm.txt")
KEY = "key-of-this-test"


class Proxy:
    """LiteLLM before several models, with the configuration and the command that are written."""

    def __init__(self, folder: Path, addresses: dict[str, str]) -> None:
        """Installs LiteLLM.

        Args:
            folder: for everything.
            addresses: HOST:PORT of each model's server.
        """
        uv = str(Path(sys.executable).with_name("uv"))
        shell(uv, "venv", "-q", str(folder / "venv"), "--python", sys.executable)
        line = (uv, "pip", "install", "-q", "--python", str(folder / "venv/bin/python"))
        shell(*line, "--require-hashes", "-r", str(PINS))
        self.port, self.log = free_port(), folder / "log"
        key = folder / "key"
        key.write_text(KEY + "\n")
        servers = [
            server(model(folder, name), workload="balanced", key_file=key) for name in addresses
        ]
        config = gateway.write(folder, manifest.group_name(servers), servers) / "config.yaml"
        text = config.read_text()
        for each in servers:
            found = f"{each.name}:{settings.PORT}"
            assert text.count(found) == 1
            text = text.replace(found, addresses[each.served_name])
        config.write_text(text)
        composed = yaml.safe_load(manifest.render_together(servers, "image"))["services"]["gateway"]
        self.environment = composed["environment"] | {"HOME": str(folder)}
        self.environment["PATH"] = f"{folder / 'venv/bin'}:{os.environ['PATH']}"
        self.command = composed["command"][0].replace("$$", "$")
        for old, new in (
            (settings.KEY_FILE, str(key)),
            ("/etc/litellm/config.yaml", str(config)),
            ("--port 4000", f"--port {self.port} --host 127.0.0.1"),
        ):
            assert self.command.count(old) == 1
            self.command = self.command.replace(old, new)

    def start(self) -> None:
        """Starts it, and waits until it is alive."""
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", self.command], stdout=log, stderr=log, env=self.environment
            )
        begin = time.monotonic()
        while time.monotonic() - begin < 120:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.ask("/health/liveliness", key="")[0] == 200:
                    return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def request(self, path: str, body: Any, key: str) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)

    def ask(self, path: str, body: Any = None, key: str = KEY) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.request(path, body, key), timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def close(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait()
