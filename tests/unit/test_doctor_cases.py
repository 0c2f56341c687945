"""Reports that people really wrote, and siblings of them: verdict, cause, and nothing false."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import doctor_cases


@pytest.mark.parametrize("name", doctor_cases.NAMES)
def test_case(name: str, tmp_path: Path) -> None:
    wanted = doctor_cases.expected(name)
    said = doctor_cases.outcome(name, tmp_path)
    assert said.verdict == wanted["verdict"], said.text
    assert set(wanted.get("finds", ())) <= set(said.found), said.text
    for words in wanted.get("says", ()):
        assert re.search(words, said.text), f"{words} is not in: {said.text}"
    for words in wanted.get("never", ()):
        assert not re.search(words, said.text), f"{words} is in: {said.text}"


def test_the_page_is_what_the_cases_give(tmp_path: Path) -> None:
    assert doctor_cases.PAGE.read_text() == doctor_cases.text(tmp_path)


# A remedy that is a change of the input: what is replaced, by what, and the finding that ends.
REMEDIES = {
    "forced-attention-before": (
        "--attention_backend=flashinfer",
        "--enforce-eager",
        "attention-backend",
    ),
    "tp-over-request": ("count: 1", "count: 2", "too-few-gpus"),
    "rank-without-address": (
        '"--node-rank"',
        '"--headless",\n    "--master-addr",\n    "first",\n    "--node-rank"',
        "nodes",
    ),
    "compose-no-gpu": ("ipc: host", "ipc: host\n    gpus: all", "no-gpu"),
    "wrong-quantization": ('"modelopt"', '"compressed-tensors"', "quantization"),
    "no-marlin": (
        '"serve",\n    "/models/g"',
        '"serve",\n    "/models/g",\n    "--moe-backend",\n    "marlin"',
        "moe-backend",
    ),
    "spark-default": (
        "serve /models/model",
        "serve /models/model --gpu-memory-utilization 0.85",
        "unified-headroom",
    ),
    "scale-buffer": ("0.22.1", "0.25.0", "scale-buffer"),
    "smi-table": ("570.124.06", "580.95.05", "driver"),
    "dp-on-one-gpu": ('"-dp",\n    "2"', '"-dp",\n    "1"', "too-few-gpus"),
    "parser-of-another-release": ("cohere_command3", "hermes", "unknown-parser"),
    "underscores": ('"0.98"', '"0.85"', "unified-headroom"),
    "mixed-precision-old": ("'FP8', 'NVFP4'", "'FP8', 'NVFP4', 'MIXED_PRECISION'", "quant-algo"),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_ends_the_finding(name: str, tmp_path: Path) -> None:
    old, new, gone = REMEDIES[name]
    assert any(
        old in path.read_text() for path in (doctor_cases.DATA / name).iterdir() if path.is_file()
    )
    said = doctor_cases.outcome(name, tmp_path, (old, new))
    assert gone not in said.found, said.text
