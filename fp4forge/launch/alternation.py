"""Two images of one model that serve in turn on this machine, each measured while it serves."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from fp4forge.bench import opening
from fp4forge.bench import result as results
from fp4forge.bench.opening import BenchRequest
from fp4forge.bench.result import BenchResult
from fp4forge.bench.suite import NamedSuite
from fp4forge.bench.suite_run import SuiteRun, open_trials
from fp4forge.core import files, reading
from fp4forge.core.errors import BenchError, ForgeError
from fp4forge.core.limits import COPY_SILENCE_SECONDS
from fp4forge.kernels.base import Progress
from fp4forge.launch import deployment
from fp4forge.launch.deployment import Deployment
from fp4forge.oci import engine

SIDES = ("old", "new")
_FILE = "images.json"


@dataclass(frozen=True)
class ServingTurn:
    """One start of one image; ``round``, from 1, numbers the trials that are made during it."""

    side: str
    round: int


def turns(rounds: int) -> list[ServingTurn]:
    """Old and new, then new and old, and so on: what drifts meets both images alike."""
    return [
        ServingTurn(side, number)
        for number in range(1, rounds + 1)
        for side in (SIDES if number % 2 else reversed(SIDES))
    ]


def is_done(turn: ServingTurn, folder: Path, suite: NamedSuite) -> bool:
    """Whether the folder of both results has every trial of a turn.

    Raises:
        BenchError: a result is damaged.
    """
    path = folder / turn.side
    if not reading.is_file(path / results.FILE):
        return False
    return not open_trials(results.load(path), suite, turn.round)


class ComparedImages(Struct, frozen=True, kw_only=True):
    """What a folder of two results is about.

    Attributes:
        old: image by digest.
        new: image by digest.
        client: image of the load generator, by digest.
        suite: hash of the suite.
        model: hash of the checkpoint's files.
        max_context: of the points, in tokens; 0: any.
        utilization: --gpu-memory-utilization of both servers.
    """

    old: str
    new: str
    client: str
    suite: str
    model: str
    max_context: int
    utilization: float

    def image(self, side: str) -> str:
        """The image of a side."""
        return self.old if side == "old" else self.new

    def save(self, folder: Path) -> None:
        """Writes it into the folder."""
        files.replace(folder / _FILE, msgspec.json.format(msgspec.json.encode(self)))


def kept(folder: Path) -> ComparedImages | None:
    """What a folder is about; None if nothing was measured in it.

    Raises:
        BenchError: its record is damaged.
    """
    if not reading.is_file(folder / _FILE):
        return None
    return reading.json_file(folder / _FILE, ComparedImages, BenchError)


def check_same(found: ComparedImages, wanted: ComparedImages, folder: Path) -> None:
    """Refuses to go on with the results of something else.

    Raises:
        BenchError: the folder is about something else.
    """
    other = [
        f"{name}: {getattr(found, name)} and {getattr(wanted, name)}"
        for name in found.__struct_fields__
        if getattr(found, name) != getattr(wanted, name)
    ]
    if other:
        raise BenchError(
            f"{folder} has the results of another comparison ({'; '.join(other)[:600]})",
            rule="it goes on with the same images, model and suite",
            remedy="give another --out, or remove that folder",
        )


def server_name(folder: Path, side: str) -> str:
    """The server's name, the same whenever that folder is measured in: what is left is found."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return f"bench-{side}-{digest}"


def clear(folder: Path) -> None:
    """Removes servers that an earlier, killed run in this folder left. The folder must be held."""
    for side in SIDES:
        name = server_name(folder, side)
        if name in deployment.names():
            remove(deployment.load(name))


def remove(made: Deployment) -> None:
    """Stops a server, and removes its caches and its record."""
    made.run("down", "--volumes", seconds=COPY_SILENCE_SECONDS)
    made.remove()


def give_up(made: Deployment) -> None:
    """Stops a server that failed; its container stays, for its log, if it has one."""
    with contextlib.suppress(ForgeError):  # what failed before is the message
        made.run("stop", seconds=COPY_SILENCE_SECONDS)
        if engine.find_container(made.name) is None:
            remove(made)


def measurement(wanted: BenchRequest, turn: ServingTurn, report: Progress) -> SuiteRun:
    """The run that makes the trials of a turn, on the server that is up.

    Raises:
        ForgeError: as ``opening.start``.
    """
    found = opening.start(wanted, report)
    found.rounds = turn.round
    return found


def both(folder: Path, suite: NamedSuite, rounds: int) -> tuple[BenchResult, BenchResult]:
    """The results of both images, after every turn.

    Raises:
        BenchError: there are none, or they are damaged.
    """
    found = [results.load(folder / side) for side in SIDES]
    for side, result in zip(SIDES, found, strict=True):
        if not result.complete and not open_trials(result, suite, rounds):
            result.complete = True  # it was killed after its last trial
            results.save(result, folder / side)
    return found[0], found[1]
