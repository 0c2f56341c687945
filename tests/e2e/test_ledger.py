"""The ledger on real binaries: objects compiled here, published wheels, the published image."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fp4forge.checks import ledgers
from fp4forge.core.platform import PLATFORMS
from fp4forge.inputs import release
from fp4forge.inputs.release import Artefact
from fp4forge.kernels import ledger as kernels
from fp4forge.kernels.cubins import DeviceCode
from fp4forge.kernels.groups import of_kernels
from fp4forge.maintain import sources
from fp4forge.plan.prediction import predict
from tests.e2e.conftest import ROOT, Completed, left_over, shell

KERNELS = Path(__file__).parent / "kernels"

# name -> nvcc's flags; nvcc 13.0 is the image's own.
OBJECTS = {
    "bare": "-gencode arch=compute_120,code=sm_120",
    "exact120": "-gencode arch=compute_120a,code=sm_120a",
    "family": "-gencode arch=compute_120f,code=sm_120f",
    "exact121": "-gencode arch=compute_121a,code=sm_121a",
    "compressed": "-gencode arch=compute_120f,code=sm_120f -Xfatbin -compress-all",
    "ptx": "-gencode arch=compute_120,code=compute_120",
    "emptied": "-DEMPTY -gencode arch=compute_120f,code=sm_120f",
}

# What nvfp4_gemm must be on (sm120, sm121).
VERDICTS = {
    "bare": ("missing", "missing"),
    "exact120": ("native", "missing"),
    "family": ("family", "family"),
    "exact121": ("missing", "native"),
    "compressed": ("family", "family"),
    "ptx": ("missing", "missing"),
    "emptied": ("missing", "missing"),
}


@pytest.fixture(scope="session")
def objects(published: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    folder.chmod(0o777)
    lines = [f"nvcc -c {flags} /src/fp4.cu -o /out/{n}.o" for n, flags in OBJECTS.items()]
    lines.append("g++ -shared /out/family.o -o /out/family.so && strip /out/family.so -o /out/s.so")
    shell(
        "docker",
        "run",
        "--rm",
        "--network=none",
        "--entrypoint=bash",
        f"--volume={KERNELS}:/src",
        f"--volume={folder}:/out",
        published["image"],
        "-ec",
        "\n".join(lines),
    )
    return folder


def ledger(target: object, *arguments: str) -> Completed:
    return subprocess.run(
        [sys.executable, "build.py", "ledger", str(target), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def read(target: object) -> dict[str, Any]:
    done = ledger(target, "--json")
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


@pytest.mark.parametrize("name", OBJECTS)
def test_each_object_is_told_right(objects: Path, name: str) -> None:
    data = read(objects / f"{name}.o")
    found = tuple(data["gpus"][gpu]["nvfp4_gemm"] for gpu in ("sm120", "sm121"))
    assert found == VERDICTS[name]
    kinds = {cubin["arch"]: cubin["kind"] for cubin in data["files"][0]["cubins"]}
    wanted = {
        "bare": {"sm_120": "bare"},
        "exact120": {"sm_120a": "exact"},
        "exact121": {"sm_121a": "exact"},
        "ptx": {},
    }
    assert kinds == wanted.get(name, {"sm_120f": "family"})
    if name == "ptx":
        assert [p["arch"] for p in data["files"][0]["ptx"]]


def test_an_emptied_kernel_keeps_its_symbol(objects: Path) -> None:
    cubin = read(objects / "emptied.o")["files"][0]["cubins"][0]
    assert any("nvfp4_gemm" in kernel["name"] for kernel in cubin["kernels"])
    assert (cubin["fp4_mma"], cubin["fp4_cvt"]) == (0, 0)


def test_a_stripped_library_is_read(objects: Path) -> None:
    cubin = read(objects / "s.so")["files"][0]["cubins"][0]
    assert cubin["arch"] == "sm_120f"
    assert cubin["fp4_mma"] >= 1
    assert cubin["fp4_cvt"] >= 1


def test_require(objects: Path) -> None:
    assert ledger(objects / "exact120.o", "--require", "sm120").returncode == 0
    done = ledger(objects / "exact120.o", "--require", "sm121")
    assert done.returncode == 3
    assert "sm121 lacks nvfp4_gemm" in done.stderr


def test_a_corrupt_fatbin_is_told(objects: Path, tmp_path: Path) -> None:
    from elftools.elf.elffile import ELFFile

    broken = tmp_path / "broken.so"
    content = bytearray((objects / "family.so").read_bytes())
    with (objects / "family.so").open("rb") as file:
        section = ELFFile(file).get_section_by_name(".nv_fatbin")
        assert section is not None
        start, size = section["sh_offset"], section["sh_size"]
    content[start : start + size] = b"\xa5" * size
    broken.write_bytes(content)
    done = ledger(broken)
    assert done.returncode == 18, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


WHEELS = {
    "0.19.1 x86_64": (
        "0.19.1",
        "linux/amd64",
        {"sm100": "native", "sm120": "native", "sm103": "missing", "sm121": "missing"},
    ),
    "0.20.2 x86_64": (
        "0.20.2",
        "linux/amd64",
        dict.fromkeys(("sm100", "sm103", "sm120", "sm121"), "family"),
    ),
    "0.20.2 aarch64": (
        "0.20.2",
        "linux/arm64",
        dict.fromkeys(("sm100", "sm103", "sm120", "sm121"), "family"),
    ),
}


OF_WHEELS = [name for name in release.names() if "wheel" in release.load(name).strategies]


def nightly(values: Iterable[str], kept: Callable[[str], bool]) -> list[Any]:
    """Parameters of which a test without ``heavy`` takes only some: a wheel takes a minute."""
    return [
        value if kept(value) else pytest.param(value, marks=pytest.mark.heavy) for value in values
    ]


@pytest.mark.parametrize("name", nightly(WHEELS, lambda name: name == "0.20.2 x86_64"))
def test_published_wheels(name: str) -> None:
    version, platform, wanted = WHEELS[name]
    artefact: Artefact = release.load(version).wheels[platform]
    data = read(sources.fetch(artefact))
    assert {gpu: data["gpus"][gpu]["nvfp4_gemm"] for gpu in wanted} == wanted
    assert {gpu: data["gpus"][gpu]["nvfp4_grouped_gemm"] for gpu in wanted} == wanted
    # bf16 Marlin is PTX for compute_80 on every Blackwell.
    assert {v["moe_marlin"] for v in data["gpus"].values()} == {"ptx"}
    if name.endswith("x86_64"):
        omma = sorted(
            (cubin["arch"], cubin["fp4_mma"])
            for file in data["files"]
            for cubin in file["cubins"]
            if cubin["fp4_mma"] and cubin["arch"].startswith("sm_12")
        )
        suffix = "a" if version == "0.19.1" else "f"
        assert omma == [(f"sm_120{suffix}", 64), (f"sm_120{suffix}", 384)]


@pytest.mark.parametrize("version", OF_WHEELS)
@pytest.mark.parametrize("platform", nightly(PLATFORMS, lambda name: name == "linux/amd64"))
@pytest.mark.parametrize("group", ["nvfp4_gemm", "nvfp4_grouped_gemm", "nvfp4_kv_cache"])
def test_a_wheel_without_a_groups_cubins_for_sm12x(version: str, platform: str, group: str) -> None:
    """Every other kernel with FP4 instructions is still there, and hides nothing."""
    what = release.load(version)
    found = ledgers.read(str(sources.fetch(what.wheels[platform])), lambda _: None)
    prediction = predict(what.wheel_arch_lists[platform], version, what.cuda)
    wanted = kernels.expected(prediction.groups, prediction.fp8_guards)
    assert kernels.differences(wanted, found.targets()) == []
    spoilt = kernels.Ledger(
        "spoilt", tuple(replace(f, code=without(f, group)) for f in found.files)
    )
    (line,) = kernels.differences(wanted, spoilt.targets())
    assert line.startswith(f"{group}: ") and "12.0f" not in line.split("found")[1]


def without(file: kernels.File, group: str) -> DeviceCode:
    """A file's code without the cubins for SM12x that hold a group."""
    cubins = (
        cubin
        for cubin in file.code.cubins
        if cubin.target != "12.0f" or group not in set(of_kernels(file.path, cubin.kernels))
    )
    return replace(file.code, cubins=tuple(cubins))


def test_an_image_is_read_without_starting_it(
    published: dict[str, Any], containers_before: set[str]
) -> None:
    data = read(published["image"])
    assert all(data["gpus"][gpu]["ok"] for gpu in ("sm100", "sm103", "sm120", "sm121"))
    assert {file["path"] for file in data["files"]} >= {"vllm/_C.abi3.so", "vllm/_moe_C.abi3.so"}
    assert not left_over(containers_before)


def test_the_image_carries_its_ledger(
    published: dict[str, Any], inside: Callable[..., Completed]
) -> None:
    kept = json.loads(inside("bash", "-c", "cat /opt/fp4forge/ledger.json").stdout)
    now = read(published["image"])
    assert kept["gpus"] == now["gpus"]
    assert kept["groups"] == now["groups"]
    for group, targets in published["plan"]["predicted"].items():
        assert set(targets) <= set(kept["groups"][group]), group


def test_a_container_is_read(published: dict[str, Any]) -> None:
    name = "fp4forge-ledger-test"
    shell("docker", "create", "--name", name, published["image"])
    try:
        assert read(name)["gpus"]["sm121"]["ok"]
    finally:
        shell("docker", "rm", name)


def test_a_full_disk_is_told_and_frees_the_container(
    published: dict[str, Any], tmp_path: Path
) -> None:
    name = "fp4forge-ledger-test"
    shell(
        "docker", "run", "--detach", "--name", name, "--entrypoint=sleep", published["image"], "600"
    )
    shell("mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(tmp_path))
    try:
        done = shell(sys.executable, "build.py", "ledger", name, check=False, TMPDIR=str(tmp_path))
        assert done.returncode == 13 and f"{tmp_path} is full" in done.stderr, done.stderr
        # The engine locks a container while it streams from it: a reader that gave up must not.
        subprocess.run(["docker", "exec", name, "true"], check=True, timeout=30)
    finally:
        shell("umount", str(tmp_path))
        shell("docker", "rm", "--force", name)


def test_what_is_nowhere_is_told() -> None:
    done = ledger("127.0.0.1:9/nothing:here")
    assert done.returncode == 2
    assert "is not a file, folder, container or image" in done.stderr


def test_the_page_shows_what_a_gpu_lacks(objects: Path, tmp_path: Path) -> None:
    from PIL import Image

    page, picture = tmp_path / "ledger.html", tmp_path / "ledger.png"
    assert ledger(objects / "exact120.o", "--html", str(page)).returncode == 0
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    shell(*browser, "--window-size=1200,900", f"--screenshot={picture}", page.as_uri())
    colours = Image.open(picture).convert("RGB").getcolors(1 << 24) or []
    pixels = {colour: count for count, colour in colours}
    # Green for native, red for missing: both are on the page, as areas.
    assert pixels.get((0x1A, 0x7F, 0x37), 0) > 2000
    assert pixels.get((0xFF, 0xCE, 0xCB), 0) > 2000
    dom = shell(*browser, "--dump-dom", page.as_uri()).stdout
    assert "sm_120a" in dom
    assert "http" not in page.read_text(), "the page is self-contained"


def test_compare_shows_what_a_patch_edit_changed(
    published: dict[str, Any], edited: dict[str, Any]
) -> None:
    line = [sys.executable, "build.py", "compare", published["image"], edited["image"], "--json"]
    changed = json.loads(shell(*line).stdout)["changed"]
    assert [row["what"] for row in changed["patched files"]] == [
        "vllm/model_executor/models/gemma4.py"
    ]
    assert changed["kernels"] == changed["packages"] == changed["verdicts"] == []
    same = [sys.executable, "build.py", "compare", edited["image"], edited["image"], "--json"]
    assert not any(json.loads(shell(*same).stdout)["changed"].values())
