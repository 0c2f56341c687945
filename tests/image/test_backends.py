"""vLLM in the image selects the backends that the plan predicts: its own code is asked on a CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

FILE = "/opt/fp4forge/backends.json"
# vLLM's import takes longest: the families that have experts, and one without.
FAMILIES = ("gemma4", "qwen3")


@pytest.fixture(scope="session", autouse=True)
def asked(
    request: pytest.FixtureRequest, plan: dict[str, Any], container: Any
) -> Iterator[Future[Any] | None]:
    """The image's answers, while other checks run. None if no test needs them."""
    from fp4forge.core.platform import host_platform

    wanted = any(item.name == "test_backends" for item in request.session.items)
    if not wanted or not plan["backends"] or plan["platform"] != host_platform():
        yield None
        return
    from fp4forge.backends import ask, model
    from fp4forge.kernels.gpus import GPUS

    gpus = {name: GPUS[name].capability for name in plan["backends"]}
    models = tuple(model.of_family(name) for name in FAMILIES)
    image = request.config.getoption("--image")
    # In the container of the checks: it goes with the process that holds it, if that is killed.
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(
            ask.ask_in, container.client, container.id, image, gpus, models, lambda _: None
        )


def test_backends(asked: Future[Any] | None, plan: dict[str, Any]) -> None:
    """vLLM selects the predicted kernel for linear layers, experts and attention on each GPU"""
    if not plan["backends"]:
        pytest.skip(f"vLLM {plan['vllm_version']} has no recorded backends")
    if asked is None:
        pytest.skip(f"vLLM of {plan['platform']} is not asked on another platform")
    found = asked.result()
    assert {answer.gpu for answer in found} == set(plan["backends"])
    for answer in found:
        predicted = plan["backends"][answer.gpu][answer.family]
        selected = answer.selections()
        differ = {k for k in predicted | selected if predicted.get(k) != selected.get(k)}
        lines = [f"{k}: {selected.get(k)}, predicted {predicted.get(k)}" for k in sorted(differ)]
        assert not lines, f"{answer.gpu}, {answer.family}: " + "; ".join(lines[:5])


def test_backends_file(host: Any, plan: dict[str, Any]) -> None:
    """the table of backends in the image is the plan's"""
    wanted = plan["context"].get(f"image/runtime{FILE}")
    if wanted is None:
        pytest.skip(f"vLLM {plan['vllm_version']} has no recorded backends")
    assert host.file(FILE).exists, f"{FILE} is missing"
    found = hashlib.sha256(host.file(FILE).content).hexdigest()
    assert found == wanted, f"{FILE} is not the plan's"


def test_backend_kernels(
    host: Any, plan: dict[str, Any], site: str, over_files: Callable[..., Any]
) -> None:
    """every backend's kernels are ahead of time or compiled at run time, as the plan predicts"""
    from fp4forge.checks import backend_content
    from fp4forge.inputs import release
    from fp4forge.plan import backend_origins

    if not plan["backend_kernels"]:
        pytest.skip(f"vLLM {plan['vllm_version']} has no recorded backends")
    ledger = json.loads(host.file("/opt/fp4forge/ledger.json").content_string)
    files, libraries = over_files("backend_files", site, backend_content.questions())
    content = backend_content.content(ledger, files, libraries)
    made = backend_origins.origins(plan["vllm_version"], tuple(plan["gpus"]), content)
    wanted = {gpu: rows for gpu, rows in made.items() if gpu not in plan["allow_missing"]}
    without = release.load(plan["release"]).groups_of(plan["components_left_out"])
    lost = backend_origins.impossible(plan["vllm_version"], wanted, without)
    assert not lost, "; ".join(lost[:5])
    differ = backend_origins.differences(
        plan["backend_kernels"], backend_origins.as_json(content, made)
    )
    assert not differ, "; ".join(differ[:5])
