"""vLLM on a real GPU: kernels against float32, generated checkpoints served (``make test-gpu``).

Runs in whatever Python has vLLM, torch and a GPU; no Docker. FP4FORGE_PLAIN names a folder with an
unpatched vllm package, in which each damaged checkpoint must show its record's symptom.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PROOFS = Path(__file__).resolve().parents[1] / "image" / "proofs"
PLAIN = os.environ.get("FP4FORGE_PLAIN")
SHAPES = os.environ.get("FP4FORGE_SHAPES", "reference")
OUT = os.environ.get("FP4FORGE_GPU_OUT", "gpu-results")


def gpu() -> str:
    """Why there is nothing to test here; empty when there is a GPU and vLLM."""
    code = "import torch, vllm; assert torch.cuda.is_available(), 'torch sees no GPU'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


MISSING = gpu()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"NOT RUN, no GPU test here: {MISSING}")


@cache
def results(script: str, *arguments: str, name: str = "") -> Any:
    out = Path(OUT).resolve()
    out.mkdir(exist_ok=True)
    line = [sys.executable, str(PROOFS / script), *arguments]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"{script} ended with {done.returncode}"
    (out / f"{name or Path(script).stem}.json").write_text(
        done.stdout.strip().splitlines()[-1] + "\n"
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def served(case: str, side: str = "patched") -> Any:
    if side == "plain" and not PLAIN:
        pytest.skip("NOT RUN: FP4FORGE_PLAIN names no unpatched package")
    arguments = ["--shapes", SHAPES, "--out", str(Path(OUT).resolve())]
    arguments += ["--plain", PLAIN] if PLAIN else []
    return results("serve.py", *arguments)[case][side]


def test_kernels() -> None:
    """every kernel that this GPU has the hardware for is within its tolerance"""
    checks = results("kernels.py")["checks"]
    wrong = [c for c in checks if "skipped" not in c and not c.get("error", 9) <= c["tolerance"]]
    assert not wrong, wrong
    for check in checks:
        if "skipped" in check:
            print(f"SKIPPED {check['name']}: {check['skipped']}")
    assert sum("skipped" not in c for c in checks) >= 8


def test_served_logits_are_the_reference() -> None:
    """the served model's log-probabilities are those of the dequantised weights"""
    for side in ("patched", "plain") if PLAIN else ("patched",):
        found = served("native", side)
        assert found["relative_difference"] <= found["tolerance"], found
        assert found["deterministic"]


def test_moe_prefix() -> None:
    """gemma4-moe-prefix: served; without the patch its names are unknown"""
    assert served("moe_prefix")["ready_s"]
    assert served("moe_prefix", "plain")["ready_s"] is None


def test_input_scales() -> None:
    """modelopt-expert-input-scales: refused by name; without the patch served"""
    assert any("experts 2, 6" in line for line in served("no_input_scale")["ended"])
    assert served("no_input_scale", "plain")["ready_s"]


def test_dense_input_scales() -> None:
    """a dense layer without its input scale is refused by name, by the patch or by vLLM"""
    assert any("mlp.down_proj" in line for line in served("no_dense_input_scale")["ended"])


def test_awq() -> None:
    """modelopt-nvfp4-awq: the served logits are the reference's; without the patch refused"""
    found = served("awq_dense")
    assert found["relative_difference"] <= found["tolerance"], found
    assert any("quantizations in vLLM" in line for line in served("awq_dense", "plain")["ended"])


def test_two_gpus() -> None:
    """704 wide experts are shared whole (expert parallelism), AWQ's factors with their input"""
    code = "import torch; print(torch.cuda.device_count())"
    count = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    if int(count) < 2:
        pytest.skip("NOT RUN: one GPU")
    two = "--tensor-parallel-size 2"
    for case, options in (("native", f"{two} --enable-expert-parallel"), ("awq_dense", two)):
        line = ["--shapes", "shared", "--only", case, "--eager", "--options", options]
        found = results("serve.py", *line, name=f"two-gpus-{case}")[case]["patched"]
        assert found["relative_difference"] <= found["tolerance"], (case, found)


def test_nan_block_scales() -> None:
    """modelopt-nan-block-scales: as if the blocks were zero; without the patch far off"""
    found = served("nan_scales")
    assert found["relative_difference"] <= found["tolerance"], found
    without = served("nan_scales", "plain")
    assert not without.get("relative_difference", 9) <= 2 * found["relative_difference"], without
