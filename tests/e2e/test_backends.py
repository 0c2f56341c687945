"""What ``build.py backends`` predicts, held against real servers' logs and the kept answers."""

from __future__ import annotations

import json
import sys

import pytest

from fp4forge.backends import ask, model
from fp4forge.core.platform import host_platform
from fp4forge.doctor import diagnosis
from fp4forge.models import backend_answers
from fp4forge.models.backend_answers import BackendAnswer
from tests.e2e.conftest import ROOT, WHEEL, shell

# Of the vLLM that the image has.
FOLDERS = (ROOT / "tests/unit/data/logs").glob(f"vllm-{WHEEL[1]}-*")
LOGS = {path.stem: path for folder in FOLDERS for path in folder.glob("*.log")}
# Servers on Hopper that came as far as their kernels: Gemma-4 in NVFP4, with an FP8 cache.
FACTS = {
    name: facts
    for name, path in LOGS.items()
    if (facts := diagnosis.read_log(path.read_text())).linear and facts.moe and facts.attention
}
GPUS = {"hopper": (9, 0), "sm121": (12, 1)}
FAMILIES = ("gemma4", "qwen3")


@pytest.fixture(scope="module")
def answers(image: str) -> dict[tuple[str, str], BackendAnswer]:
    models = tuple(model.of_family(name) for name in FAMILIES)
    found = ask.ask(image, host_platform(), GPUS, models, print)
    return {(answer.gpu, answer.family): answer for answer in found}


def selected(answer: BackendAnswer) -> tuple[set[str], set[str], set[str]]:
    """The linear, expert and attention backends with the image's variables, and an FP8 cache."""
    linear, experts, attention = (
        {one.image for one in answer.of(kind) if one.cache in ("", "fp8_e4m3")}
        for kind in backend_answers.KINDS
    )
    return linear, experts, attention


@pytest.mark.parametrize("name", FACTS)
def test_what_a_server_on_hopper_logged_was_predicted(
    name: str, answers: dict[tuple[str, str], BackendAnswer]
) -> None:
    facts = FACTS[name]
    logged = ({facts.linear}, {facts.moe}, {facts.attention})
    assert selected(answers["hopper", "gemma4"]) == logged
    assert selected(answers["sm121", "gemma4"]) != logged


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_of_a_model_is_asked_for(
    name: str, answers: dict[tuple[str, str], BackendAnswer]
) -> None:
    answer = answers["sm121", name]
    assert answer.problems == ()
    assert all(answer.of(kind) for kind in backend_answers.KINDS)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_kept_answers_are_those_of_the_image(
    name: str, answers: dict[tuple[str, str], BackendAnswer]
) -> None:
    asked = answers["sm121", name]
    assert backend_answers.find(asked.vllm, "sm121", name) == asked


def test_an_image_without_vllm_says_so() -> None:
    image = shell("docker", "images", "-q", "fp4forge.local/bootstrap").stdout.split()[0]
    arguments = ("--gpu", "sm121", "--family", "gemma4", "--image", image, "--json")
    done = shell(sys.executable, "build.py", "backends", *arguments, check=False)
    told = json.loads(done.stdout)
    assert done.returncode != 0 and "cannot be asked" in told["message"]
