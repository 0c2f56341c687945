"""The gate of a source build: its FP4 object compiled by the build's own stages, and refusals."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import subprocess
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import BuildError, CoverageError
from fp4forge.image import context as contexts
from fp4forge.inputs import release
from fp4forge.maintain import sources
from fp4forge.oci import buildkit as builder
from fp4forge.plan import vllm_components
from fp4forge.plan.request import ImageRequest
from fp4forge.publish import build as building
from fp4forge.publish import pipeline
from tests.e2e.conftest import ROOT, shell

# Of the published image's release and GPUs: its installed layers are there already.
RELEASE = "0.20.2"
REQUEST = ImageRequest(
    "blackwell",
    RELEASE,
    strategy="source",
    base="bootstrap",
    platform="linux/amd64",
    arch_list="12.1a",
    allow_missing=("sm100",),
    components="core",
    sources=("cutlass=pypi",),
    aot="none",
)

# What vLLM 0.20.2's CMake makes of 12.1a for its FP4 kernels (releases/archs).
TARGET = "12.0f"

Change = Callable[[dict[str, bytes]], None]


def build(
    request: ImageRequest,
    change: Change | None = None,
    target: str = "gate",
    output: str = "type=cacheonly",
) -> list[str]:
    """Builds as far as a stage; what it reported. change edits the build's files."""
    context = pipeline.prepare(request)
    if change:
        change(context.files)
    staged = contexts.stage(context)
    options = builder.BuildOptions(sources=vllm_components.local_trees(request.sources))
    line = building.command(context.plan, staged, [output], options, target=target)
    reports: list[str] = []
    builder.build(line, reports.append, options)
    return reports


def instruct(files: dict[str, bytes], **changes: Any) -> None:
    """Edits the compile stage's instructions."""
    files["compile.json"] = json.dumps(json.loads(files["compile.json"]) | changes).encode()


@pytest.fixture(scope="module")
def marked(published: dict[str, Any]) -> tuple[float, list[str]]:
    """A mark that makes the key another one, and what the gate reported with it."""
    mark = time.time()
    return mark, build(REQUEST, lambda files: instruct(files, mark=mark))


@pytest.mark.heavy
def test_one_fp4_object_is_compiled_and_read_first(published: dict[str, Any]) -> None:
    reports = build(REQUEST)
    ran = any("compile gate" in text for text in reports)  # not, where nothing changed since
    spoke = any(f"gate: FP4 instructions for {TARGET}" in text for text in reports)
    assert spoke == ran, reports[-5:]


@pytest.mark.heavy
def test_another_key_takes_every_object_from_the_compilers_cache(
    marked: tuple[float, list[str]],
) -> None:
    """Its build folder is another one: the cache must not see where it lies."""

    said = next(text for text in marked[1] if "gate: FP4 instructions" in text)
    found = re.search(r"(\d+) of (\d+) steps from the compiler's cache", said)
    assert found and found[1] == found[2] != "0", said


@pytest.mark.heavy
def test_a_csrc_patch_compiles_what_includes_its_file_and_nothing_else(
    marked: tuple[float, list[str]],
) -> None:
    """The gate's first object includes the header, its second does not."""
    header = "csrc/libtorch_stable/quantization/fp4/nvfp4_utils.cuh"
    old = (sources.source_tree(RELEASE) / header).read_text()
    new = old + f"static_assert(sizeof(float) == 4 && {time.time_ns()}ll > 0);\n"

    def patch(files: dict[str, bytes]) -> None:
        lines = difflib.unified_diff(
            old.splitlines(True), new.splitlines(True), f"a/{header}", f"b/{header}"
        )
        instruct(files, mark=marked[0])
        diff = "".join(lines).encode()
        before, after = (hashlib.sha256(text.encode()).hexdigest() for text in (old, new))
        series = json.loads(files["csrc/series.json"])
        series["patches"].append(
            {
                "id": "mark",
                "file": "mark.patch",
                "sha256": hashlib.sha256(diff).hexdigest(),
                "files": [{"path": header, "before": before, "after": after}],
            }
        )
        files["csrc/series.json"] = json.dumps(series).encode()
        files["csrc/mark.patch"] = diff

    reports = build(REQUEST, patch)
    assert any("1 objects to compile" in text for text in reports), reports
    said = next(text for text in reports if "gate: FP4 instructions" in text)
    assert "compiler's cache" in said and "compiled before" not in said


@pytest.mark.heavy
def test_a_component_beside_core_goes_into_the_wheel(
    published: dict[str, Any], tmp_path: Path
) -> None:
    """Its sources are a local tree: the published image's, laid out as its repository does."""
    tree, wheels = tmp_path / "triton", tmp_path / "wheels"
    package = tree / "python/triton_kernels/triton_kernels"
    package.parent.mkdir(parents=True)
    site = f"usr/local/lib/python{published['plan']['python']}/dist-packages"
    container = shell("docker", "create", published["image"]).stdout.strip()
    try:
        place = f"{container}:/{site}/vllm/third_party/triton_kernels"
        shell("docker", "cp", "--quiet", place, str(package))
    finally:
        shell("docker", "rm", container)
    request = replace(
        REQUEST,
        components="core,triton_kernels",
        sources=("cutlass=pypi", f"triton_kernels={tree}"),
    )

    def of_two_targets(files: dict[str, bytes]) -> None:
        instruct(files, targets=["cumem_allocator", "triton_kernels"])  # the rest takes an hour
        files["Dockerfile"] += b"\nFROM scratch AS wheels\nCOPY --from=compile /wheels/ /\n"

    build(request, of_two_targets, "wheels", f"type=local,dest={wheels}")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    packed = tmp_path / "vllm/third_party/triton_kernels"
    there, sent = (
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.py")}
        for folder in (packed, package)
    )
    assert there == sent != {}
    assert (tmp_path / "vllm/cumem_allocator.abi3.so").is_file()


@pytest.mark.heavy
def test_a_wrong_prediction_stops_the_build_at_the_gate(published: dict[str, Any]) -> None:
    def predict(files: dict[str, bytes]) -> None:
        instructions = json.loads(files["compile.json"])
        instruct(files, gate=instructions["gate"] | {"targets": ["10.0a", TARGET]})

    with pytest.raises(CoverageError, match=rf"for {TARGET}, predicted 10\.0a {TARGET}"):
        build(REQUEST, predict)


@pytest.mark.heavy
def test_a_tree_that_is_not_cutlass_is_told_with_the_compilers_words(
    published: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "include/cutlass").mkdir(parents=True)
    (tmp_path / "include/cutlass/cutlass.h").write_text("#error not CUTLASS\n")
    tag = release.load(RELEASE).externals["cutlass"].tag
    numbers = zip(("MAJOR", "MINOR", "PATCH"), tag.removeprefix("v").split("."), strict=True)
    (tmp_path / "include/cutlass/version.h").write_text(
        "".join(f"#define CUTLASS_{name} {number}\n" for name, number in numbers)
    )
    with pytest.raises(BuildError) as refused:
        build(replace(REQUEST, sources=(f"cutlass={tmp_path}",)))
    assert "nvfp4_scaled_mm_entry.cu does not compile" in refused.value.message
    assert "command: " in refused.value.message


def compile_twice(image: str, folder: Path, memory: str) -> subprocess.CompletedProcess[str]:
    """Two objects, two jobs, in a container of so much memory; each object takes 470 MB."""
    folder.chmod(0o777)
    (folder / "big.cpp").write_text("int big[] = {" + "1," * 3_000_000 + "};")
    (folder / "build.ninja").write_text(
        "rule cxx\n command = g++ -c big.cpp -o $out\n"
        "build a.o: cxx big.cpp\nbuild b.o: cxx big.cpp\n"
    )
    code = (
        "import os\nfrom fp4forge.image.stages import jobs\n"
        "jobs.run(['-C', '/work'], dict(os.environ), '2', dict, lambda: None)"
    )
    return shell(
        "docker",
        "run",
        "--rm",
        f"--memory={memory}",
        f"--memory-swap={memory}",
        f"--volume={folder}:/work",
        f"--volume={ROOT / 'fp4forge'}:/opt/code/fp4forge:ro",
        "--env=PYTHONPATH=/opt/code",
        "--entrypoint=python3",
        image,
        "-c",
        code,
        check=False,
    )


def test_what_the_kernel_kills_for_memory_is_compiled_with_fewer_jobs(
    published: dict[str, Any], tmp_path: Path
) -> None:
    done = compile_twice(published["image"], tmp_path, "700m")
    assert "the OOM killer ended a compiler: going on with 1 jobs" in done.stdout, done.stderr
    assert done.returncode == 0 and all((tmp_path / n).stat().st_size for n in ("a.o", "b.o"))


def test_too_little_memory_for_one_job_is_told(published: dict[str, Any], tmp_path: Path) -> None:
    done = compile_twice(published["image"], tmp_path, "300m")
    assert done.returncode and "the OOM killer ended the only compiler" in done.stderr
