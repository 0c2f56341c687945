"""The machine's resources: read from this one, from descriptions, and judged."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from fp4forge.doctor import composed, examine, gather, host, inspected, live
from fp4forge.doctor.evidence import Evidence, SmiGpu
from fp4forge.doctor.host import GIB, HostResources

SPARK = SmiGpu("NVIDIA GB10", "12.1", "580.95.05")
LIMITED = {"Config": {"Image": "vllm/vllm-openai:v0.20.2", "Cmd": ["--model", "m"]}}


def found(**changes: Any) -> dict[str, str]:
    given: dict[str, Any] = {
        "command": ["vllm", "serve", "m", "--gpu-memory-utilization=0.85"],
        "gpus": [SPARK],
    }
    evidence = Evidence(**given | changes)
    return {f.id: f.severity for f in examine.examine(evidence)}


SPARK_HOST = HostResources(
    memory_total=120 * GIB,
    memory_free=20 * GIB,
    memory_available=115 * GIB,
    cached=90 * GIB,
    swap_total=16 * GIB,
    swap_free=16 * GIB,
)


def test_the_page_cache_of_unified_memory() -> None:
    assert found(host=SPARK_HOST)["page-cache"] == "warning"
    assert "page-cache" not in found(
        host=SPARK_HOST, gpus=[SmiGpu("RTX 5090", "12.0", "580.95.05")]
    )
    log = "INFO:     Application startup complete.\n"
    assert "page-cache" not in found(host=SPARK_HOST, log=log)
    taken = HostResources(**{**vars(SPARK_HOST), "memory_available": 30 * GIB})
    assert "page-cache" not in found(host=taken)  # dropping caches would not help


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"host": HostResources(disks={"/m": 100})}, {"disk": "error"}),
        ({"host": HostResources(disks={"/m": 500 << 20})}, {"disk": "warning"}),
        ({"host": HostResources(disks={"/m": 500 * GIB})}, {}),
        ({"host": HostResources(memory_available=GIB)}, {"host-memory": "warning"}),
        ({"host": HostResources(memory_available=9 * GIB)}, {}),
        ({"host": HostResources(swap_total=16 * GIB, swap_free=2 * GIB)}, {"swap": "warning"}),
        ({"host": HostResources(swap_total=16 * GIB, swap_free=16 * GIB)}, {}),
        ({"memory_limit": 2 * GIB}, {"memory-limit": "warning"}),
        ({"memory_limit": 64 * GIB}, {}),
        ({"open_files": 1024}, {"open-files": "warning"}),
        ({"open_files": 1048576}, {}),
        ({"shm_free": 4096}, {"shm": "error"}),
        ({"shm_free": GIB}, {}),
    ],
)
def test_resources(changes: dict[str, Any], wanted: dict[str, str]) -> None:
    assert found(**changes) == wanted


def test_this_machine_and_this_process(tmp_path: Path) -> None:
    here = host.here()
    assert here.memory_total and here.memory_available
    assert here.memory_available <= here.memory_total
    own = host.limits(os.getpid())
    assert own.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert own.shm_free is not None
    assert host.limits(2**22 + 1) == host.ProcessLimits()  # above the largest number of a process
    assert host.free(str(tmp_path))
    assert host.free("~/x") is host.free("\0") is None


def test_the_disk_of_a_folder_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk below the nearest folder; its own figure changes while others write."""
    usage = shutil.disk_usage(tmp_path)._replace(free=7 * GIB)

    def disk_usage(place: Path) -> Any:
        if place != tmp_path:
            raise FileNotFoundError(place)
        return usage

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert host.free(str(tmp_path / "not/there")) == 7 * GIB


def test_a_cgroup_of_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(host, "_CGROUP", tmp_path / "cgroup")
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text("0::/system.slice/docker-1.scope\n")
    place = tmp_path / "cgroup/system.slice/docker-1.scope"
    place.mkdir(parents=True)
    (place / "memory.max").write_text("4294967296\n")
    assert host.limits(7).memory == 4 * GIB
    (place / "memory.max").write_text("max\n")
    assert host.limits(7).memory is None


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({"Memory": 2 * GIB, "Ulimits": [{"Name": "nofile", "Soft": 1024, "Hard": 2}]}, True),
        ({"Memory": 2 * GIB, "Ulimits": [{"Name": "RLIMIT_NOFILE", "Soft": 1024}]}, True),
        ({"Memory": 0, "Ulimits": None}, False),
        ({"Ulimits": [{"Name": "memlock", "Soft": -1}]}, False),
    ],
)
def test_limits_of_an_inspection(limits: dict[str, Any], wanted: bool) -> None:
    seen = inspected.from_inspect([{**LIMITED, "HostConfig": limits}])
    assert (seen.memory_limit, seen.open_files) == ((2 * GIB, 1024) if wanted else (None, None))


@pytest.mark.parametrize(
    ("service", "memory", "files"),
    [
        ("mem_limit: 2g, ulimits: {nofile: 1024}", 2 * GIB, 1024),
        ("ulimits: {nofile: {soft: 512, hard: 4096}}", None, 512),
        ("deploy: {resources: {limits: {memory: 512M}}}", 512 << 20, None),
        ("deploy: {resources: {limits: {memory: [1]}}}, ulimits: {memlock: -1}", None, None),
    ],
)
def test_limits_of_a_compose_file(
    tmp_path: Path, service: str, memory: int | None, files: int | None
) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(f"services: {{vllm: {{image: vllm, {service}}}}}")
    seen = composed.from_compose(file)
    assert (seen.memory_limit, seen.open_files) == (memory, files)


def test_a_full_disk_under_a_compose_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text("services: {vllm: {image: vllm, volumes: ['./models:/models', 'cache:/c']}}")
    monkeypatch.setattr(host, "_disk_free", lambda _: 0)
    seen = gather.evidence(gather.EvidenceSources(compose_file=file))
    assert seen.host.disks == {str(tmp_path / "models"): 0}
    assert seen.host.memory_total is None  # whoever starts it may have another machine
    assert "disk" in {f.id for f in examine.examine(seen)}


def test_only_a_server_of_this_machine_has_its_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cards", lambda: [SmiGpu("a laptop's", "8.6", "550.1")])
    near = gather.evidence(gather.EvidenceSources(url="http://127.0.0.1:9"))
    assert near.gpus and near.host.memory_total
    monkeypatch.setattr(live, "first", lambda *_: None)
    far = gather.evidence(gather.EvidenceSources(url="http://192.0.2.1:8000"))
    assert not far.gpus and far.host == HostResources()


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost:8000", True),
        ("http://127.0.0.2:8000/x", True),
        ("http://[::1]:8000", True),
        ("http://127.0.0.1.example.com", False),
        ("https://example.com", False),
        ("http://[::1", False),
        (json.dumps({}), False),
        ("", False),
    ],
)
def test_addresses_of_this_machine(url: str, here: bool) -> None:
    assert host.is_url(url) is here
