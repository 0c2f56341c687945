"""Progress of steps, for people and on stderr alone."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from fp4forge.core.console import Console
from fp4forge.core.paths import ROOT


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


LOSES = """
import os, signal, sys
from fp4forge.core import interrupts
from fp4forge.core.console import Console

interrupts.install()

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

console = Console()
try:
    with console.step("push"):
        Finalised()
    print("went on")
    with console.step("verify"):
        print("verified")
except KeyboardInterrupt:
    with console.step("clean"):
        print("cleaned")
"""


TAKES = """
import os, signal
from fp4forge.core import interrupts
from fp4forge.core.console import Console

interrupts.install()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    interrupts.taken()
with Console().step("verdict") as step:
    step.report("going on")
    print("said")
"""


def test_an_interrupt_that_a_command_takes_as_its_end_is_not_raised_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKES], capture_output=True, text=True, cwd=ROOT, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "said\n"), done.stderr


def test_an_interrupt_that_a_finaliser_swallowed_stops_the_next_step() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOSES], capture_output=True, text=True, cwd=ROOT, timeout=30
    )
    assert "ignored" in done.stderr, "this Python no longer drops it: core/interrupts.py may go"
    assert done.stdout.split() == ["went", "on", "cleaned"], done.stderr
