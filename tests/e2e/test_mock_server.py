"""Questions to guidellm's mock server: another implementation of the protocol, with its faults."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Completed, shell

# guidellm 0.8.1 and what of its dependencies the image lacks, with hashes.
PINS = Path(__file__).with_name("guidellm.txt")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guidellm")
    uv = Path(sys.executable).with_name("uv")
    shell(
        str(uv),
        "pip",
        "install",
        "--target",
        str(folder / "site"),
        "--python-version",
        "3.13",
        "--python-platform",
        "x86_64-manylinux_2_39",
        "--only-binary",
        ":all:",
        "--no-deps",
        "--require-hashes",
        "-r",
        str(PINS),
    )
    folder.chmod(0o755)
    return folder / "site"


Start = Callable[..., str]


@pytest.fixture
def start(image: str, site: Path) -> Iterator[Start]:
    """Starts mock servers in the image's Python; each one's URL."""
    names: list[str] = []

    def run(*options: str) -> str:
        name = shell(
            "docker",
            "run",
            "--detach",
            "--publish",
            "127.0.0.1::8000",
            f"--volume={site}:/g:ro",
            "--env=PYTHONPATH=/g",
            "--env=HF_HUB_OFFLINE=1",
            "--entrypoint=python3",
            image,
            "-m",
            "guidellm",
            "mock-server",
            "--host",
            "0.0.0.0",
            "--port",
            "8000",
            "--output-tokens",
            "16",
            *options,
        ).stdout.strip()
        names.append(name)
        url = "http://127.0.0.1:" + shell("docker", "port", name, "8000").stdout.split(":")[-1]
        url = url.strip()
        for _ in range(120):
            if shell("curl", "-fsS", f"{url}/health", check=False).returncode == 0:
                return url
            time.sleep(0.5)
        raise AssertionError(shell("docker", "logs", name).stdout[-2000:])

    yield run
    for name in names:
        shell("docker", "rm", "--force", name)


def ask(*arguments: str) -> Completed:
    return shell(sys.executable, "build.py", "serve", *arguments, check=False)


@pytest.mark.parametrize("stream", [False, True])
def test_random_words_are_no_answers(start: Start, stream: bool) -> None:
    url = start("--request-latency", "0.1", "--ttft-ms", "20", "--itl-ms", "2")
    more = ["--stream"] if stream else []
    done = ask("quality", "--url", url, "--only", "text", "--json", *more)
    assert done.returncode == 20, done.stderr
    verdicts = {v["name"]: v for v in json.loads(done.stdout)}
    assert verdicts["capital"]["problem"] == "it does not say paris"
    assert verdicts["capital"]["answer"].strip()
    assert "391" in verdicts["product"]["problem"]


def test_a_server_that_fails_after_a_while(start: Start) -> None:
    url = start("--request-latency", "0.1", "--fail-after-requests", "2")
    verdicts = json.loads(ask("quality", "--url", url, "--only", "text", "--json").stdout)
    failed = ["HTTP 500" in v["problem"] for v in verdicts]
    assert failed == [False, False, True, True, True, True]


def test_a_server_that_is_too_slow(start: Start) -> None:
    done = ask("smoke", "--url", start("--ttft-ms", "20000"), "--timeout", "2")
    assert done.returncode == 20
    assert "no answer within 2 s" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
