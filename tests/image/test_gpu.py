"""What only a GPU can show: driver, kernels against float32, a generated model served.

Skipped, never passed, if no GPU was requested (``verify --gpu``).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

PROOFS = "/tmp/fp4forge-proofs"
DRIVER = 580  # CUDA 13's first driver branch (CUDA Toolkit release notes 13.0, table 3)


@pytest.fixture(scope="session", autouse=True)
def gpu(request: pytest.FixtureRequest) -> None:
    """Skips these checks unless a GPU was asked for."""
    if not request.config.getoption("--gpu"):
        pytest.skip("NOT RUN: no GPU was asked for (--gpu)")


@pytest.fixture(scope="session")
def capability(host: Any, plan: dict[str, Any]) -> str:
    """Compute capability of the first GPU, such as 12.1."""
    line = "nvidia-smi --query-gpu=compute_cap --format=csv,noheader"
    return str(host.check_output(line)).splitlines()[0].strip()


@pytest.fixture(scope="session")
def kernels(host: Any, proofs: str) -> list[dict[str, Any]]:
    """What ``proofs/kernels.py`` measured."""
    done = host.run(f"python3 {proofs}/kernels.py")
    assert done.rc == 0, f"the kernel checks could not run: {done.stderr.strip()[-600:]}"
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])["checks"]
    return found


@pytest.fixture(scope="session")
def served(host: Any, proofs: str) -> dict[str, Any]:
    """What ``proofs/serve.py`` found of a served checkpoint."""
    done = host.run(f"python3 {proofs}/serve.py --shapes reference --only native,multimodal")
    assert done.rc == 0, f"no server: {done.stderr.strip()[-600:]}"
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_driver(host: Any) -> None:
    """the driver is new enough for CUDA 13"""
    line = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
    version = host.check_output(line).splitlines()[0]
    assert int(version.split(".")[0]) >= DRIVER, f"driver {version} is older than {DRIVER}"


def test_capability(host: Any, plan: dict[str, Any], capability: str) -> None:
    """torch sees a GPU that the image is for"""
    assert capability in plan["capabilities"], f"{capability}; for {plan['capabilities']}"
    code = "import torch; print('%d.%d' % torch.cuda.get_device_capability())"
    assert host.check_output("python3 -c %s", code) == capability


def test_kernels(kernels: list[dict[str, Any]]) -> None:
    """FP4 and FP8 kernels agree with float32 within their tolerances"""
    wrong = [c for c in kernels if "skipped" not in c and not c.get("error", 9) <= c["tolerance"]]
    assert not wrong, "; ".join(f"{c['name']}: {c.get('error', c)}" for c in wrong)
    skipped = [c["name"] for c in kernels if "skipped" in c]
    assert not skipped, f"not run on this GPU: {', '.join(skipped)}"


def test_backends(served: dict[str, Any]) -> None:
    """vLLM selects Marlin for the experts, and not for NVFP4 linear layers"""
    found = served["native"]["patched"]["backends"]
    assert found["moe"] == "MARLIN", f"experts run on {found['moe']}"
    assert found["linear"] and "MARLIN" not in found["linear"].upper(), found


@pytest.mark.parametrize("case", ["native", "multimodal"])
def test_served(served: dict[str, Any], case: str) -> None:
    """a generated NVFP4 Gemma-4 answers: chat, image, tool call, the same twice"""
    found = served[case]["patched"]
    assert found.get("ready_s"), f"{case}: {found.get('ended') or found.get('failed')}"
    assert found["deterministic"], f"{case}: two answers at temperature 0 differ"
    assert not found["tool_call"].startswith("none"), f"{case}: {found['tool_call']}"
    if case == "multimodal":
        assert found["image_tokens"], "a request with an image got no answer"
    else:
        assert found["relative_difference"] <= found["tolerance"], found
