"""The image that quantises: built, checked and published for real, and spoilt so that checks fail.

QUANTISE_IMAGE names an image to spoil instead of building one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp4forge.checks import runner
from fp4forge.plan.image_kinds import QUANTISE
from fp4forge.plan.request import ImageRequest
from fp4forge.publish import pipeline
from tests.e2e.conftest import REGISTRY, shell

pytestmark = pytest.mark.heavy

OPTIONS = ("--kind", "quantise", "--base", "bootstrap", "--platform", "linux/amd64")
REQUEST = ImageRequest("", base="bootstrap", platform="linux/amd64", kind=QUANTISE)


@pytest.fixture(scope="module")
def outcome(disk: None) -> dict[str, Any]:
    """What building and publishing it gave."""
    line = [sys.executable, "build.py", *OPTIONS, "--registry", REGISTRY, "--push", "--json"]
    done = shell(*line, "--repo", "fp4forge/e2e-quantise", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    shell("docker", "pull", "--quiet", found["image"])
    return found


@pytest.fixture(scope="module")
def quantiser(request: pytest.FixtureRequest) -> str:
    """An image to spoil."""
    return os.environ.get("QUANTISE_IMAGE") or request.getfixturevalue("outcome")["image"]


def test_it_is_published_like_an_image_that_serves(outcome: dict[str, Any]) -> None:
    plan = outcome["plan"]
    assert outcome["tags"] == plan["tags"] and "@sha256:" in outcome["image"]
    assert {step["name"] for step in outcome["steps"]} >= {"build", "push", "sbom", "publish"}
    if not outcome["verified_before"]:
        assert {check["outcome"] for check in outcome["checks"]} == {"passed"}
        assert outcome["unpacked_bytes"] > 1e9
    documents = shell(sys.executable, "build.py", "sbom", outcome["image"], "--json").stdout
    assert "nvidia-modelopt" in documents and '"vllm"' not in documents


def of(module: str) -> str:
    """A shell's word for a module's folder."""
    find = f"import importlib.util as u; print(*u.find_spec('{module}').submodule_search_locations)"
    return f'"$(python3 -c "{find}")"'


SABOTAGES = {
    "a package that ModelOpt's export needs is gone": (
        f"RUN rm -r {of('accelerate')}",
        "test_quantiser_imports",
    ),
    "another ModelOpt": (
        f"RUN sed -i 's/^Version: .*/Version: 0.1/' {of('modelopt')}/../nvidia_modelopt-*/METADATA",
        "test_quantiser_versions",
    ),
    "a module changed after it was compiled": (
        f"RUN echo >> {of('modelopt')}/__init__.py",
        "test_quantiser_bytecode",
    ),
    "an export that writes nothing": (
        f"RUN echo 'export_hf_checkpoint = lambda *_, **__: None' >> {of('modelopt')}"
        "/torch/export/__init__.py",
        "test_quantiser_quantises",
    ),
    "another entrypoint": ('ENTRYPOINT ["sh"]', "test_quantiser_entrypoint"),
    "it runs as root": ("", "test_user"),
}


@pytest.fixture
def spoilt(quantiser: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The image with one thin layer; removed afterwards."""
    lines, _ = SABOTAGES[request.param]
    user = "2000:2000" if lines else "root"
    (tmp_path / "Dockerfile").write_text(f"FROM {quantiser}\nUSER root\n{lines}\nUSER {user}\n")
    name = f"fp4forge-e2e/quantise:spoilt-{os.getpid()}"
    shell("docker", "build", "--quiet", "--tag", name, str(tmp_path))
    yield name
    shell("docker", "rmi", name, check=False)


@pytest.mark.parametrize(
    ("spoilt", "caught_by"),
    [(name, test) for name, (_, test) in SABOTAGES.items()],
    indirect=["spoilt"],
    ids=SABOTAGES,
)
def test_a_spoilt_image_is_caught(spoilt: str, caught_by: str) -> None:
    plan = pipeline.prepare(REQUEST).plan.as_json()
    (check,) = runner.run(spoilt, plan, lambda _: None, only=caught_by)
    assert (check.test, check.outcome) == (caught_by, "failed"), check
