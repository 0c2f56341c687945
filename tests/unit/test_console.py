"""The closing table: whole digests on any width, steps with seconds and verdict."""

from __future__ import annotations

import re
import time

import pytest

from fp4forge.core.console import Console

DIGEST = "sha256:" + "0123456789abcdef" * 4


def test_the_table_shows_steps_and_whole_digests(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    console = Console()
    with console.step("build") as step:
        step.detail = "12 steps"
    console.table("fp4forge", [("digest", DIGEST)])
    said = capsys.readouterr().err
    assert "build" in said
    assert "12 steps" in said
    cells = "".join(re.sub(r"[^0-9a-f:sh]", "", line.split("│")[-2]) for line in said.splitlines()
                    if line.count("│") == 5 and "12 steps" not in line)  # fmt: skip
    assert DIGEST in cells


def test_a_failed_step_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with pytest.raises(ValueError), console.step("push"):
        raise ValueError
    assert "failed  push" in capsys.readouterr().err


def test_nothing_for_people_reaches_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with console.step("compile") as step:
        step.report("object 1 of 94")
        time.sleep(1.5)
    console.table("t", [])
    console.say("done")
    said = capsys.readouterr()
    assert said.out == ""
    assert "object 1 of 94" in said.err
