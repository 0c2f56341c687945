"""No file ends in a traceback: every reader of files over data that is spoilt at random."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp4forge.checkpoint import inspect, tensors
from fp4forge.checks import credentials, ledgers
from fp4forge.core import paths, reading
from fp4forge.core.errors import UsageError
from fp4forge.doctor import described, evidence, evidence_bundle, gather, kubernetes, smi
from fp4forge.doctor import examine as doctor
from fp4forge.doctor.evidence import Evidence
from fp4forge.kernels import cubins, elf, gpus
from fp4forge.oci import acquire
from fp4forge.publish import bundle
from fp4forge.serve import kv_cache, memory
from fp4forge.serve.model_sizes import describe
from tests.fuzz import VALUES, documents, fuzz, spoilt_bytes, survives

Make = Callable[[], Path]


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a new folder for each example."""
    root, numbers = tmp_path_factory.mktemp("fuzz"), itertools.count()

    def make() -> Path:
        folder = root / str(next(numbers))
        folder.mkdir()
        return folder

    return make


# Checkpoints


def look(folder: Path) -> None:
    found = tensors.read(folder)
    survives(lambda: inspect.inspect(folder))
    model = describe(found)
    kv_cache.kv_bytes_per_token(model)
    fitted = memory.fit(model, gpus.product("gb10"), 0.85, 4, 8192)
    memory.sequences_for(model, fitted, 65536, 8192)
    memory.context_for(model, fitted, 4, 8192)


CONFIG = {
    "model_type": "gemma4",
    "tie_word_embeddings": True,
    "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "text_config": {
        "num_hidden_layers": 2,
        "num_experts": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 128,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "max_position_embeddings": 1024,
        "global_head_dim": 32,
        "num_kv_shared_layers": 0,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
    },
}
DECLARED = {
    "quant_method": "modelopt",
    "quant_algo": "MIXED_PRECISION",
    "quantized_layers": {"model.layers.0.q_proj": {"quant_algo": "NVFP4", "group_size": 16}},
    "ignore": ["lm_head", "*layers.1*"],
    "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    "weight_block_size": [128, 128],
}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "re:.*q_proj"],
            "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group"},
            "input_activations": None,
        }
    },
    "ignore": ["re:.*lm_head$"],
}
INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a.weight": "model.safetensors"}}
HEADER = {
    "__metadata__": {"format": "pt"},
    "model.layers.0.q_proj.weight": {"dtype": "U8", "shape": [2, 8], "data_offsets": [0, 16]},
    "model.layers.0.q_proj.weight_scale": {
        "dtype": "F8_E4M3",
        "shape": [2, 1],
        "data_offsets": [16, 18],
    },
    "model.layers.0.q_proj.weight_scale_2": {"dtype": "F32", "shape": [], "data_offsets": [18, 22]},
}


@fuzz
@given(data=st.data(), header=documents(HEADER))
def test_declarations(new: Make, data: st.DataObject, header: bytes) -> None:
    folder = new()
    spoilt = data.draw(documents(data.draw(st.sampled_from([DECLARED, COMPRESSED]))))
    config = json.dumps({**CONFIG, "quantization_config": "HERE"}).encode()
    (folder / "config.json").write_bytes(config.replace(b'"HERE"', spoilt))
    whole = data.draw(st.sampled_from([json.dumps(HEADER).encode(), header]))
    (folder / "model.safetensors").write_bytes(safetensors(whole))
    survives(lambda: inspect.inspect(folder))


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(range(22))


@fuzz
@given(config=documents(CONFIG), header=documents(HEADER), data=st.data())
def test_checkpoints(new: Make, config: bytes, header: bytes, data: st.DataObject) -> None:
    folder = new()
    good = json.dumps(CONFIG).encode()
    which = data.draw(st.sampled_from(["config", "header", "index", "quantisation", "tensors"]))
    (folder / "config.json").write_bytes(config if which == "config" else good)
    content = safetensors(header if which == "header" else json.dumps(HEADER).encode())
    if which == "tensors":
        content = data.draw(spoilt_bytes(content, 400))
    (folder / "model.safetensors").write_bytes(content)
    if which == "index":
        index = folder / "model.safetensors.index.json"
        index.write_bytes(data.draw(documents(INDEX)))
    if which == "quantisation":
        given_ = {"quantization": {"quant_algo": "NVFP4"}}
        (folder / "hf_quant_config.json").write_bytes(data.draw(documents(given_)))
    survives(lambda: look(folder))


# What the doctor reads

INSPECTED = [
    {
        "Config": {
            "Image": "host/vllm:1",
            "Labels": {
                "io.fp4forge.release": "0.20.2",
                "org.opencontainers.image.version": "0.20.2",
            },
            "Env": ["A=b", "VLLM_USE_FLASHINFER_MOE_FP4=1"],
            "Entrypoint": ["bash", "-c"],
            "Cmd": ["vllm serve /models/x --gpu-memory-utilization 0.9 --tensor-parallel-size 2"],
        },
        "HostConfig": {
            "ShmSize": 64,
            "IpcMode": "host",
            "NetworkMode": "host",
            "Runtime": "nvidia",
            "PortBindings": {"8000/tcp": [{"HostPort": "8000"}]},
            "DeviceRequests": [],
        },
        "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": True, "Health": {"Status": ""}},
        "Mounts": [{"Source": "/x", "Destination": "/models/x", "Type": "bind"}],
        "NetworkSettings": {"Ports": {"8000/tcp": [{"HostPort": "8000"}]}},
    }
]
COMPOSE = {
    "services": {
        "vllm": {
            "image": "host/vllm:1",
            "environment": {"A": "b", "C": 1},
            "ipc": "host",
            "command": "serve /models/x --port '8000",
            "shm_size": "8g",
            "runtime": "nvidia",
            "volumes": ["./x:/models/x:ro", "~nobody/y:/z", {"source": "a", "target": "/b"}],
            "deploy": {"resources": {"reservations": {"devices": [{"driver": "nvidia"}]}}},
        }
    }
}


def diagnose(found: Evidence) -> None:
    found.url = ""
    doctor.judge(found, doctor.examine(found))
    gather.log_facts(found)


@fuzz
@given(content=documents(INSPECTED))
def test_docker_inspect(new: Make, content: bytes) -> None:
    file = new() / "inspect.json"
    file.write_bytes(content)
    survives(lambda: diagnose(described.read_inspect(file)))


YAML = [
    "a: &a [*a]",
    "a: 2001-99-99",
    "a: !!binary $",
    "? [a]\n: b",
    "- 1:99:9999999",
    "<<: 1",
    "\ta",
    "[" * 3000,
    "{a: " * 3000,
    "- " * 3000,
    "!!python/object:os.system x",
    "=: 1",
    "a: !!int _",
    "&a : &a",
    "!!set [a]",
    "x: !!float a",
    "a: 0x",
    "a: !!timestamp foo",
    "%YAML 9.9\n---\na",
    "a: &a [1,1,1,1,1,1,1,1,1]\n"
    + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
        for old, new in itertools.pairwise("abcdefghi")
    ),
    "a: &a {x: 1}\n"
    + "".join(
        f"{new}: &{new} {{<<: [{','.join([f'*{old}'] * 9)}]}}\n"
        for old, new in itertools.pairwise("abcdefghi")
    ),
    "services: {a: {image: x, command: 2001-01-01, volumes: [1], ports: [2001-01-01]}}",
    "services: {a: {image: vllm, command: [null, 1.5, true]}, 1: 2}",
    "services: [a]",
    "services:",
]


@fuzz
@given(content=documents(COMPOSE) | st.sampled_from([text.encode() for text in YAML]))
def test_compose_files(new: Make, content: bytes) -> None:
    file = new() / "compose.yaml"
    file.write_bytes(content)
    survives(lambda: diagnose(described.from_compose(file)))


LINES = [
    "NVIDIA GB10, 12.1, 580.95.05, [N/A]",
    "Using 'MARLIN' NvFp4 MoE backend",
    "KeyError: .moe.moe.",
    "(EngineCore pid=1) INFO 11-24 04:49:19 [x.py:1] Using A for NVFP4 GEMM",
    "x, 1.2, N/A, ²",
    "V1 LLM engine (v" + "9" * 5000 + ".1.1)",
    "Free memory on device x is less than desired",
    "OutOfMemoryError" * 2000,
    "\n" * 1000,
    "Bus error",
    "KeyError: " * 500,
    "²,1.²,3,4",
    ",,,",
]


@fuzz
@given(parts=st.lists(st.sampled_from(LINES) | st.text(max_size=40), max_size=8), rest=st.binary())
def test_logs_and_nvidia_smi(parts: list[str], rest: bytes) -> None:
    content = "\n".join(parts).encode(errors="surrogatepass") + rest
    text = evidence.as_log(content)
    survives(lambda: diagnose(Evidence(log=text, gpus=smi.gpus(text), command=parts)))


SMI = (Path(__file__).parent / "data/doctor/smi-table/smi.txt").read_bytes()
SEEDS = [
    path.read_bytes()
    for path in sorted((Path(__file__).parent / "data/doctor").rglob("*"))
    if path.name in ("server.log", "smi.txt", "inspect.json", "compose.yaml")
]


@fuzz
@given(data=st.data())
def test_spoilt_cases(new: Make, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(SEEDS).flatmap(spoilt_bytes))
    file = new() / "file"
    file.write_bytes(content)
    text = evidence.as_log(content)
    survives(lambda: diagnose(Evidence(log=text, gpus=smi.gpus(text))))
    survives(lambda: diagnose(described.read_inspect(file)))
    survives(lambda: diagnose(described.from_compose(file)))
    survives(lambda: evidence_bundle.clean(text))


POD = {
    "kind": "Pod",
    "spec": {
        "containers": [
            {
                "name": "v",
                "image": "vllm/vllm-openai:v0.20.2",
                "args": ["--model=org/m"],
                "env": [{"name": "A", "value": "b"}],
                "resources": {"limits": {"nvidia.com/gpu": "2"}},
            }
        ]
    },
    "status": {
        "containerStatuses": [
            {"name": "v", "state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": 1}}}
        ]
    },
}


@fuzz
@given(content=documents(POD), data=st.data())
def test_pods_and_doctors_bundles(new: Make, content: bytes, data: st.DataObject) -> None:
    folder = new()
    (folder / "pod.json").write_bytes(content)
    survives(lambda: diagnose(described.read_inspect(folder / "pod.json")))
    parts = {"log.txt": b"KeyError: 1", "inspect.json": content, "nvidia-smi.txt": SMI}
    packed = tar(parts)
    (folder / "x.tar").write_bytes(data.draw(st.just(packed) | spoilt_bytes(packed, 2000)))
    survives(lambda: diagnose(evidence_bundle.read(folder / "x.tar")))


@fuzz
@given(text=st.text(max_size=80))
def test_descriptions_of_pods(text: str) -> None:
    whole = f"Name: a\nContainers:\n  vllm:\n    Image: {text}\n    Args:\n      {text}\n{text}"
    survives(lambda: diagnose(kubernetes.from_description(whole)))


@fuzz
@given(name=st.text(max_size=30) | st.sampled_from(["a" * 5000, "\0", "\ud800", "x/" * 3000]))
def test_file_names(new: Make, name: str) -> None:
    path = new() / name
    survives(lambda: reading.content(path, UsageError))
    survives(lambda: look(path))
    survives(lambda: evidence.digest(str(path)))


# Archives and binaries


class Container:
    """A container whose archive is given."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def get_archive(self, _: str) -> tuple[Iterator[bytes], None]:
        return iter([self.content]), None


def tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


RECORD = {
    "groups": {"g": ["12.0f"]},
    "gpus": {"sm121": {"ok": True, "g": "native"}},
    "files": {"a": {"before": "1", "after": "2"}},
    "packages": {"a": "1"},
}


@fuzz
@given(record=documents(RECORD), data=st.data())
def test_records_of_an_image(record: bytes, data: st.DataObject) -> None:
    content = tar({f"fp4forge/{name}.json": record for name in acquire.RECORDS})
    content = data.draw(st.just(content) | spoilt_bytes(content, 600))
    for name in acquire.RECORDS:
        survives(lambda name=name: getattr(acquire.records_of(Container(content)), name))  # type: ignore[misc]


def bundled(index: bytes, evidence_: bytes = b"{}") -> dict[str, bytes]:
    manifest = json.dumps({"manifests": []}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    files = {
        "index.json": index.replace(b"a" * 64, digest.encode()),
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "evidence/plan.json": evidence_,
    }
    sums = "".join(f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in files.items())
    return {bundle.SUMS: sums.encode(), **files, f"blobs/sha256/{digest}": manifest}


DIGEST = "sha256:" + "a" * 64
NAMED = {
    "manifests": [
        {"digest": DIGEST, "annotations": {"io.containerd.image.name": "127.0.0.1:5000/a/b:1"}}
    ]
}


def unpack(file: Path, folder: Path) -> bundle.Bundle:
    with bundle.unpacked(file, folder, lambda _: None) as (found, _):
        return found


@fuzz
@given(index=documents(NAMED), data=st.data())
def test_bundles(new: Make, index: bytes, data: st.DataObject) -> None:
    folder = new()
    if data.draw(st.booleans()):
        content = tar(bundled(index))
    else:
        content = data.draw(spoilt_bytes(tar(bundled(json.dumps(NAMED).encode()))))
    (folder / "x.bundle").write_bytes(content)
    survives(lambda: unpack(folder / "x.bundle", folder / "out"))
    assert not (folder / "out").exists() or (folder / "out" / "index.json").exists()
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_a_bundle_that_is_whole_unpacks(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(tar(bundled(json.dumps(NAMED).encode())))
    found = unpack(tmp_path / "x", tmp_path / "out")
    assert (tmp_path / "out" / "index.json").is_file()
    assert (found.image, found.evidence) == ("127.0.0.1:5000/a/b:1", ("plan",))


def binary() -> bytes:
    """A small ELF file with a section .nv_fatbin."""
    names = b"\0.shstrtab\0.nv_fatbin\0"
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        3,
        62,
        1,
        0,
        0,
        96,
        0,
        64,
        0,
        0,
        64,
        3,
        1,
    )
    sections = [(0, 0, 0, 0), (1, 3, 64, len(names)), (11, 1, 64, 8)]
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, start, size, 0, 0, 1, 0)
        for name, kind, start, size in sections
    )
    return header + names.ljust(32, b"\0") + table


def test_the_small_binary_has_device_code(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(binary())
    assert cubins.has_device_code(tmp_path / "x.so")


@fuzz
@given(content=spoilt_bytes(binary()))
def test_binaries(new: Make, content: bytes) -> None:
    file = new() / "x.so"
    file.write_bytes(content)
    survives(lambda: elf.read(file))
    survives(lambda: cubins.has_device_code(file))
    survives(lambda: cubins._check(file))


def wheel(compression: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("vllm/a.py", "x = 1\n")
        archive.writestr("vllm/_C.abi3.so", b"\x7fELF" + bytes(200))
    return stream.getvalue()


@fuzz
@given(data=st.data(), kind=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_wheels(new: Make, data: st.DataObject, kind: int) -> None:
    file = new() / "x.whl"
    file.write_bytes(data.draw(spoilt_bytes(wheel(kind))))
    survives(lambda: ledgers.read(str(file), lambda _: None))


@fuzz
@given(data=st.data())
def test_layers_of_an_image(new: Make, data: st.DataObject) -> None:
    content = data.draw(spoilt_bytes(tar({"a": b"x"}), 600) | st.binary(max_size=40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "STATE", new())
        digest = hashlib.sha256(content).hexdigest()
        survives(lambda: credentials.keep(digest, io.BytesIO(content)))
        assert credentials.kept(digest) is not None


@fuzz
@given(value=VALUES)
def test_any_value_is_no_right_shape(value: Any) -> None:
    survives(lambda: described.from_inspect(value))
