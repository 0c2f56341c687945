"""Runs BuildKit on a staged plan and turns its event stream into progress and clear errors."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from msgspec import Struct
from msgspec import field as field_

from fp4forge.core import paths, reading
from fp4forge.core.errors import (
    ArtefactError,
    BuildError,
    CoverageError,
    DiskError,
    EngineError,
    ForgeError,
    PatchError,
)
from fp4forge.core.limits import BUILD_SILENCE_SECONDS
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress
from fp4forge.oci.process import Watchdog

# Lines of a build step's log that are progress (the stages under fp4forge/image/stages print them).
PROGRESS = "fp4forge: progress "
COMPRESSION = "compression=zstd,compression-level=3,force-compression=true,oci-mediatypes=true"


@dataclass
class BuildVertex:
    """One step of the build as BuildKit reports it."""

    name: str
    started: str = ""
    completed: str = ""
    cached: bool = False
    error: str = ""
    log: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BuildOptions:
    """How a build runs; nothing here changes what is in the image."""

    builder: str | None = None
    no_cache: bool = False
    jobs: int | None = None
    sources: dict[str, Path] = field(default_factory=dict)  # local trees, hashed in the plan
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    gpu: bool = False  # verify on this machine's GPU too
    reports: Path | None = None  # folder for what the checks say


@dataclass(frozen=True)
class BuildResult:
    """What a build gave: digest of the image index (none for files), and what was cached."""

    digest: str
    steps: int
    cached: int


def secrets() -> list[str]:
    """``--secret`` flags: the host's CA bundle and the user's netrc, if they exist."""
    ca = os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
    netrc = os.environ.get("NETRC") or str(paths.home() / ".netrc")
    found = [("ca", ca), ("netrc", netrc)]
    return [_secret(name, path) for name, path in found if reading.is_file(Path(path))]


def _secret(name: str, path: str) -> str:
    """One flag; buildx reads its value as a line of CSV, so that a path may hold commas."""
    source = f"src={path}"
    quoted = '"' + source.replace('"', '""') + '"' if set(source) & set(',"') else source
    return f"--secret=id={name},{quoted}"


def environment(options: BuildOptions) -> dict[str, str]:
    """buildx's environment, with jobs and sccache's settings as the secret that compiling reads.

    They may hold credentials: they pass from memory to the secret mount and touch no disk.
    """
    chosen = {k: v for k, v in os.environ.items() if k.startswith(("SCCACHE_", "AWS_"))}
    chosen |= {"FP4FORGE_JOBS": str(options.jobs)} if options.jobs else {}
    text = "".join(f"{key}={value}\n" for key, value in sorted(chosen.items()))
    return os.environ | {"FP4FORGE_COMPILE": text}


def build(
    line: list[str], report: Progress, options: BuildOptions, checked: Future[Any] | None = None
) -> BuildResult:
    """Runs a buildx command line.

    Args:
        line: from ``command``.
        options: those that ``command`` got.
        report: called with one line of progress at a time.
        checked: checks that run beside the build; their failure stops it and is what is raised.

    Raises:
        BuildError: a step failed; the message has its command and its last lines.
        PatchError, ArtefactError, DiskError, EngineError: the step's failure was one of these.
    """
    with tempfile.NamedTemporaryFile(prefix="fp4forge-", suffix=".json") as metadata:
        process = subprocess.Popen(
            [
                *line,
                "--secret=id=compile,env=FP4FORGE_COMPILE",
                "--progress=rawjson",
                f"--metadata-file={metadata.name}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment(options),
            start_new_session=True,  # Ctrl-C reaches this process first, which then stops buildx
        )
        assert process.stderr is not None
        vertices: dict[str, BuildVertex] = {}
        rest: list[str] = []
        watch = Watchdog(BUILD_SILENCE_SECONDS, lambda: _stop_buildx(process))
        try:
            for event in events(process.stderr, rest):
                watch.heard()
                _follow_event(event, vertices, report)
                if checked and checked.done():
                    checked.result()
            code = process.wait()
        except BaseException:
            _stop_buildx(process)
            raise
        finally:
            watch.stop()
        if watch.silent:
            raise BuildError(
                f"the build reported nothing for {BUILD_SILENCE_SECONDS} s and was stopped",
                rule="a working step reports progress",
                remedy="check what its last step waits for; running again resumes",
            )
        if checked:
            checked.result()
        if code != 0:
            raise explain(vertices.values(), "".join(rest))
        found = reading.json_file(Path(metadata.name), _BuildMetadata, BuildError)
    done = [v for v in vertices.values() if v.completed]
    return BuildResult(found.digest, len(done), sum(v.cached for v in done))


def _stop_buildx(process: subprocess.Popen[str]) -> None:
    """Ends buildx, which takes its build in the engine with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _BuildMetadata(Struct, frozen=True):
    """What buildx writes at a build's end."""

    digest: str = field_(default="", name="containerimage.digest")


class _Vertex(Struct, frozen=True):
    digest: str
    name: str = ""
    started: str | None = None
    completed: str | None = None
    cached: bool | None = None
    error: str | None = None


class _Log(Struct, frozen=True):
    vertex: str
    data: bytes | None = None  # base64


class BuildEvent(Struct, frozen=True):
    """One event of ``--progress=rawjson`` (BuildKit's client.SolveStatus)."""

    vertexes: list[_Vertex] | None = None
    logs: list[_Log] | None = None


def events(stream: IO[str], rest: list[str]) -> Iterator[BuildEvent]:
    """Events from a stream in which other text may stand; the end of that text goes to rest."""
    buffer: list[str] = []
    for line in stream:
        if not buffer and not line.startswith("{"):
            rest.append(line)
            del rest[:-1000]
            continue
        buffer.append(line)
        # Objects are printed indented: only a brace in the first column can end one.
        one = len(buffer) == 1 and line.rstrip().endswith("}")
        if one or line.startswith("}") or len(buffer) > 100_000:
            try:
                event = reading.json("".join(buffer), BuildEvent, "an event", BuildError)
            except BuildError:
                if one:
                    continue
                rest += buffer[-1000:]
            else:
                yield event
            buffer = []


def _follow_event(event: BuildEvent, vertices: dict[str, BuildVertex], report: Progress) -> None:
    for data in event.vertexes or ():
        vertex = vertices.setdefault(data.digest, BuildVertex(instruction(data.name)))
        if data.started and not vertex.started and not data.cached:
            report(vertex.name)
        vertex.started, vertex.completed = data.started or "", data.completed or ""
        vertex.cached = bool(data.cached)
        vertex.error = data.error or ""
    for entry in event.logs or ():
        if entry.vertex in vertices:
            log = vertices[entry.vertex].log
            lines = (entry.data or b"").decode(errors="replace").splitlines()
            for line in lines:
                if line.startswith(PROGRESS):
                    report(line.removeprefix(PROGRESS))
            log.extend(
                shown(line) for line in lines if line.strip() and not line.startswith(PROGRESS)
            )
            del log[:-60]


def instruction(name: str) -> str:
    """BuildKit's name of a step without its flags, which fill the line before the command."""
    return re.sub(r"--(?:mount|network)=\S+\s+", "", name)


_OTHER_SOURCE = "--source NAME=DIR takes a local tree, NAME=pypi the index's if it has one"
_PATTERNS: tuple[tuple[str, type[ForgeError], str], ...] = (
    # First: a compiler without disk fails like one with an error in its source.
    ("no space left on device", DiskError, "docker buildx prune frees the build cache"),
    ("No space left on device", DiskError, "docker buildx prune frees the build cache"),
    ("fp4forge: compile: patch ", PatchError, "build.py patch check shows each patch"),
    ("fp4forge: compile: gate: ", CoverageError, "nothing was compiled but this one object"),
    ("fp4forge: patch ", PatchError, "build.py patch check shows each patch against its source"),
    (
        "Hash mismatch",
        ArtefactError,
        "the file on the index is not the pinned one; do not install it",
    ),
    ("DO NOT MATCH THE HASHES", ArtefactError, "the file on the index is not the pinned one"),
    ("failed to fetch remote", ArtefactError, _OTHER_SOURCE),
    ("failed to checkout remote", ArtefactError, _OTHER_SOURCE),
    ("Cannot connect to the Docker daemon", EngineError, "run make setup, or start the engine"),
)


def explain(vertices: Any, rest: str) -> ForgeError:
    """The error that a failed build stands for."""
    if "unknown flag: --file" in rest:  # docker itself, which found no plugin for the word buildx
        return EngineError("the docker client has no buildx", remedy="run make setup")
    failed = [v for v in vertices if v.error and "context canceled" not in v.error]
    log = [line for v in failed for line in v.log] or [shown(line) for line in rest.splitlines()]
    text = "\n".join(log) + "\n" + "\n".join(v.error for v in failed) + rest
    for pattern, kind, remedy in _PATTERNS:
        if pattern in text:
            lines = [line for line in text.splitlines() if pattern in line]
            message = shown(lines[-1].removeprefix("fp4forge: "))
            if kind is ArtefactError:
                message = "\n".join([*(() if lines[-1] in log else [message]), *log[-8:]])
            return kind(message, remedy=remedy)
    name = failed[0].name if failed else "buildx"
    return BuildError(
        f"{name} failed\n" + "\n".join("  | " + line for line in log[-20:]),
        remedy="the last lines above are the step's own; running again resumes from the cache",
    )
