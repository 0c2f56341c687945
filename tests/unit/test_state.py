"""State mends itself: what was cut is made anew, and a killed run leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest

from fp4forge.core import files, scratch
from fp4forge.core.errors import ServingError
from fp4forge.image.template_cache import CheckedTemplateCache
from fp4forge.kernels import cubins
from fp4forge.kernels.cubins import Ptx
from fp4forge.launch import deployment
from fp4forge.launch.cluster import lifecycle
from fp4forge.oci import acquire, engine
from fp4forge.oci.buildkit import BuildOptions
from fp4forge.oci.layout import OciLayout
from fp4forge.publish import build, verified

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import pathlib, sys, tempfile, time
from fp4forge.core import scratch
with scratch.for_process():
    pathlib.Path(tempfile.mkdtemp(), "big").write_text("x")
    tempfile.NamedTemporaryFile(delete=False)
    print(tempfile.gettempdir(), flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_run_left_goes_with_the_next_and_a_live_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    dead, left = hold(tmp_path)
    alive, kept = hold(tmp_path)
    (tmp_path / "fp4forge-defect-1.txt").touch()
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert left.is_dir()
        done = subprocess.run(
            [sys.executable, "build.py", "completion", "bash"],
            cwd=ROOT,
            capture_output=True,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
        assert done.returncode == 0
        assert {p.name for p in tmp_path.iterdir()} == {kept.name, "fp4forge-defect-1.txt"}
    finally:
        alive.kill()
        alive.wait()


def test_two_folders_at_once_do_not_take_each_other(tmp_path: Path) -> None:
    lost: list[Path] = []

    def work() -> None:
        for _ in range(50):
            with scratch.folder(tmp_path, "x.") as made:
                (made / "file").touch()
                if not (made / "file").exists():
                    lost.append(made)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == [] and list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "file"
    files.replace(path, "old ×")
    path.chmod(0o600)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            files.replace(path, "new")
    assert path.read_text() == "old ×"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    stale = path.with_name(".file.x.partial")
    stale.touch()
    os.utime(stale, (0, 0))
    (tmp_path / "link").symlink_to(path)
    files.replace(tmp_path / "link", b"new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    assert (tmp_path / "link").is_symlink() and not stale.exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b"[" * 5000, b'{"sha256": 1}', b"\xff"])
def test_a_damaged_ledger_cache_is_reported_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(b"device code")
    found = ((), (Ptx("sm_80", ("kernel",)),))
    monkeypatch.setattr(cubins, "_check", lambda _: None)
    monkeypatch.setattr(cubins, "_extract", lambda *_: found)
    said: list[str] = []
    code = cubins.read(file, tmp_path / "cache", said.append)
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage)
    assert cubins.read(file, tmp_path / "cache", said.append) == code
    assert sum("is damaged: x.so is read again" in line for line in said) == 1
    assert kept.read_bytes() == whole
    monkeypatch.setattr(cubins, "_extract", lambda *_: pytest.fail("the cache is not used"))
    assert cubins.read(file, tmp_path / "cache", said.append) == code
    assert asdict(code)["sha256"] == hashlib.sha256(b"device code").hexdigest()


def test_a_damaged_ledger_of_a_plan_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "STATE", tmp_path)
    built: list[str] = []

    def export(target: str, name: str, kept: Path, *_: object) -> None:
        built.append(target)
        kept.write_text('{"groups": {}, "gpus": {}}')

    monkeypatch.setattr(build, "_export_stage", export)
    plan: Any = SimpleNamespace(id="0123456789ab")
    said: list[str] = []
    whole = build.ledger(plan, tmp_path, BuildOptions(), said.append)
    (tmp_path / "ledgers" / "0123456789ab.json").write_bytes(whole[:10])
    assert build.ledger(plan, tmp_path, BuildOptions(), said.append) == whole
    assert build.ledger(plan, tmp_path, BuildOptions(), said.append) == whole
    assert len(built) == 2
    assert "is not JSON" in said[0] and "making it again" in said[0]


def blob(layout: OciLayout, content: bytes) -> dict[str, Any]:
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    layout.path(digest).parent.mkdir(parents=True, exist_ok=True)
    layout.path(digest).write_bytes(content)
    kind = "application/vnd.oci.image.manifest.v1+json" if content[:1] == b"{" else "layer"
    return {"digest": digest, "size": len(content), "mediaType": kind}


def test_blobs_that_were_cut_are_removed_and_the_others_stay(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path)
    # The configuration is JSON as a manifest is, with another "config" in it.
    settings = b'{"os": "linux", "config": {"Env": ["PATH=/bin"]}}'
    config, layer, other = (blob(layout, text) for text in (settings, b"layer" * 99, b"other"))
    image = blob(layout, json.dumps({"config": config, "layers": [layer, other]}).encode())
    index = blob(layout, json.dumps({"manifests": [image]}).encode())["digest"]
    assert layout.drop_cut(index) == []
    layout.path(layer["digest"]).write_bytes(b"lay")
    layout.path(other["digest"]).unlink()
    assert set(layout.drop_cut(index)) == {layer["digest"], other["digest"]}
    assert not layout.path(layer["digest"]).exists() and layout.path(config["digest"]).exists()
    layout.path(image["digest"]).write_bytes(b"{" * image["size"])
    assert layout.drop_cut(index) == [image["digest"]]
    layout.path(index).write_bytes(b"")
    assert layout.drop_cut(index) == [index]


def test_a_pipe_without_a_reader_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        files.replace(tmp_path / "pipe", "x")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.replace(tmp_path / "pipe", "x")
    assert os.read(reader, 9) == b"x"
    os.close(reader)


def test_a_record_of_another_name_is_not_followed_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = dict.fromkeys(("model", "served_name", "image", "release", "url"), "")
    more |= dict.fromkeys(("ssh_config", "digest", "split"), "") | {"hosts": ["a"]}
    for module, file in ((deployment, "deployment.json"), (lifecycle, "cluster.json")):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "state")
        files.replace(tmp_path / "state/x" / file, json.dumps(more | {"name": str(tmp_path)}))
        with pytest.raises(ServingError, match="name: '/"):
            module.load("x")
        files.replace(tmp_path / "state/x" / file, json.dumps(more | {"name": "x"}))
        assert module.load("x").folder == tmp_path / "state/x"


@pytest.mark.parametrize(
    "spoilt",
    [
        {"hosts": []},
        {"hosts": ["a", ""]},
        {"hosts": ["-oProxyCommand=touch x"]},
        {"hosts": ["a\n"]},
        {"ssh_config": "\x00"},
        {"model": "a\nb"},
    ],
)
def test_a_clusters_record_gives_ssh_no_other_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: dict[str, Any]
) -> None:
    fields = ("name", "ssh_config", "url", "image", "digest", "model", "split")
    whole = dict.fromkeys(fields, "x") | {"hosts": ["me@a"]}
    monkeypatch.setattr(lifecycle, "FOLDER", tmp_path)
    files.replace(tmp_path / "x/cluster.json", json.dumps(whole))
    assert lifecycle.load("x").hosts == ["me@a"]
    files.replace(tmp_path / "x/cluster.json", json.dumps(whole | spoilt))
    with pytest.raises(ServingError, match=r"cluster\.json: "):
        lifecycle.load("x")


def test_notes_of_verified_images_are_kept_and_survive_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "STATE", tmp_path)
    verified.record("a/b", "sha256:1")
    verified.record("c/d", "sha256:1")
    assert verified.here("a/b", "sha256:1") and verified.here("c/d", "sha256:1")
    (tmp_path / "verified" / "1").write_bytes(b"a/\xff")
    assert not verified.here("a/b", "sha256:1")
    verified.record("a/b", "sha256:1")
    assert verified.here("a/b", "sha256:1")
    note = tmp_path / "verified" / "2"
    for folder in (True, False):
        (note / "x").mkdir(parents=True) if folder else os.mkfifo(note)
        assert not verified.here("a/b", "sha256:2")
        verified.record("a/b", "sha256:2")
        assert verified.here("a/b", "sha256:2")
        note.unlink()


class Vanishing:
    """An engine from which another process removes what this one has just listed."""

    def __init__(self) -> None:
        self.images = self.containers = self.api = self

    def __call__(self, **_: object) -> list[dict[str, Any]]:
        return [{"RepoTags": None, "RepoDigests": ["a/b@sha256:" + "1" * 64]}]

    def remove(self, *_: object, **__: object) -> None:
        from docker.errors import ImageNotFound

        raise ImageNotFound("it is gone")

    create = get = remove


def test_an_image_that_another_process_removes_is_no_failure() -> None:
    client: Any = Vanishing()
    client.api = SimpleNamespace(images=client)
    engine.retire(client, "a/b", "sha256:2", {})
    engine.forget(client, "a/b")
    engine.discard(client)
    with pytest.raises(Exception, match="does not have a/b any more"):
        acquire.records(client, "a/b")


def test_a_list_of_images_survives_another_process_that_removes_one() -> None:
    """Docker 26.1 with the containerd store: the list fails while an image goes."""
    from docker.errors import NotFound

    answers: list[Any] = [NotFound("content digest sha256:1: not found")] * 2 + [[{"Id": "1"}]]

    def listing(filters: dict[str, Any]) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = SimpleNamespace(api=SimpleNamespace(images=listing))
    assert engine.images(client, ["a=b"]) == [{"Id": "1"}]
    answers += [NotFound("gone")] * 3
    with pytest.raises(NotFound):
        engine.images(client, ["a=b"])


@pytest.mark.parametrize("spoil", ["cut", "changed", "pipe"])
def test_a_compiled_template_that_was_spoilt_is_compiled_anew(spoil: str, tmp_path: Path) -> None:
    def rendered() -> str:
        loader = jinja2.DictLoader({"t": "{{ a }} is right"})
        cache = CheckedTemplateCache(tmp_path / "templates")
        return jinja2.Environment(loader=loader, bytecode_cache=cache).get_template("t").render(a=1)

    assert rendered() == "1 is right"
    (kept,) = (tmp_path / "templates").iterdir()
    whole = kept.read_bytes()
    for length in range(0, len(whole), 16) if spoil == "cut" else (0,):
        kept.unlink()
        if spoil == "pipe":
            os.mkfifo(kept)
        else:
            kept.write_bytes(whole[:length] or whole.replace(b"right", b"wrong"))
        assert rendered() == "1 is right"
        if spoil != "pipe":
            assert kept.read_bytes() == whole
