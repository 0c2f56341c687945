"""Runs the command line as a user's shell does, and checks what every failure must have."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from fp4forge import cli
from fp4forge.core.text import steers

LONGEST = 15.0  # seconds that a command may take on a busy machine, with the limits of the tests


@dataclass(frozen=True)
class Done:
    """What a command did; seconds of wall time."""

    code: int
    out: str
    err: str
    seconds: float


Command = Callable[..., Done]


def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, from its entry to its exit code: a start takes 0.5 s."""

    def run(*arguments: str) -> Done:
        kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        start, code = time.monotonic(), 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["build.py", *arguments])
            patch.setattr(sys, "stdout", sys.stdout)
            patch.setattr(sys, "stderr", sys.stderr)
            patch.setattr(threading, "excepthook", threading.excepthook)
            try:
                cli.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            finally:
                sys.stdout.flush()
                for number, handler in kept.items():
                    signal.signal(number, handler)
        out, err = capfd.readouterr()
        done = Done(code, out, err, time.monotonic() - start)
        check(done)
        return done

    return run


def check(done: Done) -> None:
    """No traceback, no defect, no control character, and an end in time."""
    said = done.out + done.err
    assert "Traceback" not in said, said
    assert done.code != 70, said
    steering = [line for line in said.split("\n") if steers(line)]
    assert not steering, ascii(steering)
    assert done.seconds < LONGEST, f"{done.seconds:.1f} s: {said}"
    if done.code and not done.out.startswith(("[", "{")):  # --json says it there
        assert "error: " in done.err, said


def environment(**more: str) -> dict[str, str]:
    """This process's environment for a program, without what a user may have set for fp4forge."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FP4FORGE_")}
    return kept | more
