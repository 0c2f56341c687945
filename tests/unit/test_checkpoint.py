"""The inspector reports each way in which a checkpoint can be spoilt."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fp4forge.checkpoint import inspect, tensors
from fp4forge.checkpoint.findings import KINDS
from fp4forge.core.errors import ArtefactError, CheckpointError, DiskError
from fp4forge.inputs import patches as series
from tests.checkpoints import TINY, Tensors, gemma4, linear, write

LAYER = "model.layers.1.experts.2.gate_proj"


def findings(folder: Path) -> dict[str, inspect.CheckpointFinding]:
    return {found.id: found for found in inspect.inspect(folder).findings}


def test_a_whole_checkpoint_is_servable(tmp_path: Path) -> None:
    found = inspect.inspect(write(tmp_path, gemma4(TINY), TINY))
    assert found.servable
    assert (found.format, found.flag) == ("modelopt NVFP4", "--quantization modelopt")
    assert [f.id for f in found.findings] == ["gelu-tanh"]
    assert found.patches == ("gemma4-gelu-tanh",)


def replace(name: str, *entry: Any) -> Callable[[Tensors], None]:
    def change(found: Tensors) -> None:
        found[name] = (entry[0], entry[1], entry[2])

    return change


def drop(*names: str) -> Callable[[Tensors], None]:
    def change(found: Tensors) -> None:
        for name in [n for n in found if any(part in n for part in names)]:
            del found[name]

    return change


def add(new: Tensors) -> Callable[[Tensors], None]:
    return lambda found: found.update(new)


def rename(old: str, new: str) -> Callable[[Tensors], None]:
    def change(found: Tensors) -> None:
        for name in [n for n in found if old in n]:
            found[name.replace(old, new)] = found.pop(name)

    return change


def scalar(value: float) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", (), struct.pack("<f", value)


SCALES = bytes([0x38]) * (48 * 4)
CASES: dict[str, tuple[Callable[[Tensors], None], str, str]] = {
    "missing-part": (drop(LAYER + ".weight_scale_2"), inspect.ERROR, "weight_scale_2"),
    "missing-expert": (drop("layers.0.experts.3."), inspect.ERROR, "layers.0.experts.3"),
    "no-input-scale": (drop(LAYER + ".input_scale"), inspect.ERROR, "experts 2"),
    "nan-block-scale": (
        replace(LAYER + ".weight_scale", "F8_E4M3", (48, 4), b"\x7f\xff" + SCALES[2:]),
        inspect.PATCH,
        "layer 1 gate_proj of experts 2",
    ),
    "negative-block-scale": (
        replace(LAYER + ".weight_scale", "F8_E4M3", (48, 4), b"\xb8" + SCALES[1:]),
        inspect.ERROR,
        "experts 2",
    ),
    "zero-block-scale": (
        replace(LAYER + ".weight_scale", "F8_E4M3", (48, 4), b"\0\x80" + SCALES[2:]),
        inspect.NOTE,
        "experts 2",
    ),
    "wrong-shape": (
        replace(LAYER + ".weight_scale", "F8_E4M3", (48, 8), SCALES * 2),
        inspect.ERROR,
        "[48, 8]",
    ),
    "bad-scalar-nan": (
        replace(LAYER + ".input_scale", *scalar(float("nan"))),
        inspect.ERROR,
        "input_scale",
    ),
    "bad-scalar-infinite": (
        replace("model.layers.0.mlp.down_proj.weight_scale_2", *scalar(float("inf"))),
        inspect.ERROR,
        "down_proj",
    ),
    "bad-scalar-negative": (
        replace(LAYER + ".input_scale", *scalar(-1.0)),
        inspect.ERROR,
        "input_scale",
    ),
    "bad-scalar-zero": (
        replace(LAYER + ".input_scale", *scalar(0.0)),
        inspect.ERROR,
        "input_scale",
    ),
    "gate-up-mismatch": (
        replace(LAYER + ".weight_scale_2", *scalar(2.0)),
        inspect.WARNING,
        "layers.1.experts.2",
    ),
    "experts-not-quantised": (
        lambda found: (
            drop("layers.0.experts.")(found),
            found.update({"model.layers.0.experts.gate_up_proj": ("BF16", (4, 96, 64), None)}),
        )[0],
        inspect.ERROR,
        "gate_up_proj",
    ),
    "vision-quantised": (
        add(linear("model.vision_tower.encoder.fc", 64, 64)),
        inspect.ERROR,
        "vision_tower",
    ),
    "router-quantised": (
        lambda found: (
            drop("layers.0.router")(found),
            found.update(linear("model.layers.0.router.proj", 4, 64)),
        )[0],
        inspect.ERROR,
        "router",
    ),
    "moe-prefix": (rename(".experts.", ".moe.experts."), inspect.PATCH, "experts 0-3"),
    "awq-dense": (
        add({"model.layers.0.mlp.up_proj.pre_quant_scale": ("BF16", (64,), None)}),
        inspect.PATCH,
        "mlp.up_proj",
    ),
    "awq-experts": (
        add({LAYER + ".pre_quant_scale": ("BF16", (64,), None)}),
        inspect.ERROR,
        "experts 2",
    ),
    "tied-twice": (add({"lm_head.weight": ("BF16", (320, 64), None)}), inspect.NOTE, "lm_head"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_named(name: str, tmp_path: Path) -> None:
    change, severity, where = CASES[name]
    spoilt = gemma4(TINY)
    change(spoilt)
    found = findings(write(tmp_path, spoilt, TINY))
    assert name in found
    assert found[name].severity == severity
    assert where in " ".join(found[name].where)
    others = set(found) - {name, "gelu-tanh"}
    assert not others, f"{name} also reads as {others}"
    assert inspect.inspect(tmp_path).servable == (severity != inspect.ERROR)


def test_nan_scales_are_counted(tmp_path: Path) -> None:
    spoilt = gemma4(TINY)
    CASES["nan-block-scale"][0](spoilt)
    assert findings(write(tmp_path, spoilt, TINY))["nan-block-scale"].count == 2


def test_every_patch_exists() -> None:
    known = {p.id for v in ("0.19.1", "0.20.2") for p in series.load("vllm", v).patches}
    assert {kind.patch for kind in KINDS.values() if kind.patch} <= known


def test_files_against_the_index(tmp_path: Path) -> None:
    folder = write(tmp_path, gemma4(TINY), TINY)
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    (name, file), *_ = data["weight_map"].items()
    del data["weight_map"][name]
    data["weight_map"] |= {"ghost.weight": file, "lost.weight": "model-3.safetensors"}
    index.write_text(json.dumps(data))
    found = findings(folder)
    assert found["not-in-index"].where == (name,)
    assert found["index-only"].where == ("ghost.weight",)
    assert found["missing-file"].where == ("model-3.safetensors",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-LFS"),
        (b"", "not a safetensors"),
        (struct.pack("<Q", 10**12) + b"{}", "header should be"),
        (struct.pack("<Q", 4) + b"nope", "header is not JSON"),
        (struct.pack("<Q", 2) + b"[]", "header: expected object, got array"),
    ],
)
def test_a_file_that_is_none(content: bytes, said: str, tmp_path: Path) -> None:
    folder = write(tmp_path, gemma4(TINY), TINY)
    (folder / "model-00001-of-00002.safetensors").write_bytes(content)
    assert said in " ".join(findings(folder)["bad-file"].where)


def test_a_truncated_file(tmp_path: Path) -> None:
    folder = write(tmp_path, gemma4(TINY), TINY)
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "truncated" in findings(folder)["bad-file"].where[0]


def test_other_formats(tmp_path: Path) -> None:
    plain: Tensors = {"model.embed_tokens.weight": ("BF16", (320, 64), None)}
    assert inspect.inspect(write(tmp_path / "a", plain, TINY, algo="")).format == "bf16"
    packed = plain | {"model.layers.0.mlp.up_proj.weight_packed": ("U8", (96, 32), None)}
    found = inspect.inspect(write(tmp_path / "b", packed, TINY, algo=""))
    assert found.flag == "--quantization compressed-tensors"
    found = inspect.inspect(write(tmp_path / "c", plain, TINY, algo="W4A8"))
    assert not found.servable
    assert found.findings[0].where == ("W4A8",)
    awq = inspect.inspect(write(tmp_path / "d", gemma4(TINY), TINY, algo="NVFP4_AWQ"))
    assert awq.format == "modelopt NVFP4_AWQ"


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    for make, said in (
        (lambda: None, "no config.json"),
        (lambda: (tmp_path / "config.json").write_text("{"), "not JSON"),
        (lambda: (tmp_path / "config.json").write_text("{}"), "no *.safetensors"),
    ):
        make()
        with pytest.raises(CheckpointError) as caught:
            inspect.inspect(tmp_path)
        assert said in str(caught.value)
    with pytest.raises(CheckpointError):
        tensors.read(tmp_path / "nowhere")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs, over real files."""

    root: Path
    corrupt = ""
    cut = ""
    commit = "c" * 40

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "/resolve/" not in path:
            entries = []
            for file in sorted(self.root.iterdir()):
                entry: dict[str, Any] = {"rfilename": file.name, "size": file.stat().st_size}
                if file.suffix == ".safetensors":
                    digest = hashlib.sha256(file.read_bytes()).hexdigest()
                    entry["lfs"] = {"sha256": digest, "size": entry["size"], "pointerSize": 134}
                entries.append(entry)
            data = {"id": "a/b", "sha": self.commit, "siblings": entries, "tags": []}
            if "/tree/" in path:
                tree = [
                    {
                        "type": "file",
                        "path": e["rfilename"],
                        "size": e["size"],
                        "oid": "0" * 40,
                        **(
                            {
                                "lfs": {
                                    "oid": e["lfs"]["sha256"],
                                    "size": e["size"],
                                    "pointerSize": 134,
                                }
                            }
                            if "lfs" in e
                            else {}
                        ),
                    }
                    for e in entries
                ]
                self.answer(json.dumps(tree).encode(), "application/json")
                return
            self.answer(json.dumps(data).encode(), "application/json")
            return
        file = self.root / path.rsplit("/", 1)[1]
        if not file.is_file():
            self.send_error(404)
            return
        data_bytes = file.read_bytes()
        if file.name == self.corrupt:
            data_bytes = data_bytes[:-1] + b"!"
        self.answer(data_bytes, "application/octet-stream", cut=file.name == self.cut)

    def answer(self, data: bytes, kind: str, cut: bool = False) -> None:
        etag, start = hashlib.sha256(data).hexdigest(), 0
        if span := self.headers.get("Range"):
            start = int(span.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start : (start + len(data)) // 2 if cut else None])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.root = write(tmp_path / "hub", gemma4(TINY), TINY)
    Hub.corrupt = Hub.cut = ""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import huggingface_hub.constants as constants

    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Hub
    server.shutdown()
    shutil.rmtree(tmp_path / "hub")


def test_a_checkpoint_is_fetched_whole(hub: type[Hub], tmp_path: Path) -> None:
    from fp4forge.checkpoint.fetch import fetch

    assert fetch("a/b", tmp_path / "out", "main", lambda _: None) == Hub.commit
    assert inspect.inspect(tmp_path / "out").servable


def test_a_file_that_is_not_the_recorded_one_does_not_stay(hub: type[Hub], tmp_path: Path) -> None:
    from fp4forge.checkpoint.fetch import fetch

    hub.corrupt = "model-00001-of-00002.safetensors"
    with pytest.raises(ArtefactError):
        fetch("a/b", tmp_path / "out", "main", lambda _: None)
    assert not (tmp_path / "out" / hub.corrupt).exists()
    hub.corrupt = ""
    fetch("a/b", tmp_path / "out", "main", lambda _: None)
    assert inspect.inspect(tmp_path / "out").servable


def test_a_download_that_breaks_resumes(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fp4forge.checkpoint.fetch import fetch

    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.cut = "model-00002-of-00002.safetensors"
    with pytest.raises(CheckpointError) as caught:
        fetch("a/b", tmp_path / "out", "main", lambda _: None)
    assert "resumes" in caught.value.remedy
    hub.cut = ""
    fetch("a/b", tmp_path / "out", "main", lambda _: None)
    assert inspect.inspect(tmp_path / "out").servable


def test_a_model_that_the_disk_does_not_hold(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fp4forge.checkpoint import fetch

    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskError, match="GB free"):
        fetch.fetch("a/b", tmp_path / "out", "main", lambda _: None)
    assert not (tmp_path / "out").exists()


def test_a_repository_that_is_not_there(hub: type[Hub], tmp_path: Path) -> None:
    from fp4forge.checkpoint.fetch import fetch
    from fp4forge.core.errors import UsageError

    with pytest.raises(UsageError):
        fetch("not a name; rm -rf", tmp_path / "out", "main", lambda _: None)


def test_a_certificate_that_is_not_trusted_has_its_own_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    from fp4forge.checkpoint.fetch import fetch

    def refuse(*_: object, **__: object) -> None:
        raise OSError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate in chain")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    with pytest.raises(CheckpointError) as caught:
        fetch("a/b", tmp_path / "out", "main", lambda _: None)
    assert "SSL_CERT_FILE" in caught.value.remedy
