"""The manifest that ``serve compose`` writes, started by Docker Compose: a multimodal Gemma-4."""

from __future__ import annotations

import base64
import io
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import free_port, shell
from tests.e2e.engine.server import Cpu

KEY = "key-of-the-composed-server"
LOGIN = {"OPENAI_API_KEY": KEY}


@pytest.fixture(scope="module")
def composed(cpu: Cpu, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the running server."""
    folder = tmp_path_factory.mktemp("composed")
    folder.chmod(0o755)
    key, file, port = folder / "key", folder / "compose.yaml", free_port()
    key.write_text(KEY)
    key.chmod(0o644)
    digest = shell(
        "docker", "image", "inspect", "--format", "{{index .RepoDigests 0}}", cpu.image
    ).stdout.strip()
    line = [sys.executable, "build.py", "serve", "compose", "--model", str(models / "multimodal")]
    line += ["--arch", "blackwell", "--image", digest, "--port", str(port), "-o", str(file)]
    line += ["--workload", "balanced", "--api-key-file", str(key), "--offline", "--name", "m"]
    shell(*line)
    override = folder / "override.yaml"
    override.write_text(cpu.override(file.read_text()))
    project = ["docker", "compose", "-f", str(file), "-f", str(override), "-p", "fp4forge-engine"]
    try:
        shell(*project, "up", "--detach", "--wait", "--wait-timeout", "500")
        yield f"http://127.0.0.1:{port}"
    finally:
        print(shell(*project, "logs", check=False).stdout[-3000:])
        shell(*project, "down", "--volumes", "--timeout", "30", check=False)


def ask(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url + "/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def picture() -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (96, 96), (200, 30, 30)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def test_an_image_is_seen(composed: str) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": picture()}},
        {"type": "text", "text": "What is it?"},
    ]
    body = {"model": "m", "max_tokens": 8, "temperature": 0}
    with_image = ask(composed, body | {"messages": [{"role": "user", "content": parts}]})
    without = ask(composed, body | {"messages": [{"role": "user", "content": parts[1:]}]})
    assert with_image["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"] + 10


def test_the_container_is_closed(composed: str) -> None:
    """What the manifest promises, as Docker sees it."""
    found = json.loads(shell("docker", "inspect", "vllm-m").stdout)[0]
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["PidsLimit"] and host["Memory"]
    published = host["PortBindings"]["8000/tcp"]
    assert [entry["HostIp"] for entry in published] == ["127.0.0.1"]
    assert KEY not in json.dumps(found)


def test_the_doctor_finds_it_alive(composed: str) -> None:
    line = [sys.executable, "build.py", "serve", "doctor", "--container", "vllm-m", "--json"]
    done = shell(*line, check=False)
    said = json.loads(done.stdout)
    errors = {entry["id"] for entry in said["findings"] if entry["severity"] == "error"}
    # Test-only mounts, and a CPU: true of this server, and of no other.
    assert errors <= {"patch-mounts", "no-gpu", "gpu-missing", "not-blackwell"}, errors


@pytest.mark.parametrize("stream", [False, True])
def test_its_nonsense_is_told(composed: str, stream: bool) -> None:
    line = [sys.executable, "build.py", "serve", "quality", "--url", composed, "--only", "text"]
    done = shell(*line, "--json", *(["--stream"] if stream else []), check=False, **LOGIN)
    assert done.returncode == 20, done.stderr
    verdicts = {v["name"]: v for v in json.loads(done.stdout)}
    assert len(verdicts) == 6
    # Random weights cannot know Paris, and may say nothing but special tokens.
    assert any(word in verdicts["capital"]["problem"] for word in ("paris", "empty"))
    assert not any("HTTP" in v["problem"] for v in verdicts.values()), verdicts


def test_the_doctor_hears_nonsense_and_asks_for_the_key(composed: str) -> None:
    line = [sys.executable, "build.py", "serve", "doctor", "--url", composed, "--json"]
    heard = json.loads(shell(*line, check=False, **LOGIN).stdout)["findings"]
    assert {f["id"] for f in heard} & {"gibberish", "wrong-answer", "empty-answer", "thinking"}
    keyless = json.loads(shell(*line, check=False).stdout)["findings"]
    assert "OPENAI_API_KEY" in json.dumps(keyless)
