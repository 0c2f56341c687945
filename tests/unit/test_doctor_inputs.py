"""What people hand over: nvidia-smi, compose, podman, kubectl, journald, bundles, live servers."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fp4forge.cli.serve import doctor as command
from fp4forge.core.errors import ServingError, UnclearError, UsageError
from fp4forge.doctor import command_line as commands
from fp4forge.doctor import (
    composed,
    described,
    evidence_bundle,
    examine,
    facts,
    gather,
    inspected,
    kubernetes,
    logs,
    smi,
    variables,
)
from fp4forge.doctor.evidence import Evidence, SmiGpu
from fp4forge.models import family
from fp4forge.oci import acquire

TABLE = """
| NVIDIA-SMI 580.142             Driver Version: 580.142     CUDA Version: 13.0     |
|=========================================+========================+======================|
|   0  NVIDIA GB10                    On  |   0000000F:01:00.0 Off |                  N/A |
| N/A   38C    P8              4W /  N/A  |     Not Supported      |      0%      Default |
|   1  NVIDIA RTX PRO 6000 Blac...    Off |   00000000:02:00.0 Off |                    0 |
| 30%   38C    P8             21W /  600W |     412MiB /  97887MiB |      0%      Default |
|   2  Tesla T4                       Off |   00000000:03:00.0 Off |                    0 |
| N/A   38C    P8              9W /   70W |       0MiB /  15360MiB |      0%      Default |
"""


def test_nvidia_smi_as_printed() -> None:
    assert smi.gpus(TABLE) == [
        SmiGpu("NVIDIA GB10", "12.1", "580.142", 0),
        SmiGpu("NVIDIA RTX PRO 6000 Blac...", "12.0", "580.142", 97887),
        SmiGpu("Tesla T4", "7.5", "580.142", 15360),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "name, driver_version\nNVIDIA B200, 580.95.05\n",
            [SmiGpu("NVIDIA B200", "10.0", "580.95.05")],
        ),
        (
            "index, name, driver_version\n0, NVIDIA H200, 575.1\n",
            [SmiGpu("NVIDIA H200", "9.0", "575.1")],
        ),
        (
            "NVIDIA GB300, 10.3, 580.95.05, 284208 MiB",
            [SmiGpu("NVIDIA GB300", "10.3", "580.95.05", 284208)],
        ),
        ("<nvidia_smi_log><driver_version>580.1</driver_version><gpu id='0'><product_name>X", []),
        ("Unable to determine the device handle", []),
        ("", []),
    ],
)
def test_nvidia_smi_in_other_forms(text: str, wanted: list[SmiGpu]) -> None:
    assert smi.gpus(text) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("NVIDIA GeForce RTX 5090", "12.0"),
        ("NVIDIA RTX PRO 4500 Blackwell", "12.0"),
        ("NVIDIA RTX 6000 Ada Generation", "8.9"),
        ("NVIDIA A100-SXM4-80GB", "8.0"),
        ("NVIDIA Thor", "11.0"),
        ("NVIDIA GB200", "10.0"),
        ("NVIDIA GH200 480GB", "9.0"),
        ("A card of tomorrow", ""),
    ],
)
def test_capabilities_by_name(name: str, wanted: str) -> None:
    assert smi.capability(name) == wanted


KNOWN = {"A": "a", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$A-${A}", "a-a"),
        ("$$A ${A:-x}", "$A a"),
        ("${NONE:-x}${NONE-y}", "xy"),
        ("${EMPTY:-x}|${EMPTY-y}", "x|"),
        ("${A:+set}|${NONE:+set}", "set|"),
        ("${NONE:-${A}}", "a"),
        ("${NONE:-${ALSO:-deep}}", "deep"),
        ("${A:?must}", "a"),
        ("5$ ${ {", "5$ ${ {"),
    ],
)
def test_variables_of_compose(text: str, wanted: str) -> None:
    assert variables.text(text, KNOWN) == wanted


@pytest.mark.parametrize("text", ["$NONE", "${NONE}", "${NONE:?must}", "${EMPTY:?must}", "${1}"])
def test_a_variable_that_nothing_sets_is_unknown(text: str) -> None:
    assert variables.text(text, KNOWN) == variables.UNKNOWN


def test_env_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("# no\nexport A='a b'\nB=c # why\nC=\"d\"\nnot a pair\n")
    assert variables.pairs(tmp_path / ".env") == {"A": "a b", "B": "c", "C": "d"}
    monkeypatch.setenv("A", "mine")
    assert variables.environment(tmp_path)["A"] == "mine"


def compose(tmp_path: Path, service: str) -> Evidence:
    file = tmp_path / "compose.yaml"
    file.write_text(f"services:\n  v:\n    image: vllm/vllm-openai:v0.20.2\n    {service}\n")
    return composed.from_compose(file)


@pytest.mark.parametrize(
    ("service", "wanted"),
    [
        ("gpus: all", (True, None)),
        ("gpus: 2", (True, 2)),
        ("gpus: [{driver: nvidia, count: 1}]", (True, 1)),
        ("runtime: nvidia", (True, None)),
        ("{runtime: nvidia, environment: {NVIDIA_VISIBLE_DEVICES: '0,1'}}", (True, 2)),
        ("devices: ['nvidia.com/gpu=all']", (True, None)),
        ("devices: ['/dev/nvidia0:/dev/nvidia0']", (True, None)),
        (
            "deploy: {resources: {reservations: {devices: [{capabilities: [gpu], count: all}]}}}",
            (True, None),
        ),
        (
            "deploy: {resources: {reservations: {devices:"
            " [{driver: nvidia, device_ids: ['0', '3'], capabilities: [gpu]}]}}}",
            (True, 2),
        ),
        (
            "deploy: {resources: {reservations: {devices: [{driver: cdi, capabilities: [gpu],"
            " device_ids: [nvidia.com/gpu=all]}]}}}",
            (True, None),
        ),
        ("ipc: host", (False, None)),
        ("deploy: {resources: {reservations: {cpus: '1'}}}", (False, None)),
    ],
)
def test_every_way_to_ask_for_a_gpu(
    service: str, wanted: tuple[bool, int | None], tmp_path: Path
) -> None:
    if service.startswith("{"):
        service = service[1:-1].replace(", environment", "\n    environment")
    found = compose(tmp_path, service)
    assert (found.gpu_requested, found.gpu_count) == wanted


@pytest.mark.parametrize(
    "written",
    [
        "command: org/m --tensor_parallel_size=2",
        "command: [org/m, -tp, 2]",
        "command: ['--model', 'org/m', '--tensor-parallel-size', '2']",
        "entrypoint: [vllm, serve]\n    command: org/m --tensor-parallel-size 2",
        "entrypoint: bash -lc 'exec vllm serve org/m --tensor-parallel-size 2'",
        "entrypoint: [/bin/sh, -c]\n    command: ['vllm serve org/m -tp=2 --port 1']",
    ],
)
def test_commands_in_every_form(written: str, tmp_path: Path) -> None:
    found = compose(tmp_path, written)
    assert found.flag("--tensor-parallel-size") == "2"
    assert facts.model(found) == "org/m"
    assert found.serves


def test_the_last_flag_counts_and_no_takes_it_back() -> None:
    words = commands.words(["--port", "1", "--port=2", "--enable_x", "--no-enable-x"])
    assert commands.flag(words, "--port") == "2"
    assert commands.flag(words, "--enable-x") is None


def test_env_file_of_a_service(tmp_path: Path) -> None:
    (tmp_path / "a.env").write_text("A=1\nB=2\n")
    found = compose(tmp_path, "env_file: [a.env, {path: none.env}]\n    environment: [B=3, C]")
    assert found.environment == {"A": "1", "B": "3"}


def test_podman_says_it_in_its_own_way() -> None:
    found = inspected.from_inspect(
        {
            "ImageName": "localhost/vllm/vllm-openai:v0.20.2",
            "Config": {"Image": "sha", "Entrypoint": "vllm serve", "Cmd": ["org/m"]},
            "HostConfig": {"Devices": [{"PathOnHost": "/dev/nvidia0"}]},
            "State": {"Status": "running", "Healthcheck": {"Status": "unhealthy"}},
        }
    )
    assert (found.image, found.gpu_requested) == ("localhost/vllm/vllm-openai:v0.20.2", True)
    assert (found.health, facts.model(found)) == ("unhealthy", "org/m")
    assert found.version == "0.20.2"


POD = {
    "kind": "Pod",
    "spec": {
        "containers": [
            {"name": "proxy", "image": "nginx"},
            {
                "name": "v",
                "image": "vllm/vllm-openai:v0.20.2",
                "args": ["--model=org/m"],
                "env": [{"name": "A", "value": "b"}, {"name": "C", "valueFrom": {}}],
                "resources": {"limits": {"nvidia.com/gpu": "2"}},
            },
        ]
    },
    "status": {
        "containerStatuses": [
            {
                "name": "v",
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
            }
        ]
    },
}


def test_kubectl_get_pod(tmp_path: Path) -> None:
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(POD))
    found = described.read_inspect(file)
    assert (found.gpu_count, found.status, found.exit_code) == (2, "exited", 137)
    assert found.out_of_memory
    assert found.environment == {"A": "b"}
    assert kubernetes.from_object({"kind": "Pod"}).image == ""


LINE = "(EngineCore pid=7) INFO 11-24 04:49:19 [core.py:9] Using A for NVFP4 GEMM"


@pytest.mark.parametrize(
    "raw",
    [
        LINE,
        f"\x1b[36m{LINE}\x1b[0m\r",
        f"2026-11-24T04:49:20.123456789Z {LINE}",
        f"2026-11-24T04:49:20.1+01:00 stdout F {LINE}",
        f"[pod/a-b/c] 2026-11-24T04:49:20Z {LINE}",
        f"Nov 24 04:49:20 host docker[12]: {LINE}",
        f"2026-11-24T04:49:20+0100 host vllm[12]: {LINE}",
        json.dumps({"log": LINE + "\n", "stream": "stdout", "time": "x"}),
        json.dumps({"MESSAGE": LINE, "_PID": "1"}),
    ],
)
def test_prefixes_of_logs(raw: str) -> None:
    line = logs.parse(raw).lines[0]
    assert (line.text, line.level, line.place) == ("Using A for NVFP4 GEMM", "INFO", "core.py:9")
    assert line.seconds >= 0


def test_a_table_of_tensors_keeps_its_first_column() -> None:
    text = "model.a | UNEXPECTED | x\nmodel.b | UNEXPECTED | y\nmodel.c | UNEXPECTED | z"
    assert logs.parse(text).text == text


def test_the_first_exception_is_the_root() -> None:
    text = (
        "Traceback (most recent call last):\n  File \"/a/b.py\", line 3, in f\nKeyError: 'x'\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    found = logs.root(logs.parse(text))
    assert found
    assert (found.text, found.where) == ("KeyError: 'x'", "/a/b.py, line 3, in f")


def test_families_by_class_and_name() -> None:
    assert family.by_architecture("Gemma4ForConditionalGeneration") == "gemma4"
    assert family.by_architecture("Qwen3MoeForCausalLM") == "qwen3"
    assert family.by_architecture("Gemma3ForConditionalGeneration") == ""
    assert family.by_name("/models/gemma-4-26b-nvfp4") == "gemma4"
    assert family.by_name("/models/gemma-3-27b") == ""
    for name, known in family.table().items():
        for title in filter(None, [known.names]):
            assert title, name


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in arguments])


def test_exit_codes_and_what_each_file_gave(tmp_path: Path) -> None:
    good, cut, bad = (tmp_path / name for name in ("good.log", "cut.log", "bad.log"))
    good.write_text(LINE + "\nINFO:     Application startup complete.\n")
    cut.write_text(LINE + "\n")
    bad.write_text("torch.OutOfMemoryError: CUDA out of memory.\n")
    done = run("--logs", good)
    assert done.exit_code == 0
    assert "healthy" in done.output
    assert isinstance(run("--logs", cut).exception, UnclearError)
    assert isinstance(run("--logs", bad).exception, ServingError)
    assert run("--logs", cut, "--json").exit_code == UnclearError.exit_code
    empty = tmp_path / "smi.txt"
    empty.write_text("nothing of use\n")
    data = json.loads(run("--logs", good, "--nvidia-smi", empty, "--json").stdout)
    assert data["verdict"]["name"] == "healthy"
    assert [bool(entry["gave"]) for entry in data["examined"]] == [True, False]
    assert "nvidia-smi -q" in data["examined"][1]["form"]
    assert isinstance(run().exception, UsageError)


def test_nothing_known_is_unclear() -> None:
    found = Evidence()
    assert examine.judge(found, examine.examine(found)).name == "unclear"


SECRETS = (
    "hf_abcdefghijklmnopqrstuv",
    "sk-live-123456",
    "192.168.7.9",
    "10.1.2.3",
    "aa:bb:cc:dd:ee:ff",
)


def test_a_bundle_keeps_the_verdict_and_no_secret(tmp_path: Path) -> None:
    token, key, host, client, mac = SECRETS
    log = tmp_path / "server.log"
    log.write_text(
        f"torch.OutOfMemoryError: CUDA out of memory.\nINFO: {client}:5000 - GET\n{token}\n{mac}\n"
        "vLLM API server version 0.20.2\ncuda:0 580.95.05\n"
    )
    inspection = tmp_path / "inspect.json"
    config = {
        "Image": "vllm/vllm-openai:v0.20.2",
        "Env": [f"HF_TOKEN={token}", f"VLLM_API_KEY={key}", f"VLLM_HOST_IP={host}"],
        "Entrypoint": ["vllm", "serve"],
        "Cmd": ["org/m", "--api-key", key, "--master-addr", host],
        "Volumes": [],
    }
    inspection.write_text(json.dumps([{"Config": config, "State": {"Status": "exited"}}]))
    smi_file = tmp_path / "smi.txt"
    smi_file.write_text(TABLE)
    bundle = tmp_path / "report.tar.gz"
    given = ["--logs", log, "--inspect", inspection, "--nvidia-smi", smi_file]
    first = run(*given, "--json", "--bundle", bundle)
    with tarfile.open(bundle) as archive:
        content = b"".join(archive.extractfile(entry).read() for entry in archive)  # type: ignore[union-attr]
    for secret in SECRETS:
        assert secret.encode() not in content
    assert b"580.95.05" in content
    second = run("--json", "--bundle", bundle)
    ids = [
        {f["id"] for f in json.loads(done.stdout)["findings"]} - {"no-gpu"}
        for done in (first, second)
    ]
    assert ids[0] == ids[1]
    assert first.exit_code == second.exit_code == ServingError.exit_code


def test_a_bundle_of_a_container_has_its_images_plan_and_ledger(tmp_path: Path) -> None:
    contents = {
        "plan": {"release": "0.20.2", "packages": {"nvidia-cublas": "13.1.0.3"}},
        "ledger": {"gpus": {"sm121": {"ok": False}, "sm120": {"ok": True}}},
        "patches": {"files": {"vllm/x.py": {"after": "0" * 64}}},
    }
    records = acquire.ImageRecords({name: json.dumps(c).encode() for name, c in contents.items()})
    bundle = tmp_path / "report.tar.gz"
    found = Evidence(
        log="Application startup complete.\n",
        gpus=[SmiGpu("NVIDIA GB10", "12.1", "580.95.05")],
        records=records,
    )
    evidence_bundle.write(bundle, gather.EvidenceSources(), found)
    again = evidence_bundle.read(bundle)
    assert again.records == records
    (given,) = (entry for entry in again.inputs if "records" in entry.name)
    assert given.gave == ("release 0.20.2", "kernels for sm120", "1 patched files")
    assert "kernels" in {finding.id for finding in examine.examine(again)}


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00broken"])
def test_what_is_no_bundle(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.tar.gz"
    file.write_bytes(content)
    with pytest.raises(UsageError):
        evidence_bundle.read(file)


def test_a_compose_file_fills_what_inspect_lacks(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {v: {image: vllm/vllm-openai:v1.2.3}}")
    (tmp_path / "inspect.json").write_text('[{"Config": {"Cmd": ["vllm", "serve", "org/m"]}}]')
    handed = gather.EvidenceSources(
        inspection=tmp_path / "inspect.json", compose_file=tmp_path / "compose.yaml"
    )
    found = gather.evidence(handed)
    assert found.image == "vllm/vllm-openai:v1.2.3"
    assert [entry.name.split()[0] for entry in found.inputs] == ["inspect", "compose"]
