"""Predictions of arch lists: against vLLM's own CMake files, and on the known traps."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import DriftError, ReleaseError, UsageError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs import arch_rules
from fp4forge.kernels import archs
from fp4forge.kernels.groups import of_sources
from fp4forge.maintain import sources
from fp4forge.maintain import write_arch_rules as extracting
from fp4forge.plan import cmake
from fp4forge.plan.prediction import predict

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = tuple(sorted(path.stem for path in (RELEASES / "archs").glob("*.json")))


def generated(count: int) -> list[str]:
    """Lists as users type them, with every oddity."""
    chance = random.Random(20261124)
    bases = [
        "7.5",
        "8.0",
        "8.6",
        "8.7",
        "8.9",
        "9.0",
        "10.0",
        "10.1",
        "10.3",
        "10.7",
        "11.0",
        "12.0",
        "12.1",
        "13.7",
        "0.0",
    ]
    suffixes = ["", "", "", "a", "f", "+PTX", "a+PTX"]
    return [
        ";".join(
            chance.choice(bases) + chance.choice(suffixes) for _ in range(chance.randint(1, 7))
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("vllm", VERSIONS)
@pytest.mark.parametrize("cuda", ["12.9", "13.0", "13.4"])
def test_the_script_compiles_what_the_sources_do(vllm: str, cuda: str) -> None:
    lists = [";".join(archs.torch_archs(text)) for text in generated(40)]
    tree = sources.source_tree(vllm) / "CMakeLists.txt"
    whole = cmake.evaluate(tree, cuda, lists)
    assert list(map(str, cmake.evaluate(arch_rules.script(vllm), cuda, lists))) == list(
        map(str, whole)
    )


@pytest.mark.parametrize("vllm", VERSIONS)
def test_the_table_holds_what_the_script_compiles(vllm: str) -> None:
    rules = arch_rules.load(vllm)
    for cuda, table in rules.lists.items():
        lists = random.Random(1).sample(sorted(table), 25)
        for text, found in zip(
            lists, cmake.evaluate(arch_rules.script(vllm), cuda, lists), strict=True
        ):
            assert rules.sources(text, cuda) == found, (cuda, text)


@pytest.mark.parametrize("vllm", VERSIONS)
def test_the_script_is_cut_from_the_sources(vllm: str) -> None:
    script = extracting.script(sources.source_tree(vllm), vllm)
    assert arch_rules.script(vllm).read_text() == script


def test_every_list_of_a_plan_is_in_the_table() -> None:
    for vllm in VERSIONS:
        table = arch_rules.load(vllm).lists["13.0"]
        lists = [
            "10.0;12.0;12.1",
            "11.0",
            "7.5;8.0;8.6;8.9;9.0;10.0;12.0",
            "8.0;8.7;8.9;9.0;10.0;11.0;12.0",
        ]
        assert set(lists) <= set(table)


@pytest.mark.parametrize(
    ("text", "clock", "seconds"),
    # CPU time, because other work on the machine is not ours; CMake's is another process's.
    [("10.0;12.0", time.process_time, 0.05), ("9.0a;10.0;12.1a", time.perf_counter, 2)],
)
def test_a_list_is_explained_in_time(text: str, clock: Callable[[], float], seconds: float) -> None:
    def took() -> float:
        arch_rules.load.cache_clear()
        predict.cache_clear()
        start = clock()
        predict(text, VERSIONS[-1], "13.0")
        return clock() - start

    assert min(took() for _ in range(5)) < seconds


def changed_tree(folder: Path, old: str, new: str) -> Path:
    """CMake files of the newest sources with a change."""
    tree = folder / "tree"
    shutil.copytree(sources.source_tree(VERSIONS[-1]) / "cmake", tree / "cmake")
    text = (sources.source_tree(VERSIONS[-1]) / "CMakeLists.txt").read_text()
    assert text.count(old) >= 1
    (tree / "CMakeLists.txt").write_text(text.replace(old, new, 1))
    return tree


def test_a_changed_cmake_file_changes_the_prediction(tmp_path: Path) -> None:
    tree = changed_tree(
        tmp_path,
        'FP4_SM120_ARCHS "12.0f" "${CUDA_ARCHS}"',
        'FP4_SM120_ARCHS "12.0a" "${CUDA_ARCHS}"',
    )
    script = tmp_path / "changed.cmake"
    script.write_text(extracting.script(tree, "9.9"))
    (result,) = cmake.evaluate(script, "13.0", ["12.0"])
    assert isinstance(result, dict)
    prediction = archs.judge("12.0", "9.9", "13.0", of_sources(result), ())
    assert prediction.groups["nvfp4_gemm"] == ["12.0a"]
    assert prediction.lost(("sm120", "sm121")).keys() == {"sm121"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        # A command of a project, and one that no CMake has.
        ('cuda_archs_loose_intersection(MLA_ARCHS "10.0f', "try_compile(X)\n@", "try_compile"),
        (
            'cuda_archs_loose_intersection(MLA_ARCHS "10.0f',
            "cuda_archs_new(X)\n@",
            "cuda_archs_new",
        ),
        # A condition that nothing here sets.
        ("if(FUSED_GDN_DECODE_ARCHS)", "if(VLLM_NEW_SWITCH)", "no list reaches these sources"),
        ("if(VLLM_CUTLASS_SRC_DIR)", "file(SIZE a b)\n@", "file(SIZE) has no stand-in"),
    ],
)
def test_what_is_unknown_is_refused_by_file_and_line(
    old: str, new: str, says: str, tmp_path: Path
) -> None:
    tree = changed_tree(tmp_path, old, new.replace("@", old))
    with pytest.raises(ReleaseError, match=r"^CMakeLists\.txt:\d+: ") as caught:
        extracting.extract(tree, "9.9")
    assert says in caught.value.message


def test_an_include_that_is_missing_is_refused(tmp_path: Path) -> None:
    tree = changed_tree(tmp_path, "cmake/external_projects/qutlass.cmake", "cmake/other.cmake")
    with pytest.raises(ReleaseError, match=r"has no cmake/other\.cmake"):
        extracting.extract(tree, "9.9")


def test_a_committed_file_that_differs_is_drift() -> None:
    with pytest.raises(DriftError, match=r"releases/archs/9\.9\.json"):
        extracting.check({"9.9.json": "{}"})


def test_what_upstream_refuses_is_refused_in_its_words() -> None:
    with pytest.raises(UsageError, match="internal error parsing CUDA_ARCHS"):
        predict("8.0;10.3f", "0.20.2", "12.9")
    with pytest.raises(UsageError, match="No supported CUDA architectures"):
        predict("5.0", "0.33.0", "13.0")


def test_external_sources_and_functions_of_0_33() -> None:
    groups: dict[str, Any] = predict("10.0;12.0;12.1", "0.33.0", "13.0").groups
    assert groups["qutlass"] == groups["deepselect"] == groups["flashmla_fp4"] == ["10.0f"]
    assert groups["flashkda"] == groups["fp32_router_gemm"] == ["10.0f", "12.0f"]
    assert groups["minimax_m3_insert"] == ["10.0f", "12.0"]


# facts of the field: what each list gives with 0.19.1, as (SM12x targets, SM10x targets).
TRAPS = [
    ("10.0;12.0;12.1", "13.0", ["12.0f"], ["10.0f"]),
    ("12.1", "13.0", ["12.1"], []),
    ("12.1a", "13.0", ["12.1a"], []),
    ("12.0", "13.0", ["12.0f"], []),
    ("12.0a", "13.0", ["12.0a"], []),
    ("12.0f", "13.0", ["12.0f"], []),
    ("10.0", "13.0", [], ["10.0f"]),
    ("10.0f;12.0f", "13.0", ["12.0f"], ["10.0f"]),
    ("12.0a;12.1a", "13.0", ["12.0a"], []),
    ("10.0;12.0;12.1", "12.9", ["12.0a", "12.1a"], ["10.0a"]),
    ("12.0", "12.8", ["12.0a"], []),
    ("10.0", "12.8", [], ["10.0a"]),
]


@pytest.mark.parametrize(("text", "cuda", "sm12x", "sm10x"), TRAPS)
def test_known_lists(text: str, cuda: str, sm12x: list[str], sm10x: list[str]) -> None:
    groups = predict(text, "0.19.1", cuda).groups
    assert sorted(groups["nvfp4_gemm"]) == sorted(sm12x + sm10x)
    assert set(groups["moe_marlin"]) <= {"8.0+PTX"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "build.py", "arch", "explain", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["10.0;12.0;12.1"], 0, "family"),
        (["12.1"], 3, "ptxas refuses FP4"),
        (["12.0a;12.1a"], 3, "sm121 cannot load"),
        (["12.1a"], 0, "enable_sm120_only"),
        (["9.0"], 3, "names no 12.x"),
        (["12.1", "--cuda", "12.8"], 2, "does not know sm_121"),
        (["12.0f", "--cuda", "12.8"], 2, "sm_120f"),
        (["12.0;Pascal2"], 2, "Pascal2"),
        (["12.0; rm -rf /"], 2, "not an architecture"),
        ([""], 2, "empty"),
        (["12.0", "--vllm", "0.1"], 2, "arch extract"),
        (["12.0", "--cuda", "x"], 2, "not a CUDA version"),
    ],
)
def test_exit_codes_and_reasons(arguments: list[str], code: int, says: str) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


def test_json() -> None:
    data = json.loads(run("12.0a", "--vllm", "0.20.2", "--json").stdout)
    assert data["gpus"]["sm120"]["fp4"] == "native"
    assert data["gpus"]["sm121"] == data["gpus"]["sm121"] | {"fp4": "missing", "ok": False}
    assert data["groups"]["nvfp4_gemm"] == ["12.0a"]


@pytest.mark.parametrize("entry", ["12.0 ; x", "a", "12", "12.00", "12.0A"])
def test_what_torch_refuses(entry: str) -> None:
    with pytest.raises(UsageError):
        archs.torch_archs(entry)


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "build.py", "--dry-run", "--json", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_a_build_refuses_a_list_that_leaves_a_gpu_without_fp4() -> None:
    done = build("--arch", "blackwell", "--arch-list", "10.0;12.0a;12.1a")
    assert done.returncode == 3
    assert "sm121 would get no FP4" in done.stderr
    assert "sm120 would" not in done.stderr
    assert "--allow-missing sm121" in done.stderr


def test_allow_missing_overrides_and_is_recorded() -> None:
    done = build(
        "--arch", "blackwell", "--arch-list", "10.0;12.0a;12.1a", "--allow-missing", "sm121"
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["allow_missing"] == ["sm121"]
    assert plan["predicted"]["nvfp4_gemm"] == ["10.0f", "12.0a"]


def test_an_arch_list_is_not_for_a_published_wheel() -> None:
    done = build("--arch", "sm120", "--release", "0.20.2", "--from", "wheel", "--arch-list", "12.0")
    assert done.returncode == 2
    assert "--from source" in done.stderr
