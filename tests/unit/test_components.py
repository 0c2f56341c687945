"""Which components a source build compiles, and how its compile stage behaves."""

from __future__ import annotations

import json
import os
import shutil
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from fp4forge.core.console import Console
from fp4forge.core.errors import ArtefactError, ReleaseError, UsageError
from fp4forge.image.stages import compile
from fp4forge.image.stages import jobs as running
from fp4forge.inputs import release
from fp4forge.plan import vllm_components
from fp4forge.plan.prediction import predict
from fp4forge.plan.vllm_components import NO_CODE, NOT_ASKED
from fp4forge.publish import pipeline

RELEASE = release.load("0.19.1")
SOURCE = RELEASE.strategy("source")


def choose(wanted: str = "all", *given: str, arch_list: str = "12.1a", gpu: str = "sm121"):  # type: ignore[no-untyped-def]  # noqa: ANN201
    groups = predict(arch_list, "0.19.1", "13.0").groups
    return vllm_components.choose(wanted, given, RELEASE, groups, (gpu,))


def test_components_without_code_for_the_gpu_are_left_out_with_the_reason() -> None:
    choice = choose()
    assert "core" in choice.names and "fa2" in choice.names
    assert "fa3" not in choice.names and choice.left_out["fa3"] == NO_CODE
    assert choice.left_out["flashmla"] == NO_CODE
    assert "flashmla" not in choice.sources


def test_flashmla_is_compiled_for_a_gpu_that_has_code() -> None:
    assert "flashmla" in choose(arch_list="10.0", gpu="sm100").names


def test_what_was_not_asked_for_is_left_out() -> None:
    choice = choose("core")
    assert choice.names == ("core",) and set(choice.sources) == {"cutlass"}
    assert choice.left_out["fa2"] == NOT_ASKED


def test_a_source_from_the_index_is_a_deviation_in_the_plan() -> None:
    source = choose("core", "cutlass=pypi").sources["cutlass"]
    assert source.where == "flashinfer-python==0.6.0 nvidia-cutlass==4.2.0.0"
    assert source.instead_of.startswith("v4.2.1")
    assert [wheel.into for wheel in source.wheels] == [".", "examples"]
    assert source.wheels[0].glob == "flashinfer_python-0.6.0-*.whl"


@pytest.fixture
def cutlass(tmp_path: Path) -> Path:
    """A tree that says it is the CUTLASS that vLLM pins; a.h is there to be changed."""
    header = tmp_path / "include/cutlass/version.h"
    header.parent.mkdir(parents=True)
    header.write_text(
        "#pragma once\n#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 2\n#define CUTLASS_PATCH 1 \n"
        "#define CUTLASS_VERSION ((CUTLASS_MAJOR)*100 + (CUTLASS_MINOR)*10 + CUTLASS_PATCH)\n"
    )
    (tmp_path / "a.h").write_text("one")
    return tmp_path


def test_a_tree_of_another_version_is_refused(cutlass: Path) -> None:
    header = cutlass / "include/cutlass/version.h"
    header.write_text(header.read_text().replace("PATCH 1", "PATCH 0"))
    with pytest.raises(ArtefactError) as refused:
        choose("core", f"cutlass={cutlass}")
    assert "is cutlass 4.2.0" in refused.value.message and "v4.2.1" in refused.value.rule
    header.unlink()
    with pytest.raises(ArtefactError, match="no cutlass"):
        choose("core", f"cutlass={cutlass}")


def test_a_local_tree_is_known_by_its_content(cutlass: Path) -> None:
    first = choose("core", f"cutlass={cutlass}").sources["cutlass"]
    (cutlass / "a.h").write_text("two")
    second = choose("core", f"cutlass={cutlass}").sources["cutlass"]
    assert first.provider == "local" and first.where != second.where
    assert vllm_components.local_trees((f"cutlass={cutlass}", "qutlass=git")) == {
        "cutlass": cutlass
    }


@pytest.mark.parametrize(
    ("wanted", "given", "error"),
    [
        ("core,fa9", (), UsageError),
        ("fa2", (), UsageError),
        ("core", ("cutlas=git",), UsageError),
        ("core", ("cutlass",), UsageError),
        ("core", ("qutlass=pypi",), UsageError),
        ("core", ("cutlass=/no/such/folder",), ArtefactError),
    ],
)
def test_bad_choices_are_refused(wanted: str, given: tuple[str, ...], error: type) -> None:
    with pytest.raises(error):
        choose(wanted, *given)


def test_a_release_without_a_needed_source_is_named() -> None:
    externals = {name: pin for name, pin in RELEASE.externals.items() if name != "cutlass"}
    release = msgspec.structs.replace(RELEASE, externals=externals)
    with pytest.raises(ReleaseError, match=r"0\.19\.1\.yaml has no external cutlass"):
        vllm_components.choose("core", (), release, {}, ("sm121",))


def test_instructions_leave_the_other_externals_out() -> None:
    given = choose("core", "cutlass=pypi").instructions(
        SOURCE, "12.1a", {"nvfp4_quantise": ["12.1a"]}
    )
    assert given["targets"] == ["_C", "_C_stable_libtorch", "_moe_C", "cumem_allocator"]
    assert {"flashmla", "qutlass", "vllm_flash_attn", "triton_kernels"} <= set(given["without"])
    assert given["sources"] == {"VLLM_CUTLASS_SRC_DIR": "/externals/cutlass"}
    assert given["gate"]["targets"] == ["12.1a"]


def test_another_external_source_is_another_compile(cutlass: Path) -> None:
    """What is compiled is kept under a key of the instructions: they must tell sources apart."""
    named = ("cutlass=git", "cutlass=pypi")
    given = [choose("core", n).instructions(SOURCE, "12.1a", {"nvfp4_quantise": []}) for n in named]
    for content in ("one", "two"):
        (cutlass / "a.h").write_text(content)
        choice = choose("core", f"cutlass={cutlass}")
        given.append(choice.instructions(SOURCE, "12.1a", {"nvfp4_quantise": []}))
    assert given[0]["pins"]["cutlass"].endswith("#f3fde58372d33e9a5650ba7b80fc48b3b49d40c8")
    assert len({json.dumps(each) for each in given}) == 4


@pytest.mark.parametrize(
    ("cores", "free", "jobs"), [(2, 21.0, 2), (16, 24.0, 4), (16, 3.0, 1), (1, 100.0, 1)]
)
def test_jobs_follow_cores_and_memory(cores: int, free: float, jobs: int) -> None:
    assert running.jobs_for(cores, free) == jobs


NINJA = """[7/91] Building CUDA object CMakeFiles/_C.dir/csrc/sampler.cu.o
FAILED: [code=1] CMakeFiles/_C.dir/csrc/x.cu.o
sccache nvcc -c csrc/x.cu -o CMakeFiles/_C.dir/csrc/x.cu.o
csrc/x.cu:3:10: fatal error: cutlass/cutlass.h: No such file or directory
compilation terminated.
[8/91] Building CUDA object CMakeFiles/_C.dir/csrc/y.cu.o
ninja: build stopped: subcommand failed.
"""


def test_a_failed_object_is_told_with_command_and_last_lines() -> None:
    text = running.failure(NINJA)
    assert text.startswith("csrc/x.cu does not compile\ncommand: sccache nvcc -c csrc/x.cu")
    assert "cutlass/cutlass.h: No such file" in text and "y.cu" not in text


@pytest.mark.parametrize(
    "line",
    [
        "nvcc error : 'cicc' died due to signal 9 (Kill signal)",
        "c++: fatal error: Killed signal terminated program cc1plus",
    ],
)
def test_an_out_of_memory_kill_is_recognised(line: str) -> None:
    assert running._KILLED.search(line) and not running._KILLED.search(NINJA)


@pytest.mark.parametrize("where", ["engine", "checkout"])
def test_a_second_build_says_that_it_waits(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "STATE", tmp_path)

    def held() -> AbstractContextManager[None]:
        engine = where == "engine"
        return (
            running.alone_on_engine(tmp_path)
            if engine
            else pipeline._one_build_at_a_time(Console())
        )

    def build() -> None:
        with held():
            pass

    second = threading.Thread(target=build)
    with held():
        assert "another build" not in "".join(capsys.readouterr())
        second.start()
        second.join(0.5)
        assert second.is_alive() and "another build" in "".join(capsys.readouterr())
    second.join(10)
    assert not second.is_alive()


def test_the_latest_build_folders_stay(tmp_path: Path) -> None:
    for number, name in enumerate("abcd"):
        running.folder_of(tmp_path, name)
        os.utime(tmp_path / name, (number, number))
    assert running.folder_of(tmp_path, "b").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "d"]


def test_progress_counts_objects() -> None:
    progress = running.Progress([], dict, 2)
    for line in NINJA.splitlines():
        progress.line(line)
    assert (progress.done, progress.total) == (8, 91)
    assert progress.text().startswith("8 of 91 objects")


def test_time_left_comes_from_past_timings() -> None:
    past = {"csrc/sampler.cu": 600.0, "csrc/y.cu": 60.0, "csrc/z.cu": 240.0, "_C.abi3.so": 1e9}
    progress = running.Progress(["csrc/sampler.cu", "csrc/y.cu", "csrc/z.cu"], lambda: past, 2)
    assert "about 8 min left" in progress.text()
    for line in NINJA.splitlines():
        progress.line(line)
    assert "about 2 min left" in progress.text()
    assert "about 1 min left" in running.Progress(["csrc/y.cu"], lambda: past, 4).text()  # not 0


FLASHINFER = "[3/40] /cuda/bin/nvcc -O3 -c /gen/a_f16/mha.cu -o /ops/a_f16/a_f16_mha.cuda.o"


def test_time_left_comes_from_the_same_source_in_other_modules() -> None:
    names = [running.short(f"/ops/{name}.cuda.o") for name in ("a_f16/a_f16_mha", "b/b_other")]
    assert names == ["a_f16/mha.cuda", "b/other.cuda"]
    past = {"a_bf16/mha.cuda": 300.0, "a_fp8/mha.cuda": 420.0}
    progress = running.Progress(names, lambda: past, 2)
    assert "about 6 min left" in progress.text()
    progress.line(FLASHINFER)
    past["a_f16/mha.cuda"] = 180.0
    assert "about 2 min left" in progress.text()  # "other" is not known: the mean of three


def test_the_first_objects_of_a_first_compile_foretell_nothing() -> None:
    waiting = [f"csrc/{number}.cu" for number in range(100)]
    past = {f"csrc/done-{number}.cu": 60.0 for number in range(4)}
    progress = running.Progress(waiting, lambda: past, 2)
    assert "left" not in progress.text()
    past["csrc/done-4.cu"] = 60.0
    assert "about 50 min left" in progress.text()


def test_seconds_come_from_ninjas_log(tmp_path: Path) -> None:
    assert running.timings(tmp_path) == {}
    (tmp_path / ".ninja_log").write_text(
        "# ninja log v7\n0\t1500\t10\tCMakeFiles/_C.dir/csrc/a.cu.o\tf00\n"
        "9\t29\t20\t/ops/m/m_b.cuda.o\tf01\n"
    )
    assert running.timings(tmp_path) == {"csrc/a.cu": 1.5, "m/b.cuda": 0.02}
    assert running.timings(tmp_path, since_ns=10) == {"m/b.cuda": 0.02}


def test_what_includes_cutlass_is_compiled_first(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    for name, text in (
        ("a.cu", '#include "cutlass/cutlass.h"'),
        ("b.cu", "#include <torch/all.h>"),
    ):
        (tmp_path / "csrc" / name).write_text(text)
    found = [compile.includes_cutlass(tmp_path / "csrc" / n) for n in ("a.cu", "b.cu", "none.cu")]
    assert found == [True, False, False]
    assert compile.includes_cutlass(Path("csrc/quantization/w8a8/cutlass/scaled_mm_c2x.cu"))


def test_sources_that_stay_the_same_keep_their_time(tmp_path: Path) -> None:
    """Ninja compiles what is newer than its object, so a patch must not touch what it leaves."""
    tree, old = tmp_path / "tree", 1_700_000_000

    def lay(**contents: str) -> dict[str, bool]:
        fresh = tmp_path / "fresh/csrc"
        fresh.mkdir(parents=True)
        for name, text in contents.items():
            (fresh / name).write_text(text)
            os.utime(fresh / name, (old, old))
        compile.update(fresh.parent, tree)
        shutil.rmtree(fresh.parent, ignore_errors=True)
        found = sorted((tree / "csrc").iterdir())
        assert all(f.read_text() == contents.get(f.name, "by CMake") for f in found)
        newer = {f.name: f.stat().st_mtime > old for f in found}
        for file in found:  # as after the compile: older than any later change
            os.utime(file, (old, old))
        return newer

    assert lay(a="1", b="1") == {"a": False, "b": False}
    (tree / "csrc/generated").write_text("by CMake")
    os.utime(tree / "csrc/generated", (old, old))
    assert lay(a="1", b="2") == {"a": False, "b": True, "generated": False}
    assert lay(a="1", b="1") == {"a": False, "b": True, "generated": False}  # withdrawn again


def test_what_the_compilers_cache_did_is_told() -> None:
    def said(hits: int, misses: int, **refused: int) -> str:
        return compile.reused({"hits": {"CUDA": hits}, "misses": {"C": misses}, "refused": refused})

    assert said(2, 1) == "2 of 3 steps from the compiler's cache"
    assert said(0, 0) == "compiled before"
    assert said(0, 0, multiple=2) == "the compiler's cache refuses 2 compiles: multiple"
