"""Machines that are reached by ssh: commands, files, and what each of them has."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import TransferError
from fp4forge.core.limits import PROGRAM_SECONDS
from fp4forge.core.text import shown

T = TypeVar("T")
PROBE = Path(__file__).with_name("probe.py")


class HostRoute(Struct, frozen=True):
    """The way from a machine to another one."""

    peer: str = ""
    to: str = ""
    interface: str = ""
    address: str = ""
    error: str = ""


class HostInterface(Struct, frozen=True):
    """An interface: MTU in bytes, speed in Mbit/s (0: unknown)."""

    mtu: int = 0
    speed: int = 0
    state: str = ""


class ProbedHost(Struct, frozen=True):
    """What ``probe.py`` says of a machine; memory in bytes: in all, and free."""

    name: str
    time: float
    docker: str
    compose: str
    gpus: str
    routes: list[HostRoute]
    interface: str
    address: str
    link: HostInterface
    rdma: dict[str, list[str]]
    image: list[str]
    model: dict[str, tuple[int, str]]
    memory: tuple[int, int]
    memlock: int
    taken: list[int]


class _Reached(Struct, frozen=True):
    error: str = ""


@dataclass(frozen=True)
class ClusterHost:
    """One machine."""

    address: str  # for ssh
    config: Path | None = None

    def line(self, *words: str) -> list[str]:
        """An ssh command line; each word is quoted for the shell there."""
        config = ["-F", str(self.config)] if self.config else []
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
        options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        return ["ssh", *config, *options, self.address, shlex.join(words)]

    def run(
        self, *words: str, given: str = "", seconds: float = PROGRAM_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program there.

        Args:
            words: the command line.
            given: standard input.
            seconds: how long it may take.

        Raises:
            TransferError: the machine cannot be reached, or does not answer in time.
        """
        try:
            done = subprocess.run(
                self.line(*words),
                input=given,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise TransferError(
                f"{self.address} did not finish '{words[0]}' within {seconds:.0f} s",
                remedy="look at that machine's load and disk; running again goes on",
            ) from None
        except OSError as error:
            raise TransferError(f"ssh cannot be started: {error.strerror}") from None
        if done.returncode == 255:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise TransferError(
                f"{self.address} cannot be reached: {shown(said[-1] if said else '', 300)}",
                rule="ssh must log in without a password (BatchMode)",
                remedy=f"ssh {self.address} true; names, keys and ports belong in ~/.ssh/config",
            )
        return done

    def ask(
        self, *words: str, given: str = "", seconds: float = PROGRAM_SECONDS, what: str = ""
    ) -> str:
        """What a program there prints; ``what`` names it in messages.

        Raises:
            TransferError: as ``run``, or it fails.
        """
        done = self.run(*words, given=given, seconds=seconds)
        if done.returncode != 0:
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            why = shown(said[-1] if said else "", 400)
            raise TransferError(
                f"{self.address}: {what or words[0]} fails: {why}",
                remedy="its log on that machine says more; running again goes on",
            )
        return done.stdout

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Writes a file there; it is never seen half written.

        Raises:
            TransferError: as ``ask``.
        """
        script = 'set -e; umask 077; mkdir -p "${1%/*}"; cat > "$1.new"; chmod "$2" "$1.new"'
        line = ("sh", "-c", f'{script}; mv "$1.new" "$1"', "sh", path, mode)
        self.ask(*line, given=text, what=f"writing {path}")

    def probe(self, request: dict[str, Any], shape: type[T]) -> T:
        """What ``probe.py`` says there.

        Raises:
            TransferError: as ``ask``, or the machine has no Python 3.
        """
        line = ("python3", "-", json.dumps(request))
        text = self.ask(*line, given=PROBE.read_text(), what="the probe in python3")
        last = text.strip().splitlines()[-1] if text.strip() else ""
        return reading.json(last, shape, f"the probe on {self.address}", TransferError)

    def reaches(self, address: str, port: int) -> str:
        """Why a port of another machine cannot be reached from there; empty if it can."""
        return self.probe({"connect": [address, port]}, _Reached).error


def each(hosts: list[ClusterHost], do: Callable[[ClusterHost], T]) -> list[T]:
    """Does something on every machine at the same time; results in their order.

    Raises:
        TransferError: it failed on some; the message names each.
    """

    def attempt(host: ClusterHost) -> tuple[T | None, str, TransferError | None]:
        try:
            return do(host), "", None
        except TransferError as error:
            return None, error.message, error

    with ThreadPoolExecutor(len(hosts)) as pool:
        found = list(pool.map(attempt, hosts))
    failed = [(why, error) for _, why, error in found if error]
    if failed:
        first = failed[0][1]
        raise TransferError(
            "\n".join(why for why, _ in failed), rule=first.rule, remedy=first.remedy
        )
    return [value for value, _, _ in found]  # type: ignore[misc]
