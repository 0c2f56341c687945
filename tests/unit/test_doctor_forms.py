"""The forms in which people hand over the same thing: collectors, kernels, drivers, kubectl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fp4forge.core.errors import ServingError, UsageError
from fp4forge.doctor import described, examine, smi
from fp4forge.doctor.evidence import Evidence, as_log
from tests.unit.test_doctor_inputs import TABLE, run

STARTED = "(EngineCore pid=7) INFO 11-24 04:49:18 [core.py:9] Initializing a V1 LLM engine"
GOOD = "(APIServer pid=1) INFO:     Application startup complete."
FORMS: dict[str, Callable[[str], str]] = {
    "journalctl -o json, coloured": lambda line: json.dumps(
        {"_PID": "1", "MESSAGE": list(f"\x1b[32m{line}\x1b[0m".encode())}
    ),
    "journalctl -o short-precise": lambda line: f"Nov 24 04:49:19.123456 spark vllm[12]: {line}",
    "journalctl -o short-full": lambda line: f"Mon 2025-11-24 04:49:19 UTC spark vllm[1]: {line}",
    "journalctl -o short-unix": lambda line: f"1700000000.123456 spark vllm[123]: {line}",
    "journalctl -o verbose": lambda line: f"    _PID=1\n    MESSAGE={line}",
    "journalctl -o export": lambda line: f"_PID=1\nMESSAGE={line}\n",
    "a collector's JSON": lambda line: json.dumps({"line": line, "timestamp": "2025-11-24"}),
    "stern": lambda line: f"vllm-0 vllm {line}",
    "srun --label": lambda line: f"0: {line}",
    "grep -n": lambda line: f"{line.count('o') + 7}:{line}",
    "a mail's quotation": lambda line: f"> {line}",
    "a terminal's time": lambda line: f"[2025-11-24 04:49:19] {line}",
}


@pytest.mark.parametrize("form", FORMS)
def test_what_a_collector_puts_before_each_line_hides_nothing(form: str) -> None:
    def said(*lines: str) -> tuple[str, str]:
        text = "\n".join(FORMS[form](line) for line in lines)
        found = Evidence(log=as_log(text.encode()))
        judged = examine.judge(found, examine.examine(found))
        return judged.name, judged.quote

    assert said(STARTED, GOOD) == ("healthy", "Application startup complete.")
    assert said(STARTED, "RuntimeError: boom", "more") == ("unclear", "RuntimeError: boom")
    assert said(STARTED, GOOD, "RuntimeError: boom") == ("unclear", "RuntimeError: boom")


@pytest.mark.parametrize(
    ("line", "verdict", "wanted"),
    [
        ("NVRM: Xid (PCI:0000:01:00): 31, pid=12, name=VLLM::EngineCor, MMU Fault", "ill", "xid"),
        ("NVRM: Xid (PCI:0000:01:00): 45, pid=12, name=python3, Ch 0000", "healthy", ""),
        ("Out of memory: Killed process 4321 (VLLM::EngineCor) total-vm:1kB", "ill", "killed"),
        ("oom-kill:constraint=CONSTRAINT_MEMCG,task=pt_main_thread,pid=1", "ill", "killed"),
        ("Out of memory: Killed process 99 (chrome) total-vm:1kB", "healthy", "host-memory"),
        ("NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x62:0x40:2168)", "ill", "gpu-init"),
        ("pcieport 0000:00:01.0: AER: Uncorrected (Fatal) error received", "ill", "pcie-fatal"),
        ("VLLM::EngineCor[77]: segfault at 0 ip 0 sp 0 in libcuda.so", "unclear", ""),
        ("INFO: task VLLM::EngineCor:77 blocked for more than 120 seconds.", "unclear", ""),
        ("NVRM: loading NVIDIA UNIX Open Kernel Module for aarch64  580.95.05", "healthy", ""),
    ],
)
@pytest.mark.parametrize("stamp", ["[ 9.1] ", "[Tue Mar  3 10:00:00 2026] ", ""])
def test_what_the_kernel_wrote(line: str, verdict: str, wanted: str, stamp: str) -> None:
    found = Evidence(log=f"{GOOD}\n{stamp}{line}\n")
    findings = examine.examine(found)
    assert [f.id for f in findings] == [wanted] * bool(wanted)
    assert examine.judge(found, findings).name == verdict


R610 = TABLE.replace(
    "Driver Version: 580.142     CUDA Version", "KMD Version: 610.43     CUDA UMD Version"
)


@pytest.mark.parametrize(
    ("text", "drivers"),
    [
        (R610, ["610.43"] * 3),
        (
            "Driver Version : [Deprecated; will be removed. Use KMD Version instead]\n"
            "KMD Version    : 610.43\nGPU 00000000:01:00.0\n    Product Name : NVIDIA GB10\n",
            ["610.43"],
        ),
        ("name, memory.total [MiB]\r\nNVIDIA GB10, [N/A]\r\n", [""]),
        ("driver_version, memory.total [MiB]\n580.95.05, 97887 MiB\n", []),
    ],
)
def test_nvidia_smi_of_other_releases(text: str, drivers: list[str]) -> None:
    assert [gpu.driver for gpu in smi.gpus(text)] == drivers


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "module"),
        ("Failed to initialize NVML: Driver/library version mismatch", "updated"),
        ("No devices were found", "sees no GPU"),
        ("Unable to determine the device handle for GPU0: 0000:01:00.0: GPU is lost.", "PCIe"),
    ],
)
def test_nvidia_smi_that_fails(text: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "smi.txt").write_text(text + "\n")
    (tmp_path / "log").write_text(GOOD + "\n")
    done = run("--nvidia-smi", tmp_path / "smi.txt", "--logs", tmp_path / "log", "--json")
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["id"] == "nvidia-smi" and cause in finding["cause"]
    assert done.exit_code == ServingError.exit_code


VLLM = {"Image": "vllm/vllm-openai:v0.20.2", "Cmd": ["--model", "m"]}
POD = {
    "kind": "Pod",
    "spec": {"containers": [{"name": "v", "image": VLLM["Image"], "args": VLLM["Cmd"]}]},
}
OTHER = {"kind": "Pod", "spec": {"containers": [{"name": "w", "image": "nginx"}]}}
WEB = "Name: web\nContainers:\n  web:\n    Image:  nginx\n    Args:\n      --x\n\n\n"
TEMPLATE = """Name:                   vllm
Replicas:               1 desired
Pod Template:
  Labels:  app=vllm
  Containers:
   vllm:
    Image:      vllm/vllm-openai:v0.20.2
    Args:
      --model
      m
    Environment:       <none>
  Volumes:             <none>
Conditions:
  Type           Status  Reason
"""


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + json.dumps([{"Config": VLLM}]).encode(),
        json.dumps([{"Config": VLLM}]).encode("utf-16"),
        "\n".join(json.dumps({"Config": c}) for c in ({"Image": "nginx"}, VLLM)).encode(),
        json.dumps({"kind": "List", "items": [OTHER, POD]}).encode(),
        json.dumps({"kind": "Deployment", "spec": {"template": POD}}).encode(),
        yaml.safe_dump(POD).encode(),
        TEMPLATE.encode(),
        (WEB + TEMPLATE).encode(),
        TEMPLATE.replace("\n", "\r\n").encode(),
    ],
)
def test_descriptions_in_other_forms(content: bytes) -> None:
    found = described.from_text(content, "x")
    assert found.image == VLLM["Image"]
    assert found.command == ["vllm", "serve", "--model", "m"]


def test_an_image_asks_for_nothing() -> None:
    image = [{"RepoTags": [VLLM["Image"]], "Config": {"Entrypoint": ["vllm", "serve"]}}]
    found = described.from_text(json.dumps(image).encode(), "x")
    assert found.gpu_requested is None  # only a container could have asked
    with pytest.raises(UsageError, match="describes no container"):
        described.from_text(b"[]", "x")
