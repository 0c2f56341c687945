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
        out = err = ""
        end = time.monotonic() + 20
        while "object 1 of 94" not in err and time.monotonic() < end:
            time.sleep(0.1)
            said = capsys.readouterr()
            out, err = out + said.out, err + said.err
    assert out == ""
    assert "object 1 of 94" in err
