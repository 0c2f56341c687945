"""The image's entrypoint: what would replace the image's code is found, whatever its name is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fp4forge.core.paths import IMAGE_FILES

SOURCE = IMAGE_FILES / "runtime/opt/fp4forge/bin/vllm"


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its functions, in an image that is a folder."""
    text = SOURCE.read_text()
    assert text.endswith("\nmain()\n")
    found: dict[str, Any] = {"__name__": "entrypoint"}
    exec(compile(text.removesuffix("main()\n"), str(SOURCE), "exec"), found)
    for name in ("site", "debian", "startup", "nvidia"):
        (tmp_path / name).mkdir()
    (tmp_path / "mounts").write_text("35 1 0:2 / / rw - overlay x rw\n")
    (tmp_path / "patches.json").write_text('{"files": {}}')
    found |= {
        "site": lambda: tmp_path / "site",
        "debian": lambda: tmp_path / "debian",
        "STARTUP": tmp_path / "startup",
        "RECORD": tmp_path / "patches.json",
        "PRELOAD": tmp_path / "ld.so.preload",
        "MOUNTS": tmp_path / "mounts",
    }
    library = tmp_path / "site/nvidia/cu13/lib/libcudart.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "python3.zip"), str(tmp_path / "site")])
    monkeypatch.setattr(os, "__file__", str(tmp_path / "site" / "os.py"))
    for name in (*found["CODE"], "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    return SimpleNamespace(folder=tmp_path, **found)


def touch(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()

    return make


def mount(point: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        place = point.replace("SITE", f"{folder}/site").replace("FOLDER", str(folder))
        line = f"36 35 0:3 / {place} rw - ext4 /dev/x rw\n"
        (folder / "mounts").write_bytes(line.encode(errors="surrogateescape"))

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (touch("site/x.pth"), "x.pth"),
        (touch("site/sitecustomize/__init__.py"), "sitecustomize"),
        (touch("site/usercustomize.pyc"), "usercustomize.pyc"),
        (touch("site/sitecustomize.cpython-313-x86_64-linux-gnu.so"), "sitecustomize.cpython"),
        (lambda folder: (folder / "site/x.pth").mkdir(), "x.pth"),
        (touch("python3.zip"), "python3.zip"),
        (touch("ld.so.preload"), "ld.so.preload"),
        (mount("SITE/torch"), "site/torch"),
        (mount("SITE/a\\040b"), "site/a b"),
        (mount("SITE/a\x0b\x1c\x85\x1b[31m\u202e"), "site/a"),
        (mount("SITE/\udcff\udc9b"), "site/"),
        (mount("FOLDER/debian/torch"), "debian/torch"),
        (mount("FOLDER/python3.zip"), "python3.zip"),
        (mount("FOLDER/ld.so.preload"), "ld.so.preload"),
    ],
)
def test_what_would_replace_code_is_found(
    entry: Any, make: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.replaced() == {}
    make(entry.folder)
    assert any(said in name for name in entry.replaced())
    with pytest.raises(SystemExit) as ended:
        entry.refuse_replaced()
    told = capsys.readouterr().err
    assert ended.value.code == 78
    assert all(line.isprintable() for line in told.splitlines()) and said in told


@pytest.mark.parametrize("point", ["/etc/hosts", "/proc", "/", "/usr/bin/nvidia-smi", "/dev/shm"])
def test_what_a_runtime_mounts_is_no_replacement(entry: Any, point: str) -> None:
    mount(point)(entry.folder)
    assert entry.replaced() == {}


@pytest.mark.parametrize(
    "name", ["PYTHONPYCACHEPREFIX", "PYTHONPATH", "LD_AUDIT", "OPENSSL_CONF", "GCONV_PATH"]
)
def test_variables(entry: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "/x\x1b[31m")
    assert [found.partition("=")[0] for found in entry.replaced()] == [name]


def test_libraries_before_the_images(entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = entry.folder / "nvidia"
    (driver / "libcuda.so.1").touch()
    own = entry.folder / "site/nvidia/cu13/lib"
    system = f"/usr/lib/{os.uname().machine}-linux-gnu"
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{driver}:/nowhere:{own}:{system}:/etc/passwd")
    assert entry.replaced() == {}
    (driver / "libcudart.so.13").touch()
    assert str(driver) in entry.replaced()
    monkeypatch.chdir(driver)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere:")
    assert "." in entry.replaced()


@pytest.mark.parametrize("kind", ["pipe", "folder", "bytes", "steers", "empty", "none"])
def test_a_key_file_that_is_none(
    entry: Any, monkeypatch: pytest.MonkeyPatch, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = entry.folder / "key\x1b[31m"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "none":
        path.write_bytes({"bytes": b"\xff", "steers": b"a\x1b[31m", "empty": b"\n"}[kind])
    monkeypatch.setenv(entry.KEY_FILE, str(path))
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        entry.take_key()
    told = capsys.readouterr().err
    assert ended.value.code == 78 and told.count("\n") == 1 and told.rstrip().isprintable()
    assert time.monotonic() - start < 30  # a busy machine; a pipe is waited for for ever


@pytest.mark.parametrize(
    ("args", "model"),
    [
        (["serve", "/models/a", "--port", "1"], "/models/a"),
        (["serve", "--model", "/models/a"], "/models/a"),
        (["serve", "--port", "1", "--model=/models/a"], "/models/a"),
        (["serve", "--model"], ""),
        (["serve"], ""),
    ],
)
def test_the_model_that_is_served(entry: Any, args: list[str], model: str) -> None:
    assert entry.model_of(args) == model


SEED = 'import sys; print(*sys.argv[1:], file=open("{}", "w"))'


@pytest.fixture
def warm(entry: Any, tmp_path: Path) -> Any:
    """The entrypoint of an image with a warm layer, and a program that notes its arguments."""
    names = entry.seed_caches.__globals__
    program = tmp_path / "warm.py"
    program.write_text(SEED.format(tmp_path / "said"))
    names |= {"WARM": tmp_path / "warm", "WARM_PROGRAM": str(program)}
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm/key.json").write_text("{}")
    return entry


def test_caches_are_seeded_before_the_server(warm: Any, tmp_path: Path) -> None:
    warm.seed_caches(["serve", "-model"])
    assert not (tmp_path / "said").exists()
    warm.seed_caches(["serve", "/models/a"])
    layer = tmp_path / "warm"
    wanted = f"seed {warm.CACHES} {layer} --model=/models/a\n"
    assert (tmp_path / "said").read_text() == wanted


def test_without_a_warm_layer_nothing_runs(warm: Any, tmp_path: Path) -> None:
    (tmp_path / "warm/key.json").unlink()
    warm.seed_caches(["serve", "/models/a"])
    assert not (tmp_path / "said").exists()


@pytest.mark.parametrize(
    "text", ["syntax error", "import time; time.sleep(60)", "raise SystemExit(9)"]
)
def test_a_layer_that_fails_stops_no_start(warm: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "warm.py").write_text(text)
    warm.seed_caches.__globals__["WARM_SECONDS"] = 0.5
    warm.seed_caches(["serve", "/models/a"])
