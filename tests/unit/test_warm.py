"""Compile caches: packed with their key, seeded only where the key is equal, never over a file."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fp4forge.image.runtime.opt.fp4forge import warm

PROGRAM = str(warm.__file__)
RESULTS = {
    "vllm/torch_compile_cache/ab12/rank_0_0/model": b"graph",
    "vllm/torch_compile_cache/torch_aot_compile/cd/inductor_cache/x.py": b"code",
    "triton/ABC/kernel.cubin": b"\x7fELF",
    "flashinfer/0.6/121a/cached_ops/m/m.so": b"library",
    "flashinfer/0.6/121a/cached_ops/.ninja_log": b"# ninja log",
    "flashinfer/autotune/store.json": b"{}",
}
OTHERS = {
    "vllm/torch_compile_cache/ab12/rank_0_0/cache_key_factors.json": b'{"VLLM_API_KEY": "secret"}',
    "vllm/assets/picture.png": b"",
    "vllm/torch_compile_cache/a.lock": b"",
    "triton/tmp.pid_1_a/kernel.cubin": b"half",
    "flashinfer/0.6/121a/flashinfer_jit.log": b"",
    "flashinfer/cubins/a.cubin": b"",
    "huggingface/token": b"hf_secret",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with one GPU, a model and the caches of a server that was started once."""
    here = SimpleNamespace(
        folder=tmp_path,
        caches=tmp_path / "caches",
        layer=tmp_path / "layer",
        model=tmp_path / "model",
        bin=tmp_path / "bin",
        plan=tmp_path / "plan.json",
    )
    for name in (*RESULTS, *OTHERS):
        path = here.caches / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((RESULTS | OTHERS)[name])
        os.utime(path, (1_700_000_000.5, 1_700_000_000.5))
    (here.caches / "triton/ABC/kernel.cubin").chmod(0o700)
    (here.caches / "triton/link").symlink_to("/etc/passwd")
    (here.caches / "triton/folder").symlink_to(tmp_path)
    os.mkfifo(here.caches / "triton/pipe")
    here.model.mkdir()
    (here.model / "config.json").write_text("{}")
    (here.model / "hf_quant_config.json").write_text('{"quant_algo": "NVFP4"}')
    here.bin.mkdir()
    here.plan.write_text('{"release": "1.0", "id": "0123456789ab"}')
    smi(here, "NVIDIA GB10, 12.1, 580.95.05")
    monkeypatch.setenv("PATH", f"{here.bin}:/usr/bin:/bin")
    monkeypatch.setattr(warm, "PLAN", here.plan)
    monkeypatch.setattr(warm, "SPARE_BYTES", 0)
    for part in ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(part, raising=False)
    for part in ("FLASHINFER_WORKSPACE_BASE", "HUMMING_CACHE_DIR"):
        monkeypatch.delenv(part, raising=False)
    return here


def smi(here: Any, *rows: str) -> None:
    program = here.bin / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    program.chmod(0o755)


def collect(here: Any, layer: Path | None = None) -> str:
    return warm.collect(here.caches, layer or here.layer, str(here.model))


def seed(here: Any) -> str:
    return warm.seed(here.caches, here.layer, str(here.model))


def cold(here: Any) -> None:
    """Moves the caches away: the next server starts without."""
    here.caches.rename(here.folder / "before")


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_only_compiled_results_are_packed(machine: Any) -> None:
    assert "6 files" in collect(machine)
    with tarfile.open(machine.layer / "cache.tar") as tar:
        members = tar.getmembers()
    assert {member.name for member in members} == set(RESULTS)
    # Times are what ninja compares; owners and the time of day are not in it.
    assert {(m.mtime, m.uid, m.uname, m.type) for m in members} == {
        (1_700_000_000, 0, "", tarfile.REGTYPE)
    }
    assert sorted(p.name for p in machine.layer.iterdir()) == ["cache.tar", "key.json"]
    assert b"secret" not in (machine.layer / "cache.tar").read_bytes()


def test_the_same_caches_give_the_same_bytes(machine: Any) -> None:
    again = machine.folder / "again"
    collect(machine)
    collect(machine, again)
    assert files(machine.layer) == files(again)


def test_an_equal_key_seeds(machine: Any) -> None:
    collect(machine)
    cold(machine)
    assert seed(machine).startswith("6 files")
    assert files(machine.caches) == RESULTS
    kernel = machine.caches / "triton/ABC/kernel.cubin"
    assert kernel.stat().st_mode & 0o777 == 0o755 and kernel.stat().st_mtime == 1_700_000_000
    assert seed(machine).startswith("0 files")


def test_files_that_are_there_stay(machine: Any) -> None:
    collect(machine)
    cold(machine)
    own = machine.caches / "triton/ABC/kernel.cubin"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"own")
    assert seed(machine).startswith("5 files") and own.read_bytes() == b"own"


def other_plan(here: Any) -> None:
    here.plan.write_text('{"release": "1.0", "id": "ba9876543210"}')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda here: smi(here, "NVIDIA B200, 12.1, 580.95.05"), "the GPU of"),
        (lambda here: smi(here, "NVIDIA GB10, 12.0, 580.95.05"), "the compute capability of"),
        (lambda here: smi(here, "NVIDIA GB10, 12.1, 590.1"), "the driver of"),
        (other_plan, "the software of"),
        (lambda here: (here.model / "config.json").write_text("{ }"), "model's config.json of"),
        (lambda here: (here.model / "hf_quant_config.json").unlink(), "hf_quant_config.json of"),
        (lambda here: setattr(here, "caches", here.folder / "elsewhere"), "the cache folders of"),
    ],
)
def test_another_key_is_refused_by_its_name(machine: Any, change: Any, said: str) -> None:
    collect(machine)
    cold(machine)
    change(machine)
    with pytest.raises(warm.CannotWarm, match=said) as refused:
        seed(machine)
    assert refused.value.code == warm.DIFFERS and "build.py warm" in str(refused.value)
    assert not machine.caches.exists()


def test_gpus_of_one_kind_are_one(machine: Any) -> None:
    collect(machine)
    smi(machine, *["NVIDIA GB10, 12.1, 580.95.05"] * 2)
    assert seed(machine)


def test_another_folder_of_the_model_is_said(machine: Any) -> None:
    collect(machine)
    machine.model = machine.model.rename(machine.folder / "renamed")
    assert "torch.compile runs all the same" in seed(machine)


@pytest.mark.parametrize("action", [collect, seed])
def test_without_a_gpu(machine: Any, action: Any) -> None:
    collect(machine, machine.layer if action is seed else machine.folder / "first")
    (machine.bin / "nvidia-smi").unlink()
    with pytest.raises(warm.CannotWarm, match="no GPU") as refused:
        action(machine)
    assert refused.value.code == warm.NO_GPU


def test_nothing_was_compiled(machine: Any) -> None:
    machine.caches = machine.folder / "empty"
    with pytest.raises(warm.CannotWarm, match="answer once"):
        collect(machine)
    assert not machine.layer.exists()


def test_a_layer_is_not_replaced(machine: Any) -> None:
    collect(machine)
    before = files(machine.layer)
    with pytest.raises(warm.CannotWarm, match="exists already"):
        collect(machine)
    assert files(machine.layer) == before
    assert not list(machine.folder.glob(".fp4forge-*"))


def spoil(here: Any, *members: tuple[str, dict[str, Any]]) -> None:
    """A layer whose archive has other members, under a key that fits."""
    with tarfile.open(here.layer / "cache.tar", "w") as tar:
        for name, fields in members:
            member = tarfile.TarInfo(name)
            member.size = 1
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    key = json.loads((here.layer / "key.json").read_text())
    key["archive"] = warm.digest(here.layer / "cache.tar")
    (here.layer / "key.json").write_text(json.dumps(key))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("triton/../../escaped", {}),
        ("/triton/escaped", {}),
        ("triton//x", {}),
        ("triton/./x", {}),
        ("huggingface/token", {}),
        ("vllm/assets/x", {}),
        ("triton/x", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}),
        ("triton/x", {"type": tarfile.LNKTYPE, "linkname": "triton/y", "size": 0}),
        ("triton/x", {"type": tarfile.DIRTYPE, "size": 0}),
        ("triton/x", {"type": tarfile.FIFOTYPE, "size": 0}),
        ("triton/x", {"type": tarfile.CHRTYPE, "size": 0}),
        ("vllm/torch_compile_cache/a/cache_key_factors.json", {}),
    ],
)
def test_a_hostile_member_leaves_everything_as_it_was(
    machine: Any, name: str, fields: dict[str, Any]
) -> None:
    collect(machine)
    cold(machine)
    spoil(machine, ("triton/good", {}), (name, fields))
    with pytest.raises(warm.CannotWarm, match="not a compiled result"):
        seed(machine)
    assert not machine.caches.exists()


def test_a_name_twice(machine: Any) -> None:
    collect(machine)
    cold(machine)
    spoil(machine, ("triton/x", {}), ("triton/x", {}))
    with pytest.raises(warm.CannotWarm, match="twice"):
        seed(machine)


def test_a_link_in_the_caches_is_not_followed(machine: Any) -> None:
    collect(machine)
    cold(machine)
    outside = machine.folder / "outside"
    outside.mkdir()
    (machine.caches / "triton").mkdir(parents=True)
    (machine.caches / "triton/ABC").symlink_to(outside)
    with pytest.raises(warm.CannotWarm, match="leads out"):
        seed(machine)
    assert files(outside) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 2}',
        b"\xff",
        b"[" * 70_000,
        b'{"format": 1, "gpu": ["x"]}',
    ],
)
def test_a_damaged_key(machine: Any, content: bytes) -> None:
    collect(machine)
    (machine.layer / "key.json").write_bytes(content)
    with pytest.raises(warm.CannotWarm, match="damaged") as refused:
        seed(machine)
    assert refused.value.code == warm.UNSOUND


def test_a_pipe_is_not_waited_for(machine: Any) -> None:
    collect(machine)
    (machine.layer / "key.json").unlink()
    os.mkfifo(machine.layer / "key.json")
    with pytest.raises(warm.CannotWarm, match="damaged"):
        seed(machine)


@pytest.mark.parametrize("folders", [{}, {"triton": "/home/vllm/.cache/../../etc"}])
def test_a_key_names_the_folders_of_its_caches(machine: Any, folders: dict[str, str]) -> None:
    collect(machine)
    key = json.loads((machine.layer / "key.json").read_text())
    (machine.layer / "key.json").write_text(json.dumps(key | {"caches": folders}))
    with pytest.raises(warm.CannotWarm, match="damaged"):
        seed(machine)


def test_a_damaged_archive(machine: Any) -> None:
    collect(machine)
    with (machine.layer / "cache.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"spoilt")
    with pytest.raises(warm.CannotWarm, match="does not match"):
        seed(machine)


def test_a_full_disk_is_left_alone(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(machine)
    cold(machine)
    monkeypatch.setattr(warm, "SPARE_BYTES", 1 << 60)
    with pytest.raises(warm.CannotWarm, match="free"):
        seed(machine)
    assert files(machine.caches) == {}


def test_what_killed_runs_left_is_removed_when_it_is_old(machine: Any) -> None:
    collect(machine)
    cold(machine)
    folder = machine.caches / "triton/ABC"
    folder.mkdir(parents=True)
    old, new = folder / ".fp4forge-old", folder / ".fp4forge-new"
    for path in (old, new):
        path.write_text("half")
    beside = machine.folder / ".fp4forge-killed"
    (beside / "layer").mkdir(parents=True)
    for path in (old, beside):
        os.utime(path, (1, 1))
    seed(machine)
    assert not old.exists() and new.exists()
    collect(machine, machine.folder / "second")
    assert not beside.exists()


def test_servers_that_start_together(machine: Any) -> None:
    collect(machine)
    cold(machine)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: seed(machine), range(8)))
    assert files(machine.caches) == RESULTS


def test_folders_of_the_environment(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(machine.folder / "own"))
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(machine.folder / "base"))
    (machine.folder / "base/.cache").mkdir(parents=True)
    (machine.caches / "triton").rename(machine.folder / "own")
    (machine.caches / "flashinfer").rename(machine.folder / "base/.cache/flashinfer")
    assert "6 files" in collect(machine)


def test_vllms_own_folder_may_be_in_the_home_folder(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(machine.folder / "home"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", "~/vllm")
    (machine.folder / "home").mkdir()
    (machine.caches / "vllm").rename(machine.folder / "home/vllm")
    assert "6 files" in collect(machine)


def test_the_program_says_one_line(machine: Any) -> None:
    """As the entrypoint runs it: isolated, and whatever is wrong is one line and an exit code."""
    collect(machine)
    (machine.layer / "cache.tar").unlink()
    line = [sys.executable, "-IS", PROGRAM, "seed", str(machine.caches), str(machine.layer)]
    done = subprocess.run([*line, "--model=no\x1b[31m"], capture_output=True, text=True)
    assert done.returncode in (warm.NO_ACCESS, warm.UNSOUND)
    assert done.stderr.startswith("fp4forge: caches not seeded: ")
    assert done.stderr.count("\n") == 1 and done.stderr.rstrip().isprintable()


NINJA = """\
rule cc
  command = gcc -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
build m.o: cc {source}
"""


@pytest.mark.skipif(
    not (shutil.which("ninja") and shutil.which("gcc")), reason="NOT RUN: needs ninja and gcc"
)
@pytest.mark.parametrize("kept", [True, False])
def test_ninja_has_nothing_to_do(machine: Any, kept: bool) -> None:
    """FlashInfer has ninja look at each module: with other times it would compile all of them."""
    folder = machine.caches / "flashinfer/0.6/121a/cached_ops"
    source = machine.caches / "flashinfer/0.6/121a/generated/m.c"
    source.parent.mkdir()
    source.write_text("int f(void) { return 1; }")
    os.utime(source, (1_700_000_000, 1_700_000_000))
    (folder / "build.ninja").write_text(NINJA.format(source=source))

    def ninja() -> str:
        done = subprocess.run(["ninja", "-C", folder], capture_output=True, text=True, check=True)
        return done.stdout

    assert "[1/1]" in ninja()
    collect(machine)
    cold(machine)
    seed(machine)
    if not kept:
        os.utime(folder / "m.o", (2_000_000_000, 2_000_000_000))
    assert ("no work to do" in ninja()) == kept
