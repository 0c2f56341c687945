"""Predictions of arch lists: against vLLM's own CMake function, and on the known traps."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fp4forge.core.errors import UsageError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs import arch_rules
from fp4forge.kernels import archs, cmake_rules
from fp4forge.maintain import sources

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("0.19.1", "0.20.2")


def generated(count: int) -> list[tuple[list[str], list[str]]]:
    """Pairs of lists: kernels' own and asked for, with every oddity that a user can type."""
    chance = random.Random(20261124)
    bases = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.1", "10.3", "11.0", "12.0", "12.1"]
    suffixes = ["", "", "", "a", "f", "+PTX", "a+PTX", "f+PTX"]
    unknown = ["13.7", "99.0a", "Hopper", "sm_120", "0.0", "12"]

    def entries(most: int, odd: float) -> list[str]:
        found = [
            chance.choice(unknown)
            if chance.random() < odd
            else chance.choice(bases) + chance.choice(suffixes)
            for _ in range(chance.randint(0, most))
        ]
        if found and chance.random() < 0.2:
            found.append(chance.choice(found))
        order = chance.random()
        return found if order < 0.6 else sorted(found, reverse=order > 0.8)

    return [(entries(5, 0.02), entries(6, 0.08)) for _ in range(count)]


def steps_sources(vllm: str) -> list[list[str]]:
    """Every list that vLLM itself passes, for CUDA 12.8 to 13.2."""
    steps = arch_rules.load(vllm)["steps"]
    return [s["archs"].split(";") for s in steps if s["do"] in ("intersect", "supported")]


@pytest.mark.parametrize("vllm", VERSIONS)
def test_same_as_vllms_own_function_under_cmake(vllm: str, tmp_path: Path) -> None:
    pairs = generated(2500)
    targets = [target for _, target in pairs[:60]]
    pairs += [(source, target) for source in steps_sources(vllm) for target in targets]
    script = [f'include("{sources.source_tree(vllm)}/cmake/utils.cmake")']
    for number, (source, target) in enumerate(pairs):
        script.append(
            f'cuda_archs_loose_intersection(OUT "{";".join(source)}" "{";".join(target)}")\n'
            f'file(APPEND "${{RESULT}}" "{number} ${{OUT}}\\n")'
        )
    (tmp_path / "all.cmake").write_text("\n".join(script))
    result = tmp_path / "result.txt"
    cmake = Path(sys.executable).with_name("cmake")
    subprocess.run([cmake, f"-DRESULT={result}", "-P", tmp_path / "all.cmake"], check=True)
    lines = result.read_text().splitlines()
    assert len(lines) == len(pairs) >= 2000
    for (source, target), line in zip(pairs, lines, strict=True):
        expected = line.split(" ", 1)[1]
        assert ";".join(archs.loose_intersection(source, target)) == expected, (source, target)


@pytest.mark.parametrize("vllm", VERSIONS)
def test_committed_rules_are_what_the_source_says(vllm: str) -> None:
    committed = json.loads((RELEASES / "archs" / f"{vllm}.json").read_text())
    assert cmake_rules.extract(sources.source_tree(vllm)) == committed


def test_a_changed_cmake_file_changes_the_prediction(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(sources.source_tree("0.20.2") / "cmake", tree / "cmake")
    text = (sources.source_tree("0.20.2") / "CMakeLists.txt").read_text()
    changed = text.replace('FP4_ARCHS "12.0f"', 'FP4_ARCHS "12.0a"')
    assert changed != text
    (tree / "CMakeLists.txt").write_text(changed)
    data = cmake_rules.extract(tree)
    prediction = archs.predict("12.0", "0.20.2", data, "13.0")
    assert prediction.groups["nvfp4_sm12x"] == ["12.0a"]
    assert prediction.lost(("sm120", "sm121")).keys() == {"sm121"}


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
    groups = archs.predict(text, "0.19.1", arch_rules.load("0.19.1"), cuda).groups
    assert (groups["nvfp4_sm12x"], groups["nvfp4_sm10x"]) == (sm12x, sm10x)
    assert set(groups["moe_marlin"]) <= {"8.0+PTX"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "build.py", "arch", "explain", *arguments],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


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
    assert says in " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_json() -> None:
    data = json.loads(run("12.0a", "--vllm", "0.20.2", "--json").stdout)
    assert data["gpus"]["sm120"]["fp4"] == "native"
    assert data["gpus"]["sm121"] == data["gpus"]["sm121"] | {"fp4": "missing", "ok": False}
    assert data["groups"]["nvfp4_sm12x"] == ["12.0a"]


@pytest.mark.parametrize("entry", ["12.0 ; x", "a", "12", "12.00", "12.0A"])
def test_what_torch_refuses(entry: str) -> None:
    with pytest.raises(UsageError):
        archs.torch_archs(entry)


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "build.py", "--dry-run", "--json", *arguments],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


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
