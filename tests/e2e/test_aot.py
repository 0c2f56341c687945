"""FlashInfer's quantiser compiled ahead of time by the build's own program, found by FlashInfer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fp4forge.checks import runner as verify
from fp4forge.core.paths import STATE
from fp4forge.kernels import ledger
from fp4forge.plan import aot
from tests.e2e.conftest import ROOT, shell

CHOICE = aot.AotModules("gemma4", "12.1a", ("fp4_quantization.gen_fp4_quantization_sm120f_module",))
MODULE = "flashinfer/data/aot/fp4_quantization_120f/fp4_quantization_120f.so"


pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build stage's folder, laid out as the Dockerfile does."""
    folder = tmp_path_factory.mktemp("aot")
    build = folder / "fp4forge/image/stages"
    build.mkdir(parents=True)
    for name in ("aot", "install", "jobs"):
        shutil.copy(ROOT / f"fp4forge/image/stages/{name}.py", build)
    (folder / "cache").mkdir()
    (folder / "aot.json").write_text(json.dumps(CHOICE.instructions()))
    return folder


def python(image: str, stage: Path, *arguments: str) -> str:
    """What the image's Python prints, with the stage's folder in its place."""
    return shell(
        "docker",
        "run",
        "--rm",
        "--network=none",
        "--user=0",
        f"--volume={stage}:/fp4forge",
        f"--volume={stage / 'cache'}:/root/.cache/aot",
        "--env=SOURCE_DATE_EPOCH=1767225600",
        "--env=PYTHONPATH=/fp4forge",
        "--env=FLASHINFER_CUDA_ARCH_LIST=12.1a",
        "--entrypoint=python3",
        image,
        *arguments,
    ).stdout


@pytest.fixture(scope="module")
def compiled(published: dict[str, Any], stage: Path) -> Path:
    """What the build's program compiles."""
    printed = python(
        published["image"], stage, "-m", "fp4forge.image.stages.aot", "--out", "/fp4forge/out"
    )
    assert "1 modules" in printed
    return stage / "out"


def test_all_of_flashinfers_modules_hold_those_that_serving_looks_up(
    published: dict[str, Any], stage: Path
) -> None:
    choice = aot.choose("all", ("sm121",)).instructions()
    code = (
        "from fp4forge.image.stages.aot import specs\n"
        f"found = specs({choice})\n"
        "assert all(source.exists() for spec in found for source in spec.sources)\n"
        "print(*(spec.name for spec in found))"
    )
    names = python(published["image"], stage, "-c", code).splitlines()[-1].split()
    assert len(names) == len(set(names)) > 100
    # FlashInfer's own list for 12.1a has the quantiser for sm_121a, and looks up the family's.
    assert {"fp4_gemm_cutlass_sm120", "fp4_quantization_120f", "fp4_quantization_121"} <= {*names}


def test_another_run_compiles_nothing_again(
    published: dict[str, Any], stage: Path, compiled: Path
) -> None:
    (library,) = (stage / "cache").rglob("fp4_quantization_120f.so")
    before = library.stat().st_mtime_ns
    run = ("-m", "fp4forge.image.stages.aot", "--out", "/fp4forge/again")
    assert "1 modules" in python(published["image"], stage, *run)
    assert library.stat().st_mtime_ns == before
    (again,) = (stage / "again").rglob(library.name)
    assert again.read_bytes() == library.read_bytes()


def test_the_module_has_fp4_for_the_family(published: dict[str, Any], compiled: Path) -> None:
    site = compiled / f"usr/local/lib/python{published['plan']['python']}/dist-packages"
    found = ledger.packages([site / "flashinfer"], STATE / "ledger", print).targets()
    assert found["flashinfer_quantise"] == ["12.0f"]
    assert found["nvfp4_quantise"] == []
    record = json.loads((compiled / "opt/fp4forge/aot.json").read_text())
    assert record["bytes"] == {"fp4_quantization_120f": (site / MODULE).stat().st_size}


@pytest.mark.usefixtures("built_upon")
def test_flashinfer_finds_it_and_compiles_nothing(
    published: dict[str, Any], compiled: Path, tmp_path: Path
) -> None:
    image = "fp4forge.local/aot:test"
    (tmp_path / "Dockerfile").write_text(f"FROM {published['image']}\nCOPY --link out/usr/ /usr/\n")
    shutil.copytree(compiled, tmp_path / "out")
    shell("docker", "buildx", "build", "-q", "-t", image, str(tmp_path))
    try:
        plan = published["plan"] | {
            "aot": {"name": "gemma4", "archs": "12.1a", "generators": list(CHOICE.generators)}
        }
        (check,) = verify.run(image, plan, print, only="test_aot")
        assert check.outcome == "passed", check.message
        plan["aot"]["name"] = "all"
        (check,) = verify.run(image, plan, print, only="test_aot")
        assert check.message.startswith("FlashInfer would compile 6"), check.message
    finally:
        shell("docker", "rmi", image, check=False)


LISTED = """
import json, pathlib
path = pathlib.Path("/opt/fp4forge/ledger.json")
ledger = json.loads(path.read_text())
site = next(pathlib.Path("/usr/local/lib").glob("python3.*/dist-packages"))
first = min(ledger["files"], key=lambda file: (site / file["path"]).stat().st_size)
for number in range(1000):
    name = f"flashinfer/data/aot/{'long' * 20}_{number}.so"
    (site / name).parent.mkdir(parents=True, exist_ok=True)
    (site / name).symlink_to(site / first["path"])
    ledger["files"].append(first | {"path": name})
ledger["files"][-1]["sha256"] = "0" * 64
path.write_text(json.dumps(ledger))
"""


@pytest.mark.usefixtures("built_upon")
def test_a_ledger_of_a_thousand_files_is_checked(published: dict[str, Any], tmp_path: Path) -> None:
    """`--aot all` has seven hundred: no argument of a process holds their names."""
    image = "fp4forge.local/aot:listed"
    said: list[str] = []
    (tmp_path / "list.py").write_text(LISTED)
    (tmp_path / "Dockerfile").write_text(
        f"FROM {published['image']}\nCOPY list.py /tmp/\nUSER 0\nRUN python3 /tmp/list.py\n"
    )
    shell("docker", "buildx", "build", "-q", "-t", image, str(tmp_path))
    try:
        (check,) = verify.run(image, published["plan"], said.append, only="ledger_is_of_these")
    finally:
        shell("docker", "rmi", image, check=False)
    assert check.message.startswith("not the file of the ledger: /")
    assert check.message.endswith("long_999.so") and check.message.count("long_") == 1
    assert said[0] == "test_ledger_is_of_these_files"
