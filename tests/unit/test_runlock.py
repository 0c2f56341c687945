"""The lock of a run: the same manifest for the same bytes, or what differs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given

from fp4forge.cli.serve import serve
from fp4forge.core.errors import ForgeError, RunLockError
from fp4forge.serve import runlock
from tests.checkpoints import TINY, gemma4, write
from tests.fuzz import fuzz, spoilt, survives

COMMIT = "0123456789abcdef" * 2 + "01234567"
CONTENT = b'{"schemaVersion": 2, "manifests": []}'
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Registry:
    """A registry with one image, which can be taken out of it."""

    def __init__(self) -> None:
        self.there = True
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = registry.there and self.path.endswith(f"/manifests/{DIGEST}")
                self.send_response(200 if found else 404)
                self.send_header("Content-Length", str(len(CONTENT) if found else 0))
                self.end_headers()
                self.wfile.write(CONTENT if found else b"")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.image = f"127.0.0.1:{self.server.server_port}/team/vllm@{DIGEST}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setattr("fp4forge.oci.engine.present", lambda _: False)
    made = Registry()
    yield made
    made.server.shutdown()
    made.server.server_close()


def compose(*arguments: object) -> Result:
    return CliRunner().invoke(serve, ["compose", *map(str, arguments)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write(tmp_path / "model", gemma4(TINY), TINY | {"max_position_embeddings": 262144})
    (folder / "extra").mkdir()
    (folder / "extra" / "template.jinja").write_text("{{ messages }}")
    metadata = folder / ".cache" / "huggingface" / "download"
    metadata.mkdir(parents=True)
    (metadata / "config.json.metadata").write_text(f"{COMMIT}\netag\n1.0\n")
    return folder


@pytest.fixture
def locked(registry: Registry, model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A lock and the manifest that it was written with."""
    lock, manifest = tmp_path / "run.lock", tmp_path / "run.sh"
    done = compose(
        "--model", model, "--image", registry.image, "--offline", "--workload", "throughput",
        "--format", "run", "--lock", lock, "-o", manifest,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return lock, manifest


def again(lock: Path) -> str:
    return runlock.reproduce(runlock.read(lock), lambda _: None)


def test_a_lock_writes_the_same_manifest(locked: tuple[Path, Path], tmp_path: Path) -> None:
    lock, manifest = locked
    output = tmp_path / "again.sh"
    done = compose("--from-lock", lock, "-o", output)
    assert done.exit_code == 0, done.output
    assert output.read_bytes() == manifest.read_bytes()
    assert again(lock) == manifest.read_text()


def test_what_a_lock_has(locked: tuple[Path, Path], model: Path, registry: Registry) -> None:
    found = json.loads(locked[0].read_text())
    assert (found["image"], found["kind"]) == (registry.image, "run")
    folder = found["folders"][str(model)]
    assert folder["revision"] == COMMIT
    # Every file, weights too; nothing of the hub's own bookkeeping.
    wanted = {
        p.relative_to(model).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in model.rglob("*")
        if p.is_file() and ".cache" not in p.parts
    }
    assert any(name.endswith(".safetensors") for name in wanted)
    assert {name: file["sha256"] for name, file in folder["files"].items()} == wanted


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: flip(next(m.glob("*.safetensors"))), r"safetensors has SHA-256 \w+…, the lock"),
        (lambda m: (m / "config.json").write_text("{}"), r"config\.json has 2 bytes, the lock"),
        (lambda m: (m / "extra" / "template.jinja").unlink(), r"template\.jinja is missing"),
        (lambda m: (m / "new.py").write_text("x"), r"new\.py is not in the lock"),
        (lambda m: m.rename(m.with_name("moved")), "is not a folder on this machine"),
    ],
)
def test_another_model_is_refused(
    locked: tuple[Path, Path], model: Path, change: Callable[[Path], object], said: str
) -> None:
    change(model)
    with pytest.raises(RunLockError, match=said):
        again(locked[0])


def test_another_revision_is_named(locked: tuple[Path, Path], model: Path) -> None:
    flip(model / "config.json")
    (model / ".cache/huggingface/download/config.json.metadata").write_text("f" * 40 + "\n")
    with pytest.raises(RunLockError, match=f"is revision {'f' * 40}, the lock's is {COMMIT}"):
        again(locked[0])


def test_a_snapshot_of_the_hubs_cache(model: Path, tmp_path: Path) -> None:
    """Files there are links to blobs."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for path in model.glob("*.*"):
        if path.is_file():
            (snapshot / path.name).symlink_to(path)
    found = runlock._locked_folder(snapshot, lambda _: None)
    assert found.revision == COMMIT and "config.json" in found.files


def test_an_image_that_is_gone(locked: tuple[Path, Path], registry: Registry) -> None:
    registry.there = False
    with pytest.raises(RunLockError, match="neither here nor in its registry"):
        again(locked[0])


def test_a_manifest_that_comes_out_differently(
    locked: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fp4forge.serve.manifest.TMPFS", {"/tmp": "mode=700"})
    with pytest.raises(RunLockError, match="writes another manifest"):
        again(locked[0])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 2),
        (("kind",), "shell"),
        (("image",), "vllm:latest"),
        (("server", "image"), "other@sha256:" + "b" * 64),
        (("server", "name"), "a\nb"),
        (("server", "served_name"), "../x"),
        (("server", "flags", 0, "why"), "harmless\nprivileged: true"),
        (("folders",), {}),
        (("surprise",), 1),
    ],
)
def test_a_lock_that_was_edited(
    locked: tuple[Path, Path], path: tuple[Any, ...], value: Any
) -> None:
    found = json.loads(locked[0].read_text())
    place = found
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    locked[0].write_text(json.dumps(found))
    with pytest.raises(RunLockError):
        runlock.read(locked[0])


def test_an_edited_flag_is_another_manifest(locked: tuple[Path, Path]) -> None:
    locked[0].write_text(locked[0].read_text().replace('"0.85"', '"0.95"'))
    with pytest.raises(RunLockError, match="another manifest"):
        again(locked[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--model is missing"),
        (("--from-lock", "x", "--model", "y", "--port", "1"), "--model, --port with --from-lock"),
        (("--model", "y", "--lock", "x", "--json"), "not with --json"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], said: str) -> None:
    done = compose(*arguments)
    assert isinstance(done.exception, ForgeError)
    assert said in f"{done.exception.message} {done.exception.rule}"


def test_a_model_of_another_machine_cannot_be_locked(registry: Registry, tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"
    done = compose("--model", tmp_path / "none", "--image", registry.image, "--lock", lock)
    assert isinstance(done.exception, ForgeError) and not lock.exists()
    assert "write the lock on the machine that serves" in done.exception.remedy


def test_fuzz_locks(locked: tuple[Path, Path], tmp_path: Path) -> None:
    good, file = json.loads(locked[0].read_text()), tmp_path / "spoilt.lock"

    @fuzz
    @given(spoilt(good))
    def each(value: Any) -> None:
        file.write_text(json.dumps(value))
        survives(lambda: runlock.read(file))

    each()
