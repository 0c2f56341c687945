"""The applier of patches, as it runs in the build: zero fuzz, hashes, messages."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fp4forge.cli.patch import show
from fp4forge.core import paths
from fp4forge.core.errors import DriftError, PatchError
from fp4forge.core.paths import IMAGE_FILES, ROOT
from fp4forge.core.text import steers
from fp4forge.inputs import locks
from fp4forge.inputs import patches as series

SCRIPT = IMAGE_FILES / "stages" / "apply_patches.py"
BEFORE = "".join(f"a{n} = {n}\n" for n in range(1, 21))
AFTER = BEFORE.replace("a10 = 10\n", "a10 = 11\n")
DIFF = """--- a/pkg/mod.py
+++ b/pkg/mod.py
@@ -7,7 +7,7 @@
 a7 = 7
 a8 = 8
 a9 = 9
-a10 = 10
+a10 = 11
 a11 = 11
 a12 = 12
 a13 = 13
"""


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    site = tmp_path / "in" / "usr/local/lib/python3/dist-packages"
    (site / "pkg").mkdir(parents=True)
    (site / "pkg" / "mod.py").write_text(BEFORE)
    record = {
        "id": "ten",
        "file": "ten.patch",
        "sha256": sha(DIFF),
        "files": [{"path": "pkg/mod.py", "before": sha(BEFORE), "after": sha(AFTER)}],
    }
    (tmp_path / "series.json").write_text(
        json.dumps({"package": "pkg", "version": "1", "patches": [record]})
    )
    (tmp_path / "ten.patch").write_text(DIFF)
    return tmp_path


def apply(tree: Path) -> subprocess.CompletedProcess[str]:
    site = "usr/local/lib/python3/dist-packages"
    return subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            "--series",
            str(tree / "series.json"),
            "--installed",
            str(tree / "in" / site),
            "--out",
            str(tree / "out" / site),
            "--record",
            str(tree / "out/opt/fp4forge/patches.json"),
        ],
        capture_output=True,
        text=True,
        env={"SOURCE_DATE_EPOCH": "0", "PATH": "/usr/bin:/bin"},
    )


def edit(tree: Path, change: Any) -> None:
    data = json.loads((tree / "series.json").read_text())
    change(data["patches"][0])
    (tree / "series.json").write_text(json.dumps(data))


def test_a_patch_is_applied_recorded_and_compiled(tree: Path) -> None:
    done = apply(tree)
    assert done.returncode == 0, done.stderr
    site = tree / "out/usr/local/lib/python3/dist-packages"
    assert (site / "pkg/mod.py").read_text() == AFTER
    record = json.loads((tree / "out/opt/fp4forge/patches.json").read_text())
    assert record["files"]["pkg/mod.py"] == {"before": sha(BEFORE), "after": sha(AFTER)}
    assert len(list(site.rglob("*.pyc"))) == 1
    assert (tree / "in/usr/local/lib/python3/dist-packages/pkg/mod.py").read_text() == BEFORE


def test_another_source_file_is_refused(tree: Path) -> None:
    (tree / "in/usr/local/lib/python3/dist-packages/pkg/mod.py").write_text(BEFORE + "more\n")
    done = apply(tree)
    assert done.returncode == 7
    assert "pkg/mod.py is not the file that the patch was made for" in done.stderr


def test_a_hunk_that_needs_fuzz_is_refused_by_name(tree: Path) -> None:
    moved = DIFF.replace(" a9 = 9\n", " b9 = 9\n").replace(" a13 = 13\n", " b13 = 13\n")
    (tree / "ten.patch").write_text(moved)
    edit(tree, lambda record: record.update(sha256=sha(moved)))
    done = apply(tree)
    assert done.returncode == 7
    assert "pkg/mod.py hunk 1 (line 7)" in done.stderr


def test_a_tampered_diff_is_refused(tree: Path) -> None:
    (tree / "ten.patch").write_text(DIFF.replace("= 11", "= 66"))
    done = apply(tree)
    assert done.returncode == 7
    assert "ten.patch is not the recorded diff" in done.stderr


def test_another_result_than_recorded_is_refused(tree: Path) -> None:
    edit(tree, lambda record: record["files"][0].update(after=sha("something else")))
    done = apply(tree)
    assert done.returncode == 7
    assert "afterwards" in done.stderr


def test_a_missing_file_is_refused(tree: Path) -> None:
    (tree / "in/usr/local/lib/python3/dist-packages/pkg/mod.py").unlink()
    done = apply(tree)
    assert done.returncode == 7
    assert "pkg/mod.py does not exist" in done.stderr


@pytest.mark.parametrize("version", series.versions("vllm"))
def test_committed_series_are_well_formed(version: str) -> None:
    found = series.load("vllm", version)
    assert found.patches or found.already_upstream or found.conflicts
    for patch in found.patches:
        assert patch.upstream.startswith(("vllm-project/", "none")), patch.id


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("patches: {", "not valid YAML"),
        ("series: []", "series is not a field"),
        ("patches: [{id: x}]", r"line 1: patches\[0\] has no 'file'"),
    ],
)
def test_malformed_series(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "vllm" / "1.0"
    folder.mkdir(parents=True)
    (folder / "series.yaml").write_text(text)
    monkeypatch.setattr(paths, "PATCHES", tmp_path)
    with pytest.raises(PatchError, match=says):
        series.load("vllm", "1.0")


def install() -> Any:
    """The build stage that installs wheels."""
    spec = importlib.util.spec_from_file_location("install", IMAGE_FILES / "stages" / "install.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_rules_leave_out(tmp_path: Path) -> None:
    """Files of another processor, and those for another CUDA that this one has too."""
    head = b"\x7fELF" + bytes(14)
    files = {
        "a/libx.so": head + bytes((62, 0)),
        "a/libarm.so": head + bytes((183, 0)),
        "a/kernel.cubin": head + bytes((190, 0)),
        "a/notes.txt": b"ELF for arm",
        "dsl/cu12/rt.so": b"",
        "dsl/cu13/rt.so": b"",
        "dsl/cu12/more/x": b"",
        "dsl/_ir.cu12.so": b"",
        "dsl/_ir.cu13.so": b"",
        "only/cu12/rt.so": b"",
        "cu12x/y": b"",
        "cu13x/y": b"",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    rules = [{"glob": "", "rule": name} for name in ("foreign-processor", "other-cuda")]
    gone = install().leave_out(tmp_path, rules, "linux/amd64", "13")
    assert {entry["path"]: entry["rule"] for entry in gone} == {
        "a/libarm.so": "foreign-processor",
        "dsl/_ir.cu12.so": "other-cuda",
        "dsl/cu12/rt.so": "other-cuda",
        "dsl/cu12/more/x": "other-cuda",
    }
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == files.keys() - {entry["path"] for entry in gone}


def test_globs_of_left_out_files() -> None:
    matcher = install().matcher

    def matches(glob: str, path: str) -> bool:
        return matcher(glob).fullmatch(path) is not None

    assert matches("**/*.a", "x/y/lib.a")
    assert matches("**/*.a", "lib.a")
    assert not matches("**/*.a", "x/lib.au")
    assert matches("pkg/**", "pkg/a/b")
    assert not matches("pkg/*", "pkg/a/b")
    assert not matches("pkg/**", "pkg2/a")


@pytest.mark.parametrize("version", series.versions("vllm"))
def test_a_proof_that_is_a_file_exists(version: str) -> None:
    proofs = {patch.id: patch.proof for patch in series.load("vllm", version).patches}
    assert all(proofs.values())
    lacking = [f"{i}: {p}" for i, p in proofs.items() if "/" in p and not (ROOT / p).is_file()]
    assert not lacking


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (None, "series.yaml does not exist"),
        (
            "patches: []\nconflicts: [{id: gemma, of: 1.0.0, why: moved, variants: [awq]}]\n",
            "waits for gemma",
        ),
    ],
)
def test_a_variant_whose_patches_are_not_written_is_refused(
    record: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As plain it would be published under the name of the patched one."""
    monkeypatch.setattr(paths, "PATCHES", tmp_path)
    if record:
        (tmp_path / "vllm/2.0").mkdir(parents=True)
        (tmp_path / "vllm/2.0/series.yaml").write_text(record)
    found = series.load("vllm", "2.0")
    assert found.variants == ("plain",)
    found.check("plain")
    with pytest.raises(PatchError, match=says) as caught:
        found.check("awq")
    assert "--variant plain" in caught.value.remedy


def test_a_diff_and_a_lock_that_are_not_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").mkdir()
    shutil.copytree(paths.PATCHES / "vllm/0.20.2", tmp_path / "vllm/0.20.2")
    monkeypatch.setattr(paths, "PATCHES", tmp_path)
    sequence = series.load("vllm", "0.20.2")
    patch = sequence.patches[0]
    file = sequence.folder / patch.file
    file.write_text(file.read_text() + "\x1b[31m\x9b\u202e")
    done = CliRunner().invoke(show, [patch.id, "--vllm", "0.20.2"])
    assert done.exit_code == 0 and "\\x1b[31m" in done.output
    assert not any(steers(line) for line in done.output.split("\n"))
    file.write_bytes(b"\xff")
    done = CliRunner().invoke(show, [patch.id, "--vllm", "0.20.2"])
    assert isinstance(done.exception, PatchError)
    assert "is not UTF-8" in done.exception.message
    monkeypatch.setattr(locks, "LOCKS", tmp_path)
    (tmp_path / locks.TOOLS).write_bytes(b"a\n\xff")
    with pytest.raises(DriftError, match="line 2 is not UTF-8"):
        locks.content(locks.TOOLS)
