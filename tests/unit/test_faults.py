"""Known faults as data: each has a positive and a negative from its own example, and by version."""

from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.version import Version

from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import FAULTS as FAULTS_FILE
from fp4forge.doctor import facts, fault_checks
from fp4forge.doctor.evidence import Evidence, Gpu
from fp4forge.models import family, faults
from fp4forge.models.faults import Fault

FAULTS = {fault.id: fault for fault in faults.table().faults}
PREFIX = "(EngineCore pid=7) ERROR 11-24 04:49:19 [core.py:9] "
READY = "(APIServer pid=1) INFO:     Application startup complete.\n"
ARCHITECTURES = {
    "gemma4": "Gemma4ForConditionalGeneration",
    "qwen3_next": "Qwen3NextForCausalLM",
}


def case(fault: Fault, lines: tuple[str, ...], capability: str = "") -> Evidence:
    """Evidence with a log of these lines, on the fault's GPU and of its family."""
    wanted = capability or "".join(fault.gpus[:1]).replace("x", "0")
    driver = "580.142"
    gpus = [Gpu("a GPU", wanted, driver)] if wanted else []
    named = [f"Resolved architecture: {ARCHITECTURES[name]}" for name in fault.families[:1]]
    return Evidence(log="".join(f"{PREFIX}{line}\n" for line in (*named, *lines)), gpus=gpus)


def known(found: Evidence) -> set[str]:
    return {f.id for f in fault_checks.known(found)}


@pytest.mark.parametrize("name", FAULTS)
def test_its_example_shows_it_and_its_counterexample_does_not(name: str) -> None:
    fault = FAULTS[name]
    assert name in known(case(fault, fault.example))
    assert name not in known(case(fault, fault.counterexample))


@pytest.mark.parametrize("name", [f.id for f in FAULTS.values() if f.gpus])
def test_another_gpu_refutes_it(name: str) -> None:
    fault = FAULTS[name]
    other = next(c for c in ("8.0", "9.0", "10.0", "12.0", "12.1") if not fault.on(c))
    assert name not in known(case(fault, fault.example, other))


@pytest.mark.parametrize("name", [f.id for f in FAULTS.values() if f.families])
def test_an_unknown_family_or_another_one_refutes_it(name: str) -> None:
    fault = FAULTS[name]
    bare = replace(case(fault, ()), log="\n".join(fault.example))
    bare.log = (bare.log or "").replace("Gemma4ForConditionalGeneration", "Qwen3ForCausalLM")
    assert name not in known(bare)


@pytest.mark.parametrize(
    "name", [f.id for f in FAULTS.values() if f.severity == "error" and not f.persists]
)
def test_a_server_that_became_ready_refutes_it(name: str) -> None:
    fault = FAULTS[name]
    found = case(fault, fault.example)
    found.log = (found.log or "") + READY
    assert name not in known(found)


def test_ranges_are_ranges() -> None:
    for fault in FAULTS.values():
        if fault.first_bad and fault.fixed_in:
            assert Version(fault.first_bad) < Version(fault.fixed_in), fault.id
        if fault.fixed_in:
            assert not fault.concerns(fault.fixed_in)
        if fault.first_bad:
            assert fault.concerns(fault.first_bad)


def test_families_and_enough_entries() -> None:
    assert len(FAULTS) >= 60
    for fault in FAULTS.values():
        assert set(fault.families) <= set(family.table()), fault.id


def test_versions_come_from_the_log() -> None:
    log = "flashinfer-python==0.6.8\nvLLM is using nccl==2.28.9\n[pip3] transformers==5.5.4\n"
    found = facts.versions(Evidence(log=log + "vLLM API server version 0.20.2\n"))
    assert found == {
        "flashinfer": "0.6.8",
        "nccl": "2.28.9",
        "transformers": "5.5.4",
        "vllm": "0.20.2",
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("signature: ", "signature: '('", "is not a pattern"),
        ("- id: ", "- id: moe-prefix", "twice"),
    ],
)
def test_a_broken_table_is_one_message(old: str, new: str, said: str) -> None:
    text = FAULTS_FILE.read_text()
    lines = text.splitlines()
    where = [n for n, line in enumerate(lines) if line.strip().startswith(old)][:1]
    for number in where:
        indent = lines[number][: lines[number].index(old)]
        lines[number] = indent + new
    with pytest.raises(ReleaseError, match=said):
        faults.FORMAT.parse("\n".join(lines), "models/faults.yaml")


def test_defaults_and_drivers_by_version() -> None:
    assert faults.default("--gpu-memory-utilization", "0.19.1") == "0.9"
    assert faults.default("--gpu-memory-utilization", "0.20.2") == "0.92"
    assert faults.default("--gpu-memory-utilization", "") == "0.92"
    older, newer = faults.driver("0.19.1"), faults.driver("0.20.2")
    assert older and newer
    assert older.driver < newer.driver
    assert faults.driver("") is None
