"""Manifests read by the real compose, the doctor on real containers, questions to a real server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkpoints import TINY, gemma4, write
from tests.e2e.conftest import REGISTRY, REPO, Completed, shell


def cli(*arguments: str) -> Completed:
    return shell(sys.executable, "build.py", *arguments, check=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("serving") / "tiny", gemma4(TINY), TINY)


def compose(model: Path, *more: str) -> Completed:
    return cli(
        "serve",
        "compose",
        "--model",
        str(model),
        "--release",
        "0.20.2",
        "--arch",
        "blackwell",
        "--registry",
        REGISTRY,
        "--repo",
        REPO,
        *more,
    )


def test_a_compose_file_names_the_published_digest_and_compose_reads_it(
    published: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "compose.yaml"
    done = compose(model, "-o", str(file))
    assert done.returncode == 0, done.stderr
    assert "checked by docker compose config" in done.stderr
    read = shell("docker", "compose", "-f", str(file), "config").stdout
    service = yaml.safe_load(read)["services"]["vllm"]
    assert service["image"] == published["image"]
    assert service["command"][:2] == ["serve", "/models/tiny"]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


def test_a_tag_that_is_not_there_is_refused(model: Path) -> None:
    done = compose(model, "--from", "source")
    assert done.returncode == 2
    assert "has no tag" in done.stderr


def test_the_run_script_is_a_script(published: dict[str, Any], model: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    assert compose(model, "--format", "run", "-o", str(file)).returncode == 0
    shell("bash", "-n", str(file))
    assert published["image"] in file.read_text()


@pytest.fixture
def container(published: dict[str, Any]) -> Iterator[Any]:
    """Starts containers of the published image; they are removed afterwards."""
    names: list[str] = []

    def start(*options: str, command: tuple[str, ...], wait: bool = True) -> str:
        line = ["docker", "run", "--detach", *options, published["image"], *command]
        names.append(shell(*line).stdout.strip())
        if wait:
            shell("docker", "wait", names[-1])
        return names[-1]

    yield start
    for name in names:
        shell("docker", "rm", "--force", name)


def doctor(*arguments: str) -> dict[str, dict[str, Any]]:
    done = cli("serve", "doctor", "--json", *arguments)
    assert done.returncode in (0, 20, 26), done.stderr
    return {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_a_real_container_without_a_gpu(container: Any, model: Path) -> None:
    name = container("-v", f"{model}:/models/tiny:ro", command=("serve", "/models/tiny"))
    found = doctor("--container", name)
    assert "no NVIDIA GPU is visible" in found["no-gpu"]["evidence"]
    assert "exit code 69" in found["exited"]["evidence"]
    assert "patch-mount" not in found
    assert "variant" not in found
    assert "model-mount" not in found


def test_a_real_container_with_a_patch_mounted_over_the_baked_one(
    container: Any, published: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    stock = tmp_path / "gemma4_patched.py"
    stock.write_text("# somebody's patch\n")
    site = f"/usr/local/lib/python{published['plan']['python']}/dist-packages"
    target = f"{site}/vllm/model_executor/models/gemma4.py"
    name = container(
        "-v",
        f"{stock}:{target}:ro",
        "-v",
        f"{tmp_path}/empty:/models/tiny",
        command=("serve", "/models/tiny"),
    )
    found = doctor("--container", name)
    assert target in found["patch-mount"]["evidence"]
    assert "the image's is" in found["patch-mount"]["evidence"]
    assert "is empty" in found["model-mount"]["evidence"]
    assert "exit code 78" in found["exited"]["evidence"]


def test_a_container_that_is_not_there() -> None:
    done = cli("serve", "doctor", "--container", "no-such-container")
    assert done.returncode == 20
    assert "Traceback" not in done.stderr


def test_smoke_of_a_server_that_is_not_there() -> None:
    done = cli("serve", "smoke", "--url", "http://127.0.0.1:9")
    assert done.returncode == 20
    assert "connection refused" in done.stderr
