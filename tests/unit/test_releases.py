"""Releases: what is read from vLLM's own files, what differs between two, what is removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fp4forge.core.errors import ArtefactError, ReleaseError
from fp4forge.core.paths import PATCHES, RELEASES, ROOT
from fp4forge.inputs import release
from fp4forge.inputs.release import External
from fp4forge.kernels.cubins import Cubin, DeviceCode, Kernel
from fp4forge.kernels.ledger import File, Ledger
from fp4forge.maintain import adding, externals, index, releases
from fp4forge.maintain.index import IndexFile
from fp4forge.models import backend_answers

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CMAKE = """
# GIT_TAG of a comment
set(CUTLASS_REVISION "v9.9.9" CACHE STRING "")
if(VLLM_CUTLASS_SRC_DIR)
  FetchContent_Declare(cutlass SOURCE_DIR ${VLLM_CUTLASS_SRC_DIR})
else()
  FetchContent_Declare(
    cutlass
    GIT_REPOSITORY https://example.org/nvidia/cutlass.git
    # keep in sync
    GIT_TAG ${CUTLASS_REVISION}
    GIT_SHALLOW TRUE
  )
endif()
"""
NEW = f"""
set(_REPO "https://example.org/new")
if(DEFINED ENV{{NEW_SM100_SRC_DIR}})
endif()
FetchContent_Populate(New GIT_REPOSITORY "${{_REPO}}" GIT_TAG {COMMIT})
"""


def tree(tmp_path: Path, new: str = NEW) -> Path:
    (tmp_path / "cmake/external_projects").mkdir(parents=True)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    (tmp_path / "cmake/external_projects/new.cmake").write_text(new)
    return tmp_path


def test_externals_come_from_cmakes_files(tmp_path: Path) -> None:
    known = External(
        git="https://example.org/nvidia/cutlass.git",
        commit=COMMIT,
        tag="v9.9.9",
        variable="VLLM_CUTLASS_SRC_DIR",
    )
    found = externals.read(tree(tmp_path), {"the-cutlass": known})
    assert found == {
        "the-cutlass": known,  # by its variable; the tag's commit was known
        "new": External(
            git="https://example.org/new.git", commit=COMMIT, variable="NEW_SM100_SRC_DIR"
        ),
    }
    other = externals.read(tmp_path, {})["cutlass"]
    assert (other.commit, other.tag) == ("v9.9.9", "v9.9.9")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (COMMIT, "${UNKNOWN}", r"new\.cmake:5: GIT_TAG \$\{UNKNOWN\} cannot be read"),
        (COMMIT, "main", "GIT_TAG main is neither a commit nor"),
        ("NEW_SM100_SRC_DIR", "ELSEWHERE", "no variable names a local tree of New"),
    ],
)
def test_an_unknown_construct_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ReleaseError, match=says):
        externals.read(tree(tmp_path, NEW.replace(old, new)), {})


def code(*kernels: tuple[str, str]) -> File:
    """A file with kernels, each of a name and targets."""
    targets = sorted({target for _, all_ in kernels for target in all_.split()})
    cubins = tuple(
        Cubin(
            "sm_" + target.replace(".", ""),
            "bare",
            tuple(Kernel(name) for name, all_ in kernels if target in all_.split()),
            False,
        )
        for target in targets
    )
    return File("x.so", DeviceCode("0" * 64, cubins, ()))


def test_a_wheels_arch_list_is_that_of_most_of_its_kernels() -> None:
    """Kernels with a list of their own say nothing of the whole list."""
    most = [(f"k{n}", "8.0 9.0 12.0 10.0") for n in range(5)]
    own = [(f"own{n}", "9.0a") for n in range(9)] + [("fp4", "10.0f 12.0f"), ("old", "7.5 8.6")]
    found = Ledger("a wheel", (code(*most), code(*own)))
    assert adding.arch_list_of(found) == "8.0;9.0;10.0;12.0"


def listed(*names: str, uploaded: str = "2026-11-02T10:00:00Z") -> list[IndexFile]:
    return [IndexFile(name, "https://example.org/" + name, upload_time=uploaded) for name in names]


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (listed(), "has no vLLM 9.9.9"),
        (listed("vllm-9.9.9.tar.gz"), "has no wheel of vLLM 9.9.9"),
        (
            listed(
                "vllm-9.9.9.tar.gz", "vllm-9.9.9-cp38-abi3-manylinux_2_28_x86_64.whl", uploaded=""
            ),
            "does not say when files were uploaded",
        ),
    ],
)
def test_what_the_index_lacks_is_named(
    found: list[IndexFile], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "listing", lambda project: found)
    with pytest.raises(ArtefactError, match=says):
        adding.files_of("9.9.9")


def test_files_of_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform's own wheel, not one for another CUDA, CPU or version."""
    right = "vllm-9.9.9-cp38-abi3-manylinux_2_28_aarch64.whl"
    others = (
        "vllm-9.9.9+cu126-cp38-abi3-manylinux_2_28_aarch64.whl",
        "vllm-9.9.90.tar.gz",
        "vllm-9.9.9-cp38-abi3-macosx_14_arm64.whl",
        "vllm-9.9.9rc1.tar.gz",
    )
    names = listed("vllm-9.9.9.tar.gz", right, *others)
    monkeypatch.setattr(index, "listing", lambda project: names)
    sdist, wheels, day = adding.files_of("9.9.9")
    assert sdist.file == "vllm-9.9.9.tar.gz" and day.isoformat() == "2026-11-02"
    assert {platform: wheel.file for platform, wheel in wheels.items()} == {"linux/arm64": right}


def build(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "build.py", "release", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_releases_are_listed_and_shown() -> None:
    listed = json.loads(build("list", "--json").stdout)
    assert [row["release"] for row in listed] == list(release.names())
    name = listed[-1]["release"]
    shown = json.loads(build("show", name, "--json").stdout)
    assert shown["torch"] == listed[-1]["torch"] and "conflicts" in shown
    assert build("show", "0.1.0").returncode == 2


def test_a_difference_names_pins_packages_and_patches() -> None:
    old, new = release.names()[:2]
    rows = {row["name"]: row for row in json.loads(build("diff", old, new, "--json").stdout)}
    assert rows["torch"]["old"] == release.load(old).torch
    assert rows["patch fp4-support-guards"] == {
        "name": "patch fp4-support-guards",
        "old": "applied",
        "new": "upstream",
    }
    assert "package flashinfer-python" in rows
    assert json.loads(build("diff", old, old, "--json").stdout) == []


def test_a_difference_names_backends_if_both_releases_were_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = release.names()[:2]
    selected = {old: "MARLIN", new: "FLASHINFER_CUTLASS"}

    def load(vllm: str) -> tuple[backend_answers.BackendAnswer, ...]:
        if vllm not in selected:
            return ()
        experts = backend_answers.BackendDecision(
            kind="experts", layer="silu", selected=selected[vllm]
        )
        answer = backend_answers.BackendAnswer(
            vllm=vllm, gpu="sm121", capability=(12, 1), model="m"
        )
        return (msgspec.structs.replace(answer, family="qwen3", decisions=(experts,)),)

    monkeypatch.setattr(backend_answers, "load", load)
    row = ("backend sm121 qwen3 experts silu", "MARLIN", "FLASHINFER_CUTLASS")
    assert row in releases.differences(old, new)
    del selected[new]
    assert not any(name.startswith("backend") for name, *_ in releases.differences(old, new))


def test_a_release_is_removed_whole_and_the_reference_is_not(tmp_path: Path) -> None:
    folders = {"FP4FORGE_RELEASES": RELEASES, "FP4FORGE_PATCHES": PATCHES}
    copies = {name: str(tmp_path / path.name) for name, path in folders.items()}
    for path in folders.values():
        shutil.copytree(path, tmp_path / path.name)
    code = (
        "from fp4forge.core import paths; from pathlib import Path\n"
        f"paths.DOCKERFILES = Path({str(tmp_path)!r}) / 'dockerfiles'\n"
        "from fp4forge.maintain import releases\n"
        "print(releases.remove('0.20.2'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | copies,
    )
    assert done.returncode == 0, done.stderr
    left = [p for p in tmp_path.rglob("*0.20.2*") if "locks" not in p.parts or p.suffix == ".txt"]
    assert left == []
    reference = build("remove", "0.19.1", **copies)
    assert reference.returncode == 2 and "is the reference's" in reference.stderr
    assert (tmp_path / "releases/0.19.1.yaml").is_file()
