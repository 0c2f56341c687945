"""Progress of steps, for people and on stderr alone."""

from __future__ import annotations

import time

import pytest

from fp4forge.core.console import Console


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
    console.say("done")
    said = capsys.readouterr()
    assert said.out == ""
    assert "object 1 of 94" in said.err
