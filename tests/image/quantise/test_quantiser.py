"""What an image that quantises must do; the tests beside this folder hold it to the rest."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROOFS = Path(__file__).parents[1] / "proofs"
FOLDER = "/tmp/fp4forge-quantise"
VERSIONS = ("nvidia-modelopt", "torch", "transformers")


def test_quantiser_versions(host: Any, plan: dict[str, Any]) -> None:
    """ModelOpt, torch, CUDA and transformers have the release's versions"""
    code = (
        "import importlib.metadata as m, json;"
        f"print(json.dumps({{n: m.version(n) for n in {VERSIONS}}}))"
    )
    found = json.loads(host.check_output("python3 -c %s", code))
    wanted = {
        "nvidia-modelopt": plan["release"].removeprefix("modelopt-"),
        "torch": plan["torch"],
        "transformers": plan["transformers"],
    }
    wrong = [f"{n} {found[n]}, wanted {wanted[n]}" for n in VERSIONS if found[n] != wanted[n]]
    assert not wrong, "; ".join(wrong)
    nvcc = host.check_output("nvcc --version")
    assert f"release {plan['cuda']}," in nvcc, f"nvcc is not CUDA {plan['cuda']}: {nvcc[-80:]}"


def test_quantiser_imports(host: Any) -> None:
    """ModelOpt's quantization and export, accelerate and transformers import"""
    modules = "modelopt.torch.quantization, modelopt.torch.export, accelerate, transformers"
    done = host.run(f"python3 -c 'import {modules}'")
    assert done.rc == 0, done.stderr.strip().splitlines()[-1]


def test_quantiser_entrypoint(config: dict[str, Any]) -> None:
    """the entrypoint is python3"""
    assert config["Entrypoint"] == ["python3"], f"entrypoint is {config['Entrypoint']}"


def test_quantiser_bytecode(in_image: Callable[..., Any], site: str) -> None:
    """bytecode is compiled with checked hashes"""
    wrong = in_image("bytecode", [f"{site}/modelopt/__init__.py", f"{site}/torch/__init__.py"])
    assert not wrong, f"bytecode missing or stale: {', '.join(wrong)}"


def fetch(container: Any, path: str, to: Path) -> Path:
    """A folder of the container, copied into ``to``."""
    chunks, _ = container.get_archive(path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        archive.extractall(to, filter="data")
    return to / path.rpartition("/")[2]


def test_quantiser_quantises(
    request: pytest.FixtureRequest,
    plan: dict[str, Any],
    host: Any,
    container: Any,
    put_files: Callable[[dict[str, Path]], None],
    tmp_path: Path,
) -> None:
    """`build.py quantise --image` makes a clean NVFP4 checkpoint of a tiny Gemma-4 with experts"""
    from fp4forge.checkpoint import inspect
    from fp4forge.core.console import Console
    from fp4forge.core.platform import host_platform
    from fp4forge.inputs import modelopt
    from fp4forge.oci import engine
    from fp4forge.quantise import job
    from fp4forge.quantise.program import PythonPlace

    if plan["platform"] != host_platform() or not engine.is_here():
        pytest.skip("the model is mounted: the engine is here, and of the image's platform")
    programs = (
        PROOFS / "checkpoint.py",
        PROOFS / "nvfp4.py",
        Path(__file__).parent / "tiny_gemma4.py",
    )
    put_files({f"{FOLDER}/{path.name}": path for path in programs})
    made = host.run(f"python3 {FOLDER}/tiny_gemma4.py /tmp/tiny-gemma4")
    assert made.rc == 0, f"no model was made: {made.stderr.strip()[-300:]}"
    model = fetch(container, "/tmp/tiny-gemma4", tmp_path)
    asked = job.QuantiseRequest(
        model, tmp_path / "nvfp4", "nvfp4", samples=4, length=64, allow_cpu=True
    )
    console = Console()
    wanted = job.plan(asked, modelopt.load(plan["release"]), console)
    place = PythonPlace("python3", request.config.getoption("--image"))
    figures = job.quantise(wanted, place, console)
    assert figures["samples"] == 4
    found = inspect.inspect(asked.output)
    errors = [finding.id for finding in found.findings if finding.severity == inspect.ERROR]
    assert found.servable and not errors, f"{inspect.verdict(found)}: {', '.join(errors)}"
