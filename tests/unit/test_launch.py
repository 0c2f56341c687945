"""Starting servers: the GPU that is here, its memory, the phases of a start, wrong wishes."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fp4forge.cli import servers
from fp4forge.core.errors import EngineError, FitError, ForgeError, ServingError, UsageError
from fp4forge.doctor.smi import SmiGpu
from fp4forge.kernels.gpus import PRODUCTS
from fp4forge.launch import deployment, image, phases, this_machine, upgrading
from tests.unit.test_cli import run

LOG = Path(__file__).parent / "data/logs/vllm-0.20.2-h200/compiled.log"


@pytest.mark.parametrize(
    ("capability", "memory", "product"),
    [
        ("12.1", 0, "gb10"),
        ("12.0", 32607, "rtx5090"),
        ("12.0", 97887, "rtxpro6000"),
        ("12.0", 24463, "rtx5090"),  # a smaller one of that chip
        ("10.0", 183359, "b200"),
        ("9.0", 81559, None),
        ("", 0, None),
    ],
)
def test_a_gpu_is_the_product_with_its_capability_and_memory(
    capability: str, memory: int, product: str | None
) -> None:
    found = this_machine.match_product(SmiGpu("NVIDIA", capability, "580.95.05", memory))
    assert (found.name if found else None) == product


def nvidia_smi(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name that prints a text."""
    (folder / "printed").write_text(text)
    program = folder / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nprint(open({str(folder / 'printed')!r}).read())\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


HEAD = "name, compute_cap, driver_version, memory.total [MiB]\n"


def test_the_gpus_of_this_machine_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition, 12.0, 580.95.05, 97887 MiB\n"
    nvidia_smi(tmp_path, HEAD + 2 * row, monkeypatch)
    assert this_machine.product(None) == (PRODUCTS["rtxpro6000"], 2)


@pytest.mark.parametrize(
    "printed",
    [HEAD + "NVIDIA H100 80GB HBM3, 9.0, 550.54.15, 81559 MiB", "No devices were found", ""],
)
def test_a_machine_without_blackwell_is_refused(
    printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, printed, monkeypatch)
    with pytest.raises(UsageError, match="no GPU here is one") as raised:
        this_machine.product(None)
    assert "--gpu PRODUCT" in raised.value.remedy
    assert ("H100" in raised.value.message) == ("H100" in printed)


@pytest.mark.parametrize(
    ("available", "cached", "share", "said"),
    [(119, 2, 0.85, "page cache"), (60, 40, 0.45, "0.45 instead of 0.85")],
)
def test_unified_memory_gives_what_is_free(
    available: int,
    cached: int,
    share: float,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (
        f"MemTotal: 128000000 kB\nMemAvailable: {available << 20} kB\nCached: {cached << 20} kB\n"
    )
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(this_machine, "_MEMINFO", tmp_path / "meminfo")
    found, why = this_machine.share(PRODUCTS["gb10"], 0.85, 16 << 30)
    assert found == pytest.approx(share, abs=0.001) and said in why
    with pytest.raises(FitError, match="does not hold the server"):
        this_machine.share(PRODUCTS["gb10"], 0.85, 118 << 30)
    assert this_machine.share(PRODUCTS["rtx5090"], 0.85, 16 << 30) == (0.85, "")


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="is not available: Address already in use"):
            this_machine.check_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="is not available"):
        this_machine.check_port("192.0.2.1", 8000)  # an address of documentation, RFC 5737


def test_phases_of_a_real_start() -> None:
    """The log of a Hopper: each phase once and in order, the weights' rate, the time of before."""
    tracker = phases.StartTracker(weights=2_000_000_000, before={"container": 1.0, "weights": 30.0})
    said = []
    for second, line in enumerate(LOG.read_text().splitlines()):
        if tracker.feed(line, float(second)):
            said.append(tracker.text(float(second)))
    tracker.ready(1000.0)
    order = ["container", *(name for name, _ in phases._BEGINS)]
    found = list(tracker.seconds)
    assert found == [name for name in order if name in found] and len(found) >= 5
    assert tracker.rate.endswith("GB/s") and tracker.rate in tracker.summary()
    assert any("of 30 s last time" in text for text in said)
    assert sum(tracker.seconds.values()) == pytest.approx(1000)


def test_an_image_of_the_gpu_comes_before_one_of_a_set() -> None:
    assert image.targets("sm121", None) == ["sm121", "blackwell"]
    assert image.targets("sm110", None) == ["sm110"]
    assert image.targets("sm121", "blackwell") == ["blackwell"]


@pytest.mark.parametrize("model", ["nowhere", "../nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_model_that_is_nowhere(model: str) -> None:
    done = run("serve", "up", model, "--gpu", "gb10")
    assert done.returncode == 2
    assert "neither a folder nor a model on the hub" in done.stderr


def test_a_dry_run_downloads_nothing(tmp_path: Path) -> None:
    line = ("serve", "up", "nvidia/Some-NVFP4", "--gpu", "gb10", "--models", str(tmp_path))
    done = run(*line, "--dry-run")
    assert done.returncode == 2 and "checkpoint fetch nvidia/Some-NVFP4" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> deployment.Deployment:
    """A server's record in a state of its own."""
    monkeypatch.setattr(deployment, "FOLDER", tmp_path)
    made = deployment.Deployment(
        name="vllm-m",
        model="/m",
        served_name="m",
        image="r/i@sha256:" + "a" * 64,
        release="1",
        url="http://127.0.0.1:1",
    )
    made.save()
    return made


def test_a_record_is_found_again(kept: deployment.Deployment) -> None:
    assert deployment.load(None) == deployment.load("vllm-m") == kept
    with pytest.raises(UsageError, match=r"no server 'other'\. Here: vllm-m"):
        deployment.load("other")
    (kept.folder / "deployment.json").write_text('{"name": 1}')
    with pytest.raises(ServingError, match=r"deployment\.json"):
        deployment.load("vllm-m")
    kept.remove()
    with pytest.raises(UsageError, match="which server"):
        deployment.load(None)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("unix:///tmp/none.sock", "there is no such socket"),
        ("tcp://127.0.0.1:9", "nothing listens there"),
    ],
)
@pytest.mark.parametrize("command", [servers.status, servers.stop])
def test_without_an_engine(
    kept: deployment.Deployment,
    command: click.Command,
    host: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (kept.folder / "compose.yaml").write_text("services: {vllm: {image: x}}")
    monkeypatch.setenv("DOCKER_HOST", host)
    error = CliRunner().invoke(command, []).exception
    assert isinstance(error, EngineError)
    assert error.message.startswith(f"no Docker engine answers at {host}: {why}")
    assert not re.search(r"Connection|Errno|daemon|Traceback", error.message)


def test_another_image_in_the_file_and_back(kept: deployment.Deployment) -> None:
    file = kept.folder / "compose.yaml"
    file.write_text(f"services: {{vllm: {{image: {kept.image}}}}}")
    new = deployment.Deployment(
        **{n: getattr(kept, n) for n in kept.__struct_fields__} | {"image": "x"}
    )
    upgrading.switch(kept, new)
    assert deployment.load(None).image == "x" and "image: x}" in file.read_text()
    upgrading.switch(new, kept)
    assert kept.image in file.read_text()
    file.write_text("edited by hand")
    with pytest.raises(ForgeError, match="does not name"):
        upgrading.switch(kept, new)


def test_a_dead_server_has_nothing_in_flight(kept: deployment.Deployment) -> None:
    assert upgrading.drain(kept, 1, lambda line: None) == "it does not answer"
