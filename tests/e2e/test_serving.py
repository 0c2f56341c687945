"""Manifests read by the real compose, the doctor on real containers, questions to a real server."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkpoints import TINY, gemma4, write
from tests.e2e.conftest import REGISTRY, REPO, ROOT, Completed, shell

PROOFS = ROOT / "tests/image/proofs"


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
    assert "docker compose config has read it" in done.stderr
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


# A Gemma-4 of two layers with random weights, and a tokenizer with its chat template.
_MODEL = """
import sys; sys.path.insert(0, "/proofs")
from pathlib import Path
import torch, transformers
import checkpoint
folder = Path("/tmp/model"); folder.mkdir()
torch.manual_seed(0)
config = checkpoint.text_config(checkpoint.TINY)
transformers.Gemma4ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
checkpoint.write_tokenizer(folder)
"""


# transformers' server places its model with it; the image does without.
ACCELERATE = (
    "accelerate==1.12.0"
    " --hash=sha256:3e2091cd341423207e2f084a6654b1efcd250dc326f2a37d6dde446e07cabb11"
)


@pytest.fixture(scope="module")
def accelerate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accelerate")
    (folder / "pin.txt").write_text(ACCELERATE + "\n")
    uv = Path(sys.executable).with_name("uv")
    shell(
        str(uv),
        "pip",
        "install",
        "--target",
        str(folder / "site"),
        "--no-deps",
        "--require-hashes",
        "-r",
        str(folder / "pin.txt"),
    )
    folder.chmod(0o755)
    return folder / "site"


@pytest.fixture(scope="module")
def server(published: dict[str, Any], accelerate: Path) -> Iterator[str]:
    """transformers' own server, of the image, with a real model: another peer than vLLM."""
    script = (
        f"python3 - <<'E' && exec transformers serve --host 0.0.0.0 --port 8000"
        f" /tmp/model\n{_MODEL}\nE\n"
    )
    name = shell(
        "docker",
        "run",
        "--detach",
        "--publish",
        "127.0.0.1::8000",
        "-v",
        f"{PROOFS}:/proofs:ro",
        "-v",
        f"{accelerate}:/accelerate:ro",
        "--env=PYTHONPATH=/accelerate",
        "--entrypoint",
        "bash",
        published["image"],
        "-c",
        script,
    ).stdout.strip()
    try:
        port = shell("docker", "port", name, "8000").stdout.split(":")[-1].strip()
        url = f"http://127.0.0.1:{port}"
        for _ in range(180):
            if shell("curl", "-fsS", f"{url}/health", check=False).returncode == 0:
                break
            state = shell("docker", "inspect", "--format", "{{.State.Running}}", name).stdout
            assert "true" in state, shell("docker", "logs", name).stderr[-2000:]
            time.sleep(1)
        yield url
    finally:
        shell("docker", "rm", "--force", name)


@pytest.mark.parametrize("stream", [False, True])
def test_a_real_server_speaks_and_its_nonsense_is_told(server: str, stream: bool) -> None:
    more = ["--stream"] if stream else []
    done = cli("serve", "quality", "--url", server, "--only", "text", "--json", *more)
    assert done.returncode == 20, done.stderr
    verdicts = {v["name"]: v for v in json.loads(done.stdout)}
    assert len(verdicts) == 6
    # A random model cannot know Paris; that it answered at all is the protocol's doing.
    assert "paris" in verdicts["capital"]["problem"], verdicts["capital"]
    assert not any("HTTP" in v["problem"] for v in verdicts.values()), verdicts


def test_the_doctor_asks_a_real_server(server: str) -> None:
    found = doctor("--url", server)
    assert set(found) & {"gibberish", "wrong-answer", "empty-answer"}
    assert "port" not in found


def test_smoke_of_a_server_that_is_not_there() -> None:
    done = cli("serve", "smoke", "--url", "http://127.0.0.1:9")
    assert done.returncode == 20
    assert "connection refused" in done.stderr
