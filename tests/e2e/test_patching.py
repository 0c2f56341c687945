"""build.py patch against the real sources of vLLM (fetched from the package index)."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from fp4forge.image.stages.apply_patches import apply_series
from fp4forge.inputs import patches as series
from fp4forge.maintain import sources
from tests.e2e.conftest import Completed, shell

FOLDER = Path("vllm/0.20.2")


def patch(*arguments: str, **environment: str) -> Completed:
    return shell(sys.executable, "build.py", "patch", *arguments, check=False, **environment)


def test_every_patch_applies_and_every_upstream_fix_is_found() -> None:
    done = patch("check", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {s["state"] for s in found["0.19.1"]} == {"applies"}
    states = {s["id"]: s["state"] for s in found["0.20.2"]}
    assert states.pop("nvfp4-emulation-scales") == "upstream"
    assert states.pop("fp4-support-guards") == "upstream"
    assert set(states.values()) == {"applies"}


def test_a_patch_that_no_longer_fits_fails_the_check(copied_patches: Path) -> None:
    diff = copied_patches / FOLDER / "chat-batch-reasoning.patch"
    text = diff.read_text()
    context = next(line for line in text.splitlines() if line.startswith(" "))
    diff.write_text(text.replace(context, context + " # moved on"))
    done = patch("check", "--vllm", "0.20.2", FP4FORGE_PATCHES=str(copied_patches))
    assert done.returncode == 7
    assert "chat-batch-reasoning: " in done.stderr and "batch_serving.py hunk" in done.stderr


def test_a_fix_that_upstream_has_is_detected_in_the_source(copied_patches: Path) -> None:
    series = copied_patches / FOLDER / "series.yaml"
    text = series.read_text()
    old = r"'\(\?<!\\\.moe\)\\\.experts'"
    assert old in text
    series.write_text(text.replace(old, "'class Gemma4MoE'"))
    done = patch("check", "--vllm", "0.20.2", "--json", FP4FORGE_PATCHES=str(copied_patches))
    assert done.returncode == 7
    states = {s["id"]: s["state"] for s in json.loads(done.stdout)["0.20.2"]}
    assert states["gemma4-moe-prefix"] == "upstream"


def test_refresh_rebases_offsets_and_records_hashes(copied_patches: Path) -> None:
    folder = copied_patches / FOLDER
    diff, series = folder / "chat-batch-reasoning.patch", folder / "series.yaml"
    right, recorded = diff.read_text(), series.read_text()
    diff.write_text(right.replace("@@ -1", "@@ -9", 1))  # hunk counted from another line
    series.write_text(re.sub("before: ....", "before: dead", recorded, count=1))
    done = patch("refresh", "--vllm", "0.20.2", "--json", FP4FORGE_PATCHES=str(copied_patches))
    assert done.returncode == 0, done.stderr
    states = {s["id"]: s["state"] for s in json.loads(done.stdout)["0.20.2"]}
    assert states["chat-batch-reasoning"] == "applies with offsets"
    assert series.read_text() == recorded
    assert diff.read_text() == right


def test_refresh_writes_the_files_of_a_new_patch(copied_patches: Path) -> None:
    """As CONTRIBUTING.md describes it: the record of a new patch starts with ``files: {}``."""
    series = copied_patches / FOLDER / "series.yaml"
    recorded = series.read_text()
    files = r"    files:\n(?:      .*\n)+(    proof: .*\n\n# Fixes)"
    new, found = re.subn(files, r"    files: {}\n\1", recorded)
    assert found == 1
    series.write_text(new)
    done = patch("check", "--vllm", "0.20.2", FP4FORGE_PATCHES=str(copied_patches))
    assert done.returncode == 7 and "has no files" in done.stderr and "refresh" in done.stderr
    done = patch("refresh", "--vllm", "0.20.2", FP4FORGE_PATCHES=str(copied_patches))
    assert done.returncode == 0, done.stderr
    assert series.read_text() == recorded


def test_refresh_names_a_file_that_the_source_lacks(copied_patches: Path) -> None:
    diff = copied_patches / FOLDER / "chat-batch-reasoning.patch"
    diff.write_text(re.sub(r"^(\+\+\+ b/)vllm/", r"\1vlm/", diff.read_text(), flags=re.M))
    done = patch("refresh", "--vllm", "0.20.2", FP4FORGE_PATCHES=str(copied_patches))
    assert done.returncode == 7 and "vlm/" in done.stderr and "does not have" in done.stderr


def test_refresh_never_uses_fuzz(copied_patches: Path) -> None:
    folder = copied_patches / FOLDER
    diff = folder / "chat-batch-reasoning.patch"
    lines = diff.read_text().splitlines(keepends=True)
    context = next(n for n, line in enumerate(lines) if line.startswith(" "))
    lines[context] = " not what stands there\n"
    diff.write_text("".join(lines))
    before = (folder / "series.yaml").read_text()
    done = patch("refresh", "--vllm", "0.20.2", FP4FORGE_PATCHES=str(copied_patches))
    assert done.returncode == 7 and "without fuzz" in done.stderr
    assert (folder / "series.yaml").read_text() == before


def test_drift_tells_what_a_move_needs() -> None:
    done = patch("drift", "--vllm", "0.21.0", "--merge")
    assert done.returncode == 15
    assert "modelopt-nvfp4-awq" in done.stderr
    assert "<<<<<<< ours" in done.stdout and ">>>>>>> theirs" in done.stdout
    done = patch("drift", "--vllm", "0.21.0", "--json")
    assert done.returncode == 15
    states = {s["id"]: s["state"] for s in json.loads(done.stdout)["0.21.0"]}
    assert states["gemma4-moe-prefix"] == states["gemma4-gelu-tanh"] == "upstream"
    assert states["modelopt-nvfp4-awq"] == "drifted"
    assert states["chat-batch-reasoning"] == "applies with offsets"


def test_a_version_that_does_not_exist() -> None:
    done = patch("drift", "--vllm", "0.20.99")
    assert done.returncode == 8 and "no vLLM 0.20.99" in done.stderr
    assert patch("drift", "--vllm", "0.1;id").returncode == 2


EMULATION = "vllm/model_executor/layers/quantization/utils/nvfp4_emulation_utils.py"
PROOFS = Path(__file__).resolve().parents[1] / "image" / "proofs"


@pytest.fixture(scope="module")
def vllm_0_19_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM 0.19.1's Python tree from its sdist, patched; its originals beside it."""
    root = tmp_path_factory.mktemp("vllm-0.19.1")
    tree = sources.source_tree("0.19.1")
    shutil.copytree(tree / "vllm", root / "site" / "vllm")
    sequence = series.load("vllm", "0.19.1")
    patches = sequence.for_variant("awq")
    for name in series.patched_files(patches):
        kind = "emulation" if name == EMULATION else "originals"
        (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tree / name, root / kind / name)
    record = {"patches": [sequence.instructions(patch) for patch in patches]}
    apply_series(record, sequence.folder, root / "site", root / "site")
    for folder in (root, *root.parents[:2]):
        folder.chmod(0o755)
    return root


def prove(image: str, root: Path, *runs: str) -> dict[str, Any]:
    done = shell(
        "docker",
        "run",
        "--rm",
        "--network=none",
        "--env=PYTHONPATH=/v/site",
        f"--volume={root}:/v:ro",
        f"--volume={PROOFS}:/proofs:ro",
        "--entrypoint=python3",
        image,
        "/proofs/run.py",
        *runs,
    )
    results: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return results


def test_the_series_of_0_19_1_does_what_it_says(image: str, vllm_0_19_1: Path) -> None:
    """Its image takes hours to compile: here its Python runs on 0.20.2's packages."""
    runs = ("patched", "original:/v/originals", "emulation:/v/emulation:native")
    found = prove(image, vllm_0_19_1, *runs)
    patched = found["patched"]
    for case in ("native", "moe_prefix", "multimodal", "multimodal_moe_prefix", "nan_scales"):
        assert patched[case]["outcome"] == "done", patched[case]
        assert not patched[case]["wrong"] + patched[case]["unknown"]
        assert max(patched[case]["linear_error"], patched[case]["moe_error"]) < 0.05
    assert patched["awq_dense"]["linear_error"] < 0.05
    for case in ("no_input_scale", "zero_input_scale", "negative_input_scale", "awq_experts"):
        assert patched[case]["outcome"] == "ValueError"
    assert patched["activation"]["error"] < 1e-6
    assert patched["batch_chat"]["reasoning"] == ["first I think"] * 2

    original = found["original"]
    assert original["moe_prefix"]["outcome"] == "KeyError"
    assert original["nan_scales"]["moe_error"] == float("inf")
    assert original["no_input_scale"]["outcome"] == "done"
    assert original["awq_dense"]["outcome"] == "ValidationError"
    assert original["activation"]["error"] > 1e-4
    assert original["batch_chat"]["reasoning"] == [None] * 2

    assert found["emulation"]["native"]["outcome"] == "RuntimeError"
