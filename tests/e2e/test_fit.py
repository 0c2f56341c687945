"""What ``serve fit`` says of a model's cache, held against vLLM's own code in the built image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fp4forge.checkpoint.config import ModelConfig
from fp4forge.models import family
from fp4forge.serve import layer_state
from tests.e2e.conftest import ROOT, shell

PROGRAMS = Path(__file__).parent / "programs"
CONFIGS = {name: one.config for name, one in family.examples().items()}
# FlashMLA's packed FP8 layout, which vLLM chooses on some GPUs, is larger than what Triton keeps.
ABOVE = ("deepseek-v3.2",)


@pytest.fixture(scope="module")
def made(image: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("fit") / "configs.json"
    file.write_text(json.dumps(CONFIGS))
    mounts = {PROGRAMS: "/p", ROOT / "tests/image/proofs": "/proofs", file: "/configs.json"}
    volumes = [f"--volume={source}:{target}:ro" for source, target in mounts.items()]
    flags = ["--rm", "--network=none", "--env=PYTHONPATH=/proofs", "--entrypoint=python3"]
    line = [image, "/p/layers.py", "/configs.json"]
    done = shell("docker", "run", *flags, *volumes, *line)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_a_models_cache_is_vllms_to_the_byte(name: str, made: dict[str, Any]) -> None:
    assert "error" not in made[name], made[name]
    ours = layer_state.layers(msgspec.convert(CONFIGS[name], ModelConfig), Path(name), "fp8_e4m3")
    token = sum(kind.count * kind.token_bytes for kind in ours)
    assert sum(kind.count * kind.state_bytes for kind in ours) == made[name]["fixed"]
    assert token > made[name]["token"] if name in ABOVE else token == made[name]["token"]
