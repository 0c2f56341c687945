"""Waits end: programs, builds and pulls that report nothing are given up."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fp4forge.core.errors import BuildError, RegistryError
from fp4forge.oci import buildkit, engine, process

SLEEPS = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]


def test_a_silent_program_is_ended() -> None:
    heard: list[str] = []
    begin = time.monotonic()
    with pytest.raises(RegistryError, match="reported nothing"):
        process.follow(SLEEPS, heard.append, 0.5)
    assert heard == ["begun\n"] and time.monotonic() - begin < 20


def test_a_program_that_reports_goes_on() -> None:
    code = "import time\nfor n in range(6): print(n, flush=True); time.sleep(0.2)"
    assert process.follow([sys.executable, "-c", code], lambda _: None, 10) == 0


def test_a_silent_build_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buildkit, "BUILD_SILENCE_SECONDS", 1)
    with pytest.raises(BuildError, match="reported nothing"):
        buildkit.build(SLEEPS, lambda _: None, buildkit.BuildOptions())


class Client:
    """An engine whose pull hangs after one event."""

    def __init__(self) -> None:
        self.api = self
        self.over = threading.Event()

    def pull(self, *_: Any, **__: Any) -> Iterator[dict[str, str]]:
        yield {"status": "Pulling", "id": "a"}
        self.over.wait(30)


def test_a_silent_pull_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PULL_SILENCE_SECONDS", 0.3)
    client, heard = Client(), list[str]()
    with pytest.raises(RegistryError, match="reported no progress"):
        engine.pull(client, "example/image", None, heard.append)
    client.over.set()
    assert heard == ["a Pulling"]


def test_errors_arrive_where_items_are_read() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("two")

    found: list[int] = []
    with pytest.raises(ValueError, match="two"):
        found.extend(process.timed(items(), 5))
    assert list(process.timed([1, 2], 5)) == [1, 2]
