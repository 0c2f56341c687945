"""``serve up`` of several models and the commands about them, with a stand-in for Docker."""

from __future__ import annotations

import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from docker.errors import NotFound

from fp4forge.cli.serve import serve as command
from fp4forge.core.errors import FitError, ForgeError, ServingError, UsageError
from fp4forge.doctor import evidence, gather
from fp4forge.launch import deployment, starting
from fp4forge.oci import engine
from tests.unit.test_serving import IMAGE, model

GROUP = "fp4forge_a_b"
# What docker and docker compose do here: a file for each container that runs, and a list of calls.
DOCKER = """\
import json, pathlib, sys
here, words = pathlib.Path({folder!r}), sys.argv[1:]
running = here / "running"
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
if words == ["compose", "version"]:
    print("Docker Compose version v2")
elif words[:1] == ["exec"]:
    sys.exit(not (running / words[1]).exists())
elif "logs" in words:
    print("the log of", words[-1])
elif "up" in words and "--no-recreate" in words:
    group = words[words.index("-p") + 1]
    for service in words[words.index("--no-recreate") + 1:]:
        if not (here / ("broken-" + service)).exists():
            (running / (group + "-" + service)).touch()
elif "down" in words or "stop" in words:
    for file in running.iterdir():
        file.unlink()
"""


class Gateway(http.server.BaseHTTPRequestHandler):
    """The gateway: every model knows France's capital, but for those in ``wrong``."""

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/health/liveliness" else 401, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body["model"])  # type: ignore[attr-defined]
        wrong = body["model"] in self.server.wrong  # type: ignore[attr-defined]
        message = {"content": "Rome." if wrong else "Paris."}
        self.answer(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

    def answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Here:
    """This machine, with a Docker that runs nothing and the gateway's port."""

    def __init__(self, folder: Path, gateway: Any) -> None:
        self.folder, self.gateway = folder, gateway
        self.running = folder / "running"
        self.models = [str(model(folder / "models", name)) for name in ("a", "b")]
        self.images = SimpleNamespace(get=lambda name: None)
        self.containers = SimpleNamespace(get=self.container)

    def container(self, name: str) -> Any:
        """As the Docker SDK has it; one whose service is broken has ended."""
        broken = (self.folder / f"broken-{name.removeprefix(GROUP + '-')}").exists()
        if not broken and not (self.running / name).exists():
            raise NotFound(name)
        state = {"Running": not broken, "ExitCode": int(broken)}
        return SimpleNamespace(
            status="exited" if broken else "running",
            attrs={"RestartCount": 0, "State": state},
            reload=lambda: None,
        )

    def __call__(self, *words: str) -> Result:
        return CliRunner().invoke(command, list(words))

    def up(self, *words: str) -> Result:
        line = ["--gpu", "rtx5090", "--image", IMAGE, "--workload", "balanced"]
        return self("up", *self.models, *line, "--port", str(self.gateway.server_port), *words)

    @property
    def calls(self) -> list[list[str]]:
        """What Docker was asked to do."""
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    @property
    def started(self) -> list[list[str]]:
        """The services that were started, call by call."""
        last = "--no-recreate"
        return [words[words.index(last) + 1 :] for words in self.calls if last in words]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    (tmp_path / "running").mkdir()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/docker"
    program.write_text(f"#!{sys.executable} -IS\n{DOCKER.format(folder=str(tmp_path))}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(deployment, "FOLDER", tmp_path / "state")
    for pause in ("_PAUSE", "_LOOK"):
        monkeypatch.setattr(starting, pause, 0.05)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as gateway:
        gateway.asked, gateway.wrong = [], []  # type: ignore[attr-defined]
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        found = Here(tmp_path, gateway)
        monkeypatch.setattr(engine, "connect", lambda: found)
        monkeypatch.setattr("fp4forge.launch.this_machine.check_port", lambda *_: None)
        yield found
        gateway.shutdown()


def test_servers_start_one_after_the_other_and_each_is_asked(here: Here) -> None:
    done = here.up("--with", "monitoring", "--json")
    assert done.exit_code == 0, done.output
    assert here.started == [["vllm-a"], ["vllm-b"], ["gateway", "prometheus", "grafana"]]
    order = [words for words in here.calls if words[0] == "exec" or "--no-recreate" in words]
    ready = next(n for n, words in enumerate(order) if words[1] == f"{GROUP}-vllm-a")
    assert ready < next(n for n, words in enumerate(order) if words[-1] == "vllm-b")
    assert here.gateway.asked == ["a", "b"]
    said = json.loads(done.stdout)
    assert said["name"] == GROUP and [s["served_name"] for s in said["servers"]] == ["a", "b"]
    folder = deployment.FOLDER / GROUP
    text = yaml.safe_load((folder / "compose.yaml").read_text())
    shares = []
    for server in said["servers"]:
        service = text["services"][server["service"]]
        assert service["container_name"] == server["container"]
        words = service["command"]
        shares.append(float(words[words.index("--gpu-memory-utilization") + 1]))
    assert 0.8 < sum(shares) <= 0.85
    for mount in text["services"]["gateway"]["volumes"]:
        assert (folder / mount["source"] / "config.yaml").is_file()
    assert "vllm-b:8000" in (folder / f"{GROUP}-monitoring/prometheus/prometheus.yml").read_text()


def test_one_address_is_printed(here: Here) -> None:
    done = here.up()
    assert done.exit_code == 0, done.output
    address = f"http://127.0.0.1:{here.gateway.server_port}"
    assert f"{GROUP} at {address} " in done.stdout
    assert set(re.findall(r"http://[\d.:]+", done.stdout)) == {address}
    assert "expect a" in done.stdout and "expect b" in done.stdout


def test_a_dry_run_prints_the_file_and_starts_nothing(here: Here) -> None:
    done = here.up("--dry-run")
    assert done.exit_code == 0, done.output
    assert list(yaml.safe_load(done.stdout)["services"]) == ["vllm-a", "vllm-b", "gateway"]
    assert not here.started and not deployment.names()
    listed = json.loads(here.up("--dry-run", "--json").stdout)
    assert [one["served_name"] for one in listed] == ["a", "b"]


def test_they_are_listed_logged_restarted_and_stopped(here: Here) -> None:
    here.up()
    (row,) = json.loads(here("status", "--json").stdout)
    assert (row["state"], row["health"], row["model"]) == ("running", "ready", "a, b")
    (here.running / f"{GROUP}-vllm-a").unlink()
    (row,) = json.loads(here("status", "--json").stdout)
    assert row["state"] == "partial"
    assert "the log of" in here("logs", GROUP).stdout
    assert here.calls[-1][-3:] == ["logs", "--tail", "100"]
    again = here("restart")
    assert again.exit_code == 0, again.output
    assert here.started[3:] == here.started[:3]
    first = next(n for n, words in enumerate(here.calls) if words[-1] == "gateway")
    kinds = [word for words in here.calls[first:] for word in words if word in ("down", "up")]
    assert kinds[1:4] == ["down", "up", "up"]  # what held the memory goes first
    assert here("stop", "--forget").exit_code == 0
    assert not list(here.running.iterdir()) and not deployment.names()


def test_what_runs_is_not_replaced_and_not_upgraded(here: Here) -> None:
    here.up()
    again = here.up()
    assert isinstance(again.exception, UsageError) and "is running" in again.exception.message
    other = here("upgrade", GROUP, "--image", "r/i@sha256:" + "b" * 64)
    assert isinstance(other.exception, UsageError) and "2 servers" in other.exception.message


@pytest.mark.parametrize("broken", ["vllm-a", "vllm-b"])
def test_a_server_that_ends_stops_the_others(
    here: Here, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here.folder / f"broken-{broken}").touch()
    looked = []

    def found(sources: gather.EvidenceSources) -> evidence.Evidence:
        looked.append(sources.container)
        return evidence.Evidence()

    monkeypatch.setattr(gather, "evidence", found)
    done = here.up()
    assert isinstance(done.exception, ForgeError)
    assert f"{GROUP}-{broken} did not come up: it ended" in done.exception.message
    assert looked == [f"{GROUP}-{broken}"] and ["gateway"] not in here.started
    assert not list(here.running.iterdir())


def test_a_gateway_that_ends_is_named_with_its_last_words(here: Here) -> None:
    (here.folder / "broken-gateway").touch()
    done = here.up()
    assert isinstance(done.exception, ServingError)
    assert f"{GROUP}-gateway did not come up" in done.exception.message
    assert "the log of" in done.exception.message and not list(here.running.iterdir())


def test_the_model_that_answers_wrong_is_named(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.gateway.wrong.append("b")
    monkeypatch.setattr(gather, "evidence", lambda _: evidence.Evidence())
    done = here.up()
    assert isinstance(done.exception, ForgeError)
    assert f"{GROUP}-vllm-b did not come up: b: it does not know" in done.exception.message


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["--utilization", "0.1"], FitError, "do not fit on one"),
        (["--name", "x"], UsageError, "--name goes with one model"),
        (["--tensor-parallel", "2"], UsageError, "several GPUs"),
        (["--listen", "fe80::1%eth0"], UsageError, "has a zone"),
    ],
)
def test_what_does_not_go_starts_nothing(
    here: Here, words: list[str], kind: type[ForgeError], said: str
) -> None:
    done = here.up(*words)
    assert isinstance(done.exception, kind) and said in done.exception.message
    assert not deployment.names() and not here.running.joinpath("x").exists()


def test_one_model_twice_is_refused(here: Here) -> None:
    here.models[1] = here.models[0]
    done = here.up()
    assert isinstance(done.exception, UsageError) and "would be named a" in done.exception.message
