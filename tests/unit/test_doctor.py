"""The doctor: the card's failure modes, its gibberish checklist, and more; and silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fp4forge.core.errors import ServingError, UsageError
from fp4forge.doctor import described, diagnosis, evidence, smi
from fp4forge.doctor import examine as doctor
from fp4forge.doctor.evidence import Evidence, Mount, SmiGpu
from fp4forge.doctor.host import HostResources
from fp4forge.doctor.live import LiveServer
from fp4forge.oci.acquire import ImageRecords
from fp4forge.serve import manifest, settings
from tests.checkpoints import TINY, gemma4, write

LOGS = Path(__file__).parent / "data/logs"
SITE = "/usr/local/lib/python3.13/dist-packages/vllm"
LABELS = {
    "io.fp4forge.variant": "awq",
    "io.fp4forge.release": "0.20.2",
    "org.opencontainers.image.version": "0.20.2",
}
SPARK = SmiGpu("NVIDIA GB10", "12.1", "580.95.05")


def line(text: str, level: str = "INFO", place: str = "nvfp4.py:209") -> str:
    """A line as vLLM's logger writes it."""
    return f"(EngineCore pid=1728) {level} 11-24 04:49:19 [{place}] {text}\n"


GOOD_LOG = (
    line("Using FlashInferCutlassNvFp4LinearKernel for NVFP4 GEMM", place="__init__.py:683")
    + line("Using 'MARLIN' NvFp4 MoE backend out of potential backends: ['VLLM_CUTLASS'].")
    + "(APIServer pid=1592) INFO:     Application startup complete.\n"
)


def judged(name: str, *, ok: bool) -> ImageRecords:
    """An image's records, of which the ledger of one GPU alone says anything."""
    return ImageRecords({"ledger": json.dumps({"gpus": {name: {"ok": ok}}}).encode()})


def healthy(tmp_path: Path, **changes: Any) -> Evidence:
    folder = write(tmp_path / "model", gemma4(TINY), TINY)
    server = settings.server(
        folder,
        "registry/x@sha256:" + "a" * 64,
        settings.ServerWishes(workload="interactive", version="0.20.2"),
    )
    found = Evidence(
        image=server.image,
        labels=dict(LABELS),
        command=["vllm", *server.arguments],
        mounts=[Mount(str(folder), "/models/model"), Mount("", "/home/vllm/.cache", "volume")],
        environment={s.name: s.value for s in server.environment},
        status="running",
        exit_code=0,
        health="healthy",
        shm_bytes=64 << 20,
        ipc="host",
        gpu_requested=True,
        log=GOOD_LOG,
        gpus=[SPARK],
        host=HostResources(memory_total=int(119.6 * 2**30)),
        records=judged("sm121", ok=True),
    )
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def ids(found: Evidence) -> dict[str, str]:
    return {f.id: f.severity for f in doctor.examine(found)}


def test_a_healthy_server_is_left_in_peace(tmp_path: Path) -> None:
    assert ids(healthy(tmp_path)) == {}


def test_nothing_known_is_nothing_wrong() -> None:
    assert ids(Evidence()) == {}


def flags(tmp_path: Path, old: str, new: str) -> list[str]:
    return [new if word == old else word for word in healthy(tmp_path).command]


# The card's six failure modes and its checklist, then our own.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "card 1: the image without patches": (
        {"image": "ghcr.io/aeon-7/vllm-spark-gemma4-nvfp4:latest", "labels": {}},
        "variant",
    ),
    "card 1: our plain variant": ({"labels": LABELS | {"io.fp4forge.variant": "plain"}}, "variant"),
    "card 2: MoE picked by itself": (
        {"log": GOOD_LOG.replace("'MARLIN'", "'VLLM_CUTLASS'")},
        "moe-backend",
    ),
    "card 3: modelopt.py mounted": (
        {
            "mounts": [
                Mount(
                    "/tmp/modelopt_patched.py",
                    f"{SITE}/model_executor/layers/quantization/modelopt.py",
                )
            ]
        },
        "patch-mount",
    ),
    "card 3: 0.19.1's patch does not fit": (
        {"log": "TypeError: apply_nvfp4_linear() got an unexpected keyword argument 'swizzle'\n"},
        "patch-signature",
    ),
    "card 4: compressed-tensors": (
        {
            "command": [
                "vllm",
                "serve",
                "/models/model",
                "--quantization",
                "compressed-tensors",
                "--moe-backend",
                "marlin",
            ]
        },
        "quantization",
    ),
    "card 4: seen in the log": (
        {"log": line("KeyError: 'layers.0.mlp.gate_proj.weight_packed'", "ERROR", "core.py:1136")},
        "quantization",
    ),
    "card 5: kv-cache-dtype fp8": (
        {
            "command": [
                "vllm",
                "serve",
                "/models/model",
                "--kv-cache-dtype=fp8",
                "--moe-backend",
                "marlin",
            ]
        },
        "kv-cache-dtype",
    ),
    "card 6: EAGLE mounted": (
        {"mounts": [Mount("/x/eagle_patched.py", f"{SITE}/v1/spec_decode/eagle.py")]},
        "patch-mount",
    ),
    "card 6: EAGLE3 asked for": (
        {
            "log": "Resolved architecture: Gemma4ForConditionalGeneration\n"
            "speculative_config=SpeculativeConfig(method='eagle3', model='/d')\n"
        },
        "speculative",
    ),
    "card 6: seen in the log": (
        {"log": "AttributeError: 'Gemma4Config' object has no attribute 'image_token_index'\n"},
        "eagle3-image-token",
    ),
    "checklist: UNEXPECTED tensors": (
        {"log": GOOD_LOG + line("vision.head.weight | UNEXPECTED | not used", "WARNING")},
        "unexpected-tensors",
    ),
    "linear layers forced to Marlin": (
        {"environment": {"VLLM_NVFP4_GEMM_BACKEND": "marlin"}},
        "linear-backend",
    ),
    "linear layers on Marlin by the log of 0.19.1": (
        {"log": line("Using NvFp4LinearBackend.MARLIN for NVFP4 GEMM", place="nvfp4_utils.py:85")},
        "linear-backend",
    ),
    "a switch that the release lost": (
        {
            "labels": LABELS | {"org.opencontainers.image.version": "0.33.0"},
            "environment": {"VLLM_TEST_FORCE_FP8_MARLIN": "1"},
        },
        "removed-switch",
    ),
    "FlashInfer's MoE": ({"environment": {"VLLM_USE_FLASHINFER_MOE_FP4": "1"}}, "flashinfer-moe"),
    "Hopper": ({"gpus": [SmiGpu("NVIDIA H200", "9.0", "580.95.05")]}, "not-blackwell"),
    "an old driver": ({"gpus": [SmiGpu("NVIDIA GB10", "12.1", "570.86.10")]}, "driver"),
    "kernels missing by the ledger": ({"records": judged("sm121", ok=False)}, "kernels"),
    "kernels missing by the log": (
        {"log": "RuntimeError: No compiled nvfp4 mm kernel for SM 121\n"},
        "kernels",
    ),
    "no GPU asked for": ({"gpu_requested": False, "log": None}, "no-gpu"),
    "no headroom in unified memory": (
        {
            "command": [
                "vllm",
                "serve",
                "/models/model",
                "--moe-backend",
                "marlin",
                "--gpu-memory-utilization",
                "0.97",
            ]
        },
        "unified-headroom",
    ),
    "a small /dev/shm": ({"ipc": "private"}, "shm"),
    "killed for memory": ({"out_of_memory": True, "exit_code": 137}, "killed"),
    "out of GPU memory": (
        {"log": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"},
        "gpu-memory",
    ),
    "no room for one sequence": (
        {
            "log": "ValueError: To serve at least one request with the models's max seq len"
            " (262144), 9.1 GiB KV cache is needed\n"
        },
        "gpu-memory",
    ),
    "experts cut by tensor parallelism": (
        {
            "command": [
                "vllm",
                "serve",
                "/models/model",
                "--moe-backend",
                "marlin",
                "--tensor-parallel-size",
                "2",
            ],
            "log": None,
        },
        "expert-split",
    ),
    "the model's folder is not mounted": (
        {"mounts": [Mount("/x", "/other")], "log": None},
        "model-mount",
    ),
    "an expert name twice prefixed": (
        {"log": "KeyError: 'layers.0.moe.moe.experts.0.w13_weight'\n"},
        "moe-prefix",
    ),
    "NaN scales zeroed by the patch": (
        {
            "log": GOOD_LOG
            + line(
                "model.layers.0.mlp: 3 of 9 FP8 block scales are NaN; they are set to zero",
                "WARNING",
            )
        },
        "nan-block-scales",
    ),
    "ptxas too old": (
        {"log": "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'\n"},
        "ptxas",
    ),
    "kernels compiled at the first request": (
        {"log": GOOD_LOG + "[1/7] /usr/local/cuda/bin/nvcc -c fp4_gemm.cu\n"},
        "jit",
    ),
    "ended": ({"status": "exited", "exit_code": 1}, "exited"),
    "unhealthy": ({"health": "unhealthy"}, "unhealthy"),
    "a vLLM that is too old": (
        {"labels": LABELS | {"org.opencontainers.image.version": "0.18.0"}},
        "vllm-version",
    ),
    "somebody else's image": (
        {"labels": {"maintainer": "x"}, "image": "vllm/vllm-openai:latest"},
        "image",
    ),
    "nothing at the port": ({"live": LiveServer(unreachable="Connection refused")}, "port"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_thing_that_goes_wrong_is_named(name: str, tmp_path: Path) -> None:
    changes, wanted = CASES[name]
    found = healthy(tmp_path, **changes)
    assert wanted in ids(found)
    finding = next(f for f in doctor.examine(found) if f.id == wanted)
    assert finding.evidence
    assert finding.cause
    assert finding.fix


def test_every_check_has_a_case() -> None:
    assert len({wanted for _, wanted in CASES.values()}) >= 20
    assert len(diagnosis.CHECKS) >= 15


def test_an_empty_model_folder(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    found = healthy(tmp_path, mounts=[Mount(str(empty), "/models/model")], log=None)
    finding = next(f for f in doctor.examine(found) if f.id == "model-mount")
    assert "is empty" in finding.evidence


def patched(name: str, digest: str) -> ImageRecords:
    """An image's records, of which patches.json alone says anything."""
    content = json.dumps({"files": {name: {"after": digest}}})
    return ImageRecords({"patches": content.encode()})


def test_a_mount_with_the_baked_contents_is_no_finding(tmp_path: Path) -> None:
    file = tmp_path / "gemma4.py"
    file.write_text("patched")
    name = "vllm/model_executor/models/gemma4.py"
    digest = evidence.digest(str(file))
    place = f"{SITE}/model_executor/models/gemma4.py"
    mounts = [*healthy(tmp_path).mounts, Mount(str(file), place)]
    found = healthy(tmp_path, mounts=mounts, records=patched(name, str(digest)))
    assert "patch-mount" not in ids(found)
    found.records = patched(name, "0" * 64)
    finding = next(f for f in doctor.examine(found) if f.id == "patch-mount")
    assert str(digest)[:12] in finding.evidence


@pytest.mark.parametrize(
    ("log", "wanted", "absent"),
    [
        ("0.20.2-h200/compiled.log", "not-blackwell", "moe-backend"),
        ("0.20.2-h200/moe-prefix-keyerror.log", "moe-prefix", "gpu-memory"),
        ("0.20.2-h200/no-flash-attn-extension.log", "flash-attention", "moe-prefix"),
        ("0.20.2-h200/no-input-scale-refused.log", "missing-input-scale", "moe-prefix"),
        ("0.33.0-h100/moe-prefix.log", "moe-prefix", "missing-input-scale"),
        ("0.33.0-h100/nan-scales.log", "nan-block-scales-refused", "nan-block-scales"),
        ("0.33.0-h100/awq.log", "quant-algo-rare", "quant-algo"),
    ],
)
def test_real_logs_of_a_real_gpu(log: str, wanted: str, absent: str) -> None:
    found = ids(Evidence(log=(LOGS / f"vllm-{log}").read_text()))
    assert wanted in found
    assert absent not in found


def test_experts_cut_in_two_on_two_real_gpus() -> None:
    log = (LOGS / "vllm-0.20.2-h100/experts-cut-in-two.log").read_text()
    findings = {f.id: f for f in doctor.examine(Evidence(log=log))}
    assert "MKN = [65536, 352, 2816]" in findings["expert-split"].evidence
    assert "--enable-expert-parallel" in findings["expert-split"].fix


@pytest.mark.parametrize(
    "words",
    [
        ["--tensor-parallel-size", "2", "--enable-expert-parallel"],
        ["--tensor-parallel-size", "1"],
        ["--tensor-parallel-size", "many"],
    ],
)
def test_whole_experts_are_no_finding(words: list[str], tmp_path: Path) -> None:
    command = ["vllm", "serve", "/models/model", "--moe-backend", "marlin", *words]
    assert "expert-split" not in ids(healthy(tmp_path, command=command))


def test_zeroed_block_scales_are_told_from_a_real_log() -> None:
    log = (LOGS / "vllm-0.20.2-h100/nan-scales-zeroed.log").read_text()
    findings = {f.id: f for f in doctor.examine(Evidence(log=log))}
    assert "185856 of 371712" in findings["nan-block-scales"].evidence


def test_what_a_real_log_says() -> None:
    facts = diagnosis.read_log((LOGS / "vllm-0.20.2-h200/compiled.log").read_text())
    assert facts.linear == "MarlinNvFp4LinearKernel"
    assert (facts.moe, facts.attention) == ("MARLIN", "TRITON_ATTN")
    assert facts.kv_tokens == "9,280,538"
    assert facts.checkpoint
    assert facts.ready
    old = line("Using NvFp4LinearBackend.FLASHINFER_CUTLASS for NVFP4 GEMM")
    assert diagnosis.read_log(old).linear == "FLASHINFER_CUTLASS"


CARD_COMPOSE = """
services:
  vllm:
    image: ghcr.io/aeon-7/vllm-spark-gemma4-nvfp4-awq:latest
    volumes:
      - ./model:/models/supergemma4
      - ./gemma4_patched.py:SITE/model_executor/models/gemma4.py
    environment:
      - VLLM_TEST_FORCE_FP8_MARLIN=1
    command:
      - bash
      - -c
      - |
        exec vllm serve /models/supergemma4 \\
        --quantization modelopt --kv-cache-dtype fp8_e4m3
    ipc: host
"""


def test_the_cards_own_compose_file(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(CARD_COMPOSE.replace("SITE", SITE))
    found = described.from_compose(file)
    assert found.flag("--quantization") == "modelopt"
    assert found.mounts[0] == Mount(str(tmp_path / "model"), "/models/supergemma4")
    assert {"patch-mount", "model-mount", "no-gpu"} <= set(ids(found))
    assert "moe-backend" not in ids(found)


def test_our_own_compose_file_is_healthy(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", gemma4(TINY), TINY)
    server = settings.server(
        folder,
        "registry/x@sha256:" + "a" * 64,
        settings.ServerWishes(workload="balanced", version="0.20.2"),
    )
    file = tmp_path / "compose.yaml"
    file.write_text(manifest.render(server, "compose"))
    assert ids(described.from_compose(file)) == {}


def test_what_is_no_inspection(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        described.from_inspect({"a": 1})
    file = tmp_path / "compose.yaml"
    file.write_text("services: {a: {build: .}}")
    with pytest.raises(UsageError):
        described.from_compose(file)


def test_nvidia_smi_of_a_spark() -> None:
    """GB10 reports no memory of its own."""
    found = smi.gpus("NVIDIA GB10, 12.1, 580.95.05, [N/A]\nnonsense\n")
    assert found == [SPARK]


def test_offline_by_the_command_line(tmp_path: Path) -> None:
    from fp4forge.cli.serve import doctor as command

    inspection = tmp_path / "inspect.json"
    config = {"Image": "x:1", "Labels": LABELS, "Cmd": ["serve", "/models/m"], "Env": ["A=b"]}
    inspection.write_text(
        json.dumps(
            [{"Config": config, "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": True}}]
        )
    )
    log = LOGS / "vllm-0.20.2-h200/eager.log"
    given = ["--inspect", str(inspection), "--logs", str(log)]
    done = CliRunner().invoke(command, [*given, "--json"])
    assert done.exit_code == ServingError.exit_code
    data = json.loads(done.stdout)
    assert {"exited", "killed"} <= {f["id"] for f in data["findings"]}
    assert data["log"]["moe"] == "MARLIN"
    assert CliRunner().invoke(command, []).exit_code == 1


def test_a_format_that_this_vllm_does_not_load(tmp_path: Path) -> None:
    folder = write(tmp_path / "new", gemma4(TINY), TINY)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "W4A16_NVFP4"}}')
    changes: dict[str, Any] = {
        "mounts": [Mount(str(folder), "/models/model")],
        "log": None,
    }
    found = {f.id: f for f in doctor.examine(healthy(tmp_path, **changes))}
    assert "0.24.0 does" in found["checkpoint-format"].cause
    changes["log"] = GOOD_LOG
    assert "checkpoint-format" not in ids(healthy(tmp_path, **changes))


def test_a_checkpoint_with_a_part_missing(tmp_path: Path) -> None:
    tensors = gemma4(TINY)
    tensors = {name: value for name, value in tensors.items() if "weight_scale_2" not in name}
    folder = write(tmp_path / "cut", tensors, TINY)
    changes: dict[str, Any] = {
        "mounts": [Mount(str(folder), "/models/model")],
        "log": None,
    }
    found = {f.id: f for f in doctor.examine(healthy(tmp_path, **changes))}
    assert "missing-part" in found["checkpoint"].evidence
