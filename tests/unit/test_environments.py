"""Odd environments end in a result or in one message, never in a traceback."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fp4forge.oci import buildkit

ROOT = Path(__file__).resolve().parents[2]
PLAN = ("--arch", "sm121", "--dry-run", "--json")
EXPLAIN = ("arch", "explain", "12.0f")


def run(
    arguments: tuple[str | bytes, ...],
    environment: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*prefix, sys.executable, str(ROOT / "build.py"), *arguments],
        capture_output=True,
        cwd=ROOT,
        env=os.environ if environment is None else environment,
        preexec_fn=before,
    )
    for word in (b"Traceback", b"Exception ignored", b"defect"):
        assert word not in done.stderr, done.stderr
    return done


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ODD = {
    "COLUMNS": "x",
    "TERM": "nonsense",
    "TZ": "x",
    "NETRC": "/dev/zero",
    "PATH": "",
    "FP4FORGE_MIN_FREE_GB": "x",
    "SSL_CERT_FILE": "/a,b",
    "FP4FORGE_BUILD": "",
}


@pytest.mark.parametrize(
    "environment", [{}, {"LANG": "C"}, ASCII, ODD], ids=["none", "C", "ascii", "odd"]
)
def test_what_needs_no_machine_works_anywhere(environment: dict[str, str]) -> None:
    assert run(EXPLAIN, environment).returncode == 0


def test_a_user_without_name_and_home() -> None:
    prefix = ("unshare", "--user", "--map-user=4242", "--map-group=4242")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    assert run(PLAN, {"PATH": os.environ["PATH"]}, prefix).returncode == 0


@pytest.mark.parametrize(
    ("command", "state"),
    [
        ("mount --bind . . && mount -o remount,ro,bind .", ""),
        ("mount -t tmpfs -o size=8k none /mnt && ! cat /dev/zero > /mnt/fill 2>/dev/null", "/mnt"),
    ],
    ids=["read-only checkout", "full state"],
)
def test_a_plan_needs_no_room(command: str, state: str) -> None:
    prefix = ("unshare", "--mount", "bash", "-c", command + '; exec "$0" "$@"')
    if subprocess.run([*prefix, "true"], capture_output=True, cwd=ROOT).returncode:
        pytest.skip("no mounts here")
    environment = {**os.environ, **({"FP4FORGE_BUILD": state} if state else {})}
    done = run(PLAN, environment, prefix)
    assert done.returncode == 0, done.stderr


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run(PLAN, {**os.environ, "FP4FORGE_BUILD": str(tmp_path / "file")}).returncode == 0


def test_no_file_may_be_written(tmp_path: Path) -> None:
    def none() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    environment = {**os.environ, "FP4FORGE_BUILD": str(tmp_path)}
    assert run(PLAN, environment, before=none).returncode == 0
    done = run(("render",), environment, before=none)
    assert done.returncode == 13
    assert done.stderr.count(b"error: ") == 1


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()

    def leave() -> None:
        os.chdir(gone)
        shutil.rmtree(gone, ignore_errors=True)

    image = "h/x@sha256:" + "a" * 64
    done = run(("serve", "compose", "--model", "x", "--image", image), before=leave)
    assert done.returncode == 17
    assert b"no longer exists" in done.stderr


@pytest.mark.parametrize(
    "host", ["x://", "tcp://[::1", "unix:///etc/passwd", "ssh://nobody@[", "http://\x7f"]
)
def test_an_engine_that_cannot_be(host: str) -> None:
    done = run(("ledger", "nothing:1"), {**os.environ, "DOCKER_HOST": host})
    assert done.returncode == 4


def test_names_that_are_not_text() -> None:
    for name, code in ((b"/tmp/\xff\x1b[31m.so", 18), (b"a" * 5000, 19)):
        command: tuple[str, ...] = ("ledger",) if code == 18 else ("checkpoint", "inspect")
        done = run((*command, name))
        assert done.returncode == code
        assert b"\x1b" not in done.stderr


def test_a_ca_bundle_whose_name_has_a_comma(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / 'a, "b".pem'
    file.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    quoted = str(file).replace('"', '""')
    # As buildx reads it: a line of CSV.
    assert buildkit.secrets() == [f'--secret=id=ca,"src={quoted}"']
