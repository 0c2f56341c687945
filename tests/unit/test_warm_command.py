"""build.py warm: what it refuses at once, the server that it starts, and that it leaves none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fp4forge.cli import bringing_up, servers
from fp4forge.cli import warm as command
from fp4forge.core.console import Console
from fp4forge.core.errors import ForgeError, NoGpuError, ServingError, UsageError
from fp4forge.launch import compiled, deployment
from fp4forge.plan import tags
from fp4forge.publish.warming import ColdImage
from tests.unit.test_cli import run

DIGEST = "sha256:" + "a" * 64
IMAGE = f"127.0.0.1:1/fp4forge/vllm@{DIGEST}"


def test_the_tag_is_immutable_and_by_the_images_own_digest() -> None:
    found = tags.warm("1.0", "sm121", "awq", "0123456789ab", DIGEST)
    assert found == "1.0-sm121-awq-0123456789ab-warm-aaaaaaaaaaaa"
    assert tags.is_immutable(found)
    with pytest.raises(UsageError):
        tags.check(found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "."], "--push nor --output"),
        (["--push"], "--model and --collected"),
        (["--push", "--model", ".", "--collected", "."], "--model and --collected"),
        (["--collected", ".", "-o", "new"], "--output with --collected"),
        (["--model", ".", "-o", "."], "exists already"),
        (["--model", "nowhere", "--push"], "not a folder"),
        (["--model", ".", "-o", "new", "--sign-key", "x"], "--push"),
    ],
)
def test_wrong_use_is_said_at_once(arguments: list[str], said: str) -> None:
    done = run("warm", IMAGE, *arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def docker(folder: Path, code: int, said: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker whose exec says something; its arguments are kept."""
    program = folder / "docker"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"open({str(folder / 'asked')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        f"if sys.argv[1] == 'exec':\n    sys.stderr.write({said!r})\n    sys.exit({code})\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / "asked"


def quiet(_: str) -> None:
    pass


def test_caches_are_packed_in_the_container_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = docker(tmp_path, 0, "fp4forge: 6 files are in it\n", monkeypatch)
    assert compiled.collect("warm-a", "a", tmp_path / "new", quiet) == "6 files are in it"
    packed, copied = (json.loads(line) for line in asked.read_text().splitlines())
    assert packed[:2] == ["exec", "warm-a"] and packed[-1] == "--model=/models/a"
    assert copied[:2] == ["cp", f"warm-a:{packed[-2]}"] and copied[2] == str(tmp_path / "new")


@pytest.mark.parametrize(
    ("code", "kind"), [(69, NoGpuError), (65, ServingError), (2, ServingError)]
)
def test_a_container_that_packs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[ForgeError]
) -> None:
    asked = docker(tmp_path, code, "fp4forge: nothing \x1b[31mpacked\n", monkeypatch)
    with pytest.raises(kind, match="nothing") as failed:
        compiled.collect("warm-a", "a", tmp_path / "new", quiet)
    assert failed.value.message.isprintable()
    assert len(asked.read_text().splitlines()) == 1


@pytest.fixture
def cold() -> ColdImage:
    labels = {"release": "0.20.2", "arch": "sm121", "variant": "awq", "plan": "0123456789ab"}
    labels = {f"io.fp4forge.{name}": value for name, value in labels.items()}
    config = {"os": "linux", "architecture": "arm64", "config": {"Labels": labels}}
    return ColdImage("127.0.0.1:1/fp4forge/vllm", DIGEST, {}, config)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is asked of the engine, in its order."""
    did: dict[str, Any] = {"runs": []}

    def bring_up(made: deployment.Deployment, *_: Any, **__: Any) -> None:
        did["made"] = made
        did["compose"] = yaml.safe_load((made.folder / "compose.yaml").read_text())

    def runs(_: Any, *words: str, **__: Any) -> str:
        did["runs"].append(words)
        return ""

    def collect(name: str, served: str, target: Path, report: Any) -> str:
        did["collected"] = (name, served, target)
        return "packed"

    monkeypatch.setattr(deployment, "FOLDER", tmp_path / "serve")
    monkeypatch.setattr(deployment.Deployment, "run", runs)
    monkeypatch.setattr(bringing_up, "bring_up", bring_up)
    monkeypatch.setattr(servers, "state", lambda made: did.get("state", "exited"))
    monkeypatch.setattr(compiled, "collect", collect)
    return did


def collect(cold: ColdImage, folder: Path, product: str = "gb10") -> None:
    model = folder / "tiny"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"model_type": "unknown"}')
    line = [IMAGE, "--model", str(model), "--push", "--port", "18765"]
    options = command.warm.make_context("warm", line).params | {"product": product}
    command._collect(cold, options, 1, folder / "new", Console(), 1, False)


def test_a_server_with_empty_caches_is_started_and_removed(
    cold: ColdImage, server: dict[str, Any], tmp_path: Path
) -> None:
    collect(cold, tmp_path)
    made, service = server["made"], server["compose"]["services"]["vllm"]
    assert made.name == "warm-vllm-tiny" == service["container_name"]
    assert service["image"] == IMAGE.replace("127.0.0.1:1/fp4forge/vllm", cold.repository)
    assert server["compose"]["volumes"]["cache"]["name"] == "warm-vllm-tiny-cache"
    assert server["collected"] == ("warm-vllm-tiny", "tiny", tmp_path / "new")
    assert server["runs"] == [("down", "--volumes")] and deployment.names() == []


def test_caches_of_an_earlier_try_go_first(
    cold: ColdImage, server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> str:
        raise ServingError("no")

    monkeypatch.setattr(compiled, "collect", failing)
    with pytest.raises(ServingError):
        collect(cold, tmp_path)
    assert server["runs"] == [("down", "--volumes")] and deployment.names() == []
    server["made"].save()
    monkeypatch.setattr(compiled, "collect", lambda *_: "packed")
    collect(cold, tmp_path)
    assert server["runs"] == [("down", "--volumes")] * 3
    server["made"].save()
    server["state"] = "running"
    with pytest.raises(UsageError, match="running"):
        collect(cold, tmp_path)


def test_another_gpu_than_the_images(
    cold: ColdImage, server: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(NoGpuError, match="sm121"):
        collect(cold, tmp_path, "b200")
    assert server == {"runs": []}
