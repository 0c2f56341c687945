"""No traceback, ever: what no code expected is one message, exit code 70 and a file to report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def main(before: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, after some code that spoils it."""
    code = f"import sys\n{before}\nfrom fp4forge.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


BROKEN = (
    "from fp4forge.maintain import matrix\n"
    "def rows(_): raise TypeError('no \\x1b[31m good: https://me:pw@host token=abcdefgh ' + S)\n"
    "matrix.rows = rows\n"
)


def test_a_defect_is_one_message_and_a_file_without_secrets(tmp_path: Path) -> None:
    done = main(
        "S = 'hunter2hunter2'\n" + BROKEN,
        "matrix",
        "--json",
        FP4FORGE_BUILD=str(tmp_path),
        MY_TOKEN="hunter2hunter2",
    )
    assert done.returncode == 70
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert "TypeError: no \\x1b[31m good" in done.stderr
    assert "defect in fp4forge" in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 70
    (report,) = (tmp_path / "defects").iterdir()
    assert str(report) in done.stderr
    text = report.read_text()
    assert "Traceback" in text and "matrix --json" in text and "Python 3." in text
    for secret in ("hunter2", "me:pw", "abcdefgh"):
        assert secret not in text + done.stderr + done.stdout


def test_details_go_to_stderr_on_request_and_elsewhere_if_the_state_cannot_be_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    place = {"FP4FORGE_BUILD": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    done = main("S = ''\n" + BROKEN, "matrix", **place)
    (report,) = tmp_path.glob("fp4forge-defect-*.txt")
    assert done.returncode == 70 and str(report) in done.stderr
    done = main("S = ''\n" + BROKEN, "matrix", FP4FORGE_DEBUG="1", **place)
    assert done.returncode == 70 and "Traceback" in done.stderr
    assert len(list(tmp_path.glob("*.txt"))) == 1


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    line = command.replace("BUILD", f"{sys.executable} build.py")
    return subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("(sleep 1; exec BUILD arch explain 12.0f) | true; exit ${PIPESTATUS[0]}", 141),
        ("(sleep 1; exec BUILD --help) | true; exit ${PIPESTATUS[0]}", 141),
        ("BUILD arch explain 12.0f --json > /dev/full", 13),
        ("BUILD --arch sm999 --json > /dev/full", 2),
        ("BUILD arch explain 12.0f >&-", 0),
        ("BUILD --arch sm999 2>&-", 2),
        ("BUILD --arch sm999 --json <&- >&- 2>&-", 2),
        ("BUILD --arch sm999 2> /dev/full", 2),
    ],
)
def test_streams_that_are_closed_full_or_left(command: str, code: int) -> None:
    done = shell(command)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def test_too_little_memory_is_no_defect(tmp_path: Path) -> None:
    broken = BROKEN.replace("TypeError(", "MemoryError(")
    done = main(f"S = ''\n{broken}", "matrix", FP4FORGE_BUILD=str(tmp_path))
    assert done.returncode == 17, done.stderr
    assert done.stderr.startswith("error: there is not enough memory")
    assert not (tmp_path / "defects").exists()


def test_an_end_of_file_that_nobody_expected_is_no_interrupt(tmp_path: Path) -> None:
    broken = BROKEN.replace("TypeError(", "EOFError(")
    done = main(f"S = ''\n{broken}", "matrix", FP4FORGE_BUILD=str(tmp_path))
    assert done.returncode == 70, done.stderr
    assert "EOFError" in done.stderr and "interrupted" not in done.stderr
