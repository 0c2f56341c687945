"""No control character of a foreign text reaches a terminal or a generated file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from fp4forge.checks.image_page import ledger_page
from fp4forge.core import console
from fp4forge.core.console import Console
from fp4forge.core.text import as_json, block, shown, steers, without_secrets
from fp4forge.kernels.cubins import DeviceCode
from fp4forge.kernels.ledger import File, Ledger

ROOT = Path(__file__).resolve().parents[2]
EVIL = "\x1b[31mred\x1b]0;title\x07 \x9b2J \x7f \u202egnp.exe \ud800 [/bold] [red] :smile: \u2028"


def test_what_is_shown_is_one_line_that_steers_nothing() -> None:
    text = shown(f"first\r\nsecond\t{EVIL}")
    assert text.isprintable()
    assert text.startswith("first second \\x1b[31mred\\x1b]0;title\\x07 \\x9b2J \\x7f \\u202egnp")
    assert "\\ud800" in text
    assert shown("naïve × 5 ≥ 4 日本語 👩‍🚀") == "naïve × 5 ≥ 4 日本語 👩‍🚀"


def test_an_absurd_length_is_cut_and_said() -> None:
    assert shown("a" * 10_000_000, 20) == "a" * 20 + "… (10,000,000 characters)"
    assert block("a\n" * 5, 4) == "a\na\n… (10 characters)"
    assert block("a\n\tb") == "a\n    b"


def test_every_way_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Console()
    with terminal.step("ask") as step:
        step.report(EVIL)
        noted, end = "", time.monotonic() + 20
        while "..." not in noted and time.monotonic() < end:
            time.sleep(0.1)
            noted += capsys.readouterr().err
        step.detail = EVIL
    terminal.say(EVIL)
    console.print_rows([(EVIL, EVIL)])
    console.print_json({EVIL: EVIL})
    said = capsys.readouterr()
    for text in (noted, said.out, said.err):
        assert not steers(text.replace("\n", "")), text
        assert "[/bold] [red] :smile:" in text
    assert said.err.count("\\x1b[31mred") == 2


def test_json_is_strict_and_holds_no_control_character() -> None:
    text = as_json({"a": [float("inf"), float("nan"), 1.5], "b": EVIL})
    assert json.loads(text) == {"a": [None, None, 1.5], "b": EVIL}
    assert text.isascii() and not steers(text.replace("\n", ""))


def test_secrets_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCCACHE_S3_KEY", "a-secret-value")
    text = without_secrets(
        "https://me:pw@host/x a-secret-value Authorization: Bearer abc.def-ghi hf_abcdefghijklmn"
        " password='hunter2' --arch sm121"
    )
    assert text == (
        "https://...@host/x <SCCACHE_S3_KEY> Authorization: Bearer ... hf_..."
        " password=... --arch sm121"
    )


def test_a_page_holds_no_control_character() -> None:
    found = Ledger(EVIL, (File(EVIL, DeviceCode("0" * 64, (), ())),))
    page = ledger_page(found)
    assert "\\x1b[31mred" in page
    assert not steers(page.replace("\n", ""))


def evil_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo(f"\x1b[31m{chr(0x202E)}"))
    return path


def evil_wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("\x1b[31m/x.so", b"\x7fELF")
    return path


def evil_files(folder: Path) -> list[list[str]]:
    """Command lines, each over a file whose content or name steers a terminal."""
    named = folder / "\x1b[31m\u202e.log"
    named.write_text(f"KeyError: {EVIL}.moe.moe.\n".encode("utf-8", "replace").decode())
    labels = {
        "Config": {"Image": EVIL, "Labels": {EVIL: EVIL}, "Cmd": [EVIL]},
        "Mounts": [{"Source": EVIL, "Destination": "/dist-packages/vllm/" + EVIL}],
    }
    text = json.dumps(labels).replace("\\ud800", "")
    (folder / "inspect.json").write_text(text)
    (folder / "compose.yaml").write_text('services: {a: {image: "\\e[31m", command: "\\e[31m"}}')
    return [
        ["serve", "doctor", "--logs", str(named), "--inspect", str(folder / "inspect.json")],
        ["serve", "doctor", "--compose", str(folder / "compose.yaml")],
        ["unbundle", str(evil_tar(folder / "bundle")), "-o", str(folder / "out")],
        ["ledger", str(evil_wheel(folder / "x.whl"))],
        ["checkpoint", "inspect", str(named)],
    ]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_every_edge(tmp_path: Path, number: int, flag: list[str]) -> None:
    line = [*evil_files(tmp_path)[number], *flag]
    done = subprocess.run(
        [sys.executable, "build.py", *line],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"DOCKER_HOST": "tcp://127.0.0.1:9"},
    )
    assert done.returncode not in (0, 1, 70)
    for said in (done.stdout, done.stderr):
        text = said.decode()
        assert not steers(text.replace("\n", "")), text
    if number != 1:  # of a compose file only the findings are shown
        assert b"[31m" in done.stdout + done.stderr
