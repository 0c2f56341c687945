"""Known faults as data: each has a positive and a negative from its own example, and by version."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace as replace_struct
from packaging.version import Version

from fp4forge.cli.release import faults as command
from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import FAULTS as FAULTS_FILE
from fp4forge.doctor import facts, fault_checks
from fp4forge.doctor.evidence import Evidence, SmiGpu
from fp4forge.maintain import rechecks
from fp4forge.models import family, faults
from fp4forge.models.faults import KnownFault

FAULTS = {fault.id: fault for fault in faults.table().faults}
PREFIX = "(EngineCore pid=7) ERROR 11-24 04:49:19 [core.py:9] "
READY = "(APIServer pid=1) INFO:     Application startup complete.\n"
ARCHITECTURES = {
    "gemma4": "Gemma4ForConditionalGeneration",
    "qwen3_next": "Qwen3NextForCausalLM",
}


def case(fault: KnownFault, lines: tuple[str, ...], capability: str = "") -> Evidence:
    """Evidence with a log of these lines, on the fault's GPU and of its family."""
    wanted = capability or "".join(fault.gpus[:1]).replace("x", "0")
    driver = "580.142"
    gpus = [SmiGpu("a GPU", wanted, driver)] if wanted else []
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


def test_every_source_names_where_it_is_from() -> None:
    """A tracker's thread, a file and its version, or a run of our own."""
    kinds = (
        r"[\w.-]+/[\w.-]+#\d+|\w+/[\w./-]+\.\w{1,4}\b|\brun on\b|^[\w.-]+,? \w+|errno\(3\)|\(2\)"
    )
    for fault in FAULTS.values():
        assert re.search(kinds, fault.source), f"{fault.id}: {fault.source}"


def faulty(source: str, **more: str) -> KnownFault:
    return replace_struct(
        FAULTS["ptxas"], id="x", component="vllm", source=source, **{"fixed_in": "", **more}
    )


@pytest.mark.parametrize(
    ("source", "issues"),
    [
        (
            "vllm-project/vllm#35031; PR #45739",
            ["vllm-project/vllm#35031", "vllm-project/vllm#45739"],
        ),
        ("NVIDIA/nccl#2079; #1151", ["NVIDIA/nccl#2079", "NVIDIA/nccl#1151"]),
        ("vllm/config/cache.py of 0.19.1", []),
    ],
)
def test_issues_of_a_source(source: str, issues: list[str]) -> None:
    found = [f"{owner}#{number}" for owner, number in rechecks.issues(faulty(source))]
    assert found == issues


@pytest.mark.parametrize(
    ("fault", "notes", "why"),
    [
        (faulty("vllm-project/vllm#35031"), "* Fix the drafter (#35031)", "mention vllm-project"),
        (faulty("NVIDIA/nccl#2079"), "* Fix the drafter (#2079)", ""),
        (
            faulty("NVIDIA/nccl#2079"),
            "see https://github.com/NVIDIA/nccl/issues/2079.",
            "mention NVIDIA/nccl#2079",
        ),
        (faulty("vllm-project/vllm#35031"), "* Fix (#350310)", ""),
        (faulty("vllm-project/vllm#35031", fixed_in="0.25.0"), "* Fix (#35031)", ""),
        (faulty("vllm/config/cache.py of 0.1.2 and 0.1.3"), "", "read in 0.1.3"),
        (faulty("vllm/config/cache.py of 999.0.0"), "", ""),
        (faulty("a thread somewhere", fixed_in="999.0"), "", "fixed in 999.0"),
    ],
)
def test_what_is_to_be_looked_at_again(
    fault: KnownFault, notes: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "table", lambda: faults.FaultTable(faults=(fault,)))
    found = rechecks.due(notes)
    assert (why in found[0].why) if why else not found


def test_the_command_reads_notes(tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("* Load BF16 drafters (#35031)\n")
    done = CliRunner().invoke(command, ["--notes", str(notes), "--json"])
    assert "mtp-shape" in [one["id"] for one in json.loads(done.stdout) if "mention" in one["why"]]
