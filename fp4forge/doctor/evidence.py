"""What the doctor looks at, and what this host shows."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from fp4forge.core import reading
from fp4forge.core.errors import UsageError
from fp4forge.core.limits import LOG_BYTES, LOG_LINE_CHARACTERS
from fp4forge.doctor import command_line as commands
from fp4forge.doctor import logs
from fp4forge.doctor.host import HostResources
from fp4forge.doctor.live import LiveServer
from fp4forge.doctor.smi import SmiGpu
from fp4forge.oci import acquire

__all__ = ["Evidence", "GivenEvidence", "Mount", "SmiGpu", "as_log", "digest", "read_log"]

_VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}")
_SAID = re.compile(
    rf"(?:LLM engine \(v|vLLM API server version |vLLM [Vv]ersion:? |vllm==)({_VERSION.pattern})"
)


@dataclass(frozen=True)
class Mount:
    """One mount: place on the host (empty: a named volume) and in the container."""

    source: str
    target: str
    kind: str = "bind"
    here: bool = True  # whether the place on the host is one of this machine, for certain


@dataclass(frozen=True)
class GivenEvidence:
    """One thing that was handed over, what it contributed, and the form that can be read."""

    name: str
    gave: tuple[str, ...] = ()
    form: str = ""


@dataclass
class Evidence:
    """Everything known; what is unknown is None or empty, and no check speaks about it."""

    image: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    mounts: list[Mount] = field(default_factory=list)
    status: str = ""  # of the container: running, exited ...
    exit_code: int | None = None
    out_of_memory: bool = False
    health: str = ""
    shm_bytes: int | None = None
    ipc: str = ""
    gpu_requested: bool | None = None
    gpu_count: int | None = None  # that the container asks for; None: all, or unknown
    published: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)  # of Kubernetes
    log: str | None = None
    url: str = ""
    live: LiveServer | None = None  # what the server at ``url`` answered
    address: str = ""  # where the container's server is published on this host
    gpus: list[SmiGpu] = field(default_factory=list)
    smi_failed: str = ""  # what nvidia-smi said in place of GPUs
    records: acquire.ImageRecords = field(
        default_factory=acquire.ImageRecords
    )  # plan.json etc. of the image
    host: HostResources = field(
        default_factory=HostResources
    )  # the machine that it runs on, if that is this one
    memory_limit: int | None = None  # of the container, bytes; it may be above the host's memory
    open_files: int | None = None  # that the server may have
    shm_free: int | None = None  # bytes
    pid: int | None = None  # of the container's first process, on its host
    inputs: list[GivenEvidence] = field(default_factory=list)

    @property
    def version(self) -> str:
        """vLLM's version: from the image's labels, else from its log or the image's tag."""
        label = self.labels.get("org.opencontainers.image.version", "")
        if _VERSION.fullmatch(label) and "io.fp4forge.release" in self.labels:
            return label
        if found := _SAID.search(self.parsed.text):
            return found[1]
        tag = re.search(rf"vllm[\w/.-]*:v?({_VERSION.pattern})(?![\w.])", self.image)
        return tag[1] if tag else ""

    @property
    def parsed(self) -> logs.ServerLog:
        """The log, by lines."""
        return logs.parse(self.log or "")

    @property
    def answered(self) -> bool:
        """Whether the live server gave good answers."""
        return self.live is not None and self.live.answered

    @property
    def ready(self) -> bool:
        """Whether the log says that the server was ready."""
        return self.parsed.ready >= 0

    def flag(self, name: str) -> str | None:
        """A flag's value on the server's command line; empty for a bare flag, None if absent."""
        return commands.flag(self.command, name)

    @property
    def serves(self) -> bool:
        """Whether the whole command line is known: a flag that it lacks is not set."""
        return commands.serves(self.command) and self.flag("--config") is None


def read_log(path: Path) -> str:
    """A saved log, whatever its encoding.

    Raises:
        UsageError: it is not a plain file, or is larger than LOG_BYTES.
    """
    return as_log(reading.content(path, UsageError, LOG_BYTES))


def decoded(content: bytes) -> str:
    """A file's text, whatever program saved it."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # PowerShell's > writes UTF-16
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="replace")


def as_log(content: bytes) -> str:
    """A log's text; of absurd lines, over which a pattern would need hours, the beginning."""
    lines = decoded(content).split("\n")
    return "\n".join(line[:LOG_LINE_CHARACTERS] for line in lines)


def digest(path: str) -> str | None:
    """SHA-256 of a file on this host; None if no file there can be read."""
    try:
        with reading.opened(Path(path), UsageError) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (UsageError, OSError):
        return None
