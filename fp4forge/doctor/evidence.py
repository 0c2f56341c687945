"""What the doctor looks at, and what logs, nvidia-smi and this host show."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from fp4forge.core import reading
from fp4forge.core.errors import UsageError
from fp4forge.core.limits import LOG_BYTES, LOG_LINE_CHARACTERS
from fp4forge.oci import acquire

PATCH_RECORD = "/opt/fp4forge/patches.json"
LEDGER = "/opt/fp4forge/ledger.json"
_VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}")


@dataclass(frozen=True)
class Mount:
    """One mount: place on the host (empty: a named volume) and in the container."""

    source: str
    target: str
    kind: str = "bind"


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi sees it; capability such as 12.1, memory in MiB (0: unknown)."""

    name: str
    capability: str
    driver: str
    memory_mib: int = 0


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
    published: list[str] = field(default_factory=list)
    log: str | None = None
    url: str = ""
    address: str = ""  # where the container's server is published on this host
    gpus: list[Gpu] = field(default_factory=list)
    record: acquire.Patches | None = None  # patches.json of the image
    ledger: acquire.Ledger | None = None  # ledger.json of the image
    memory_total: int | None = None  # of the host, bytes
    memory_free: int | None = None
    sources: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """vLLM's version: from the image's labels, else from its log."""
        label = self.labels.get("org.opencontainers.image.version", "")
        if _VERSION.fullmatch(label) and "io.fp4forge.release" in self.labels:
            return label
        found = re.search(rf"(?:LLM engine \(v|version )({_VERSION.pattern})", self.log or "")
        return found[1] if found else ""

    def flag(self, name: str) -> str | None:
        """A flag's value on the server's command line; empty for a bare flag, None if absent."""
        for number, word in enumerate(self.command):
            if word == name:
                following = self.command[number + 1 : number + 2]
                return following[0] if following and not following[0].startswith("--") else ""
            if word.startswith(name + "="):
                return word.split("=", 1)[1]
        return None


def read_log(path: Path) -> str:
    """A saved log, whatever its encoding.

    Raises:
        UsageError: it is not a plain file, or is larger than LOG_BYTES.
    """
    return as_log(reading.content(path, UsageError, LOG_BYTES))


def as_log(content: bytes) -> str:
    """A log's text; of absurd lines, over which a pattern would need hours, the beginning."""
    lines = content.decode(errors="replace").split("\n")
    return "\n".join(line[:LOG_LINE_CHARACTERS] for line in lines)


def host(out: Evidence) -> None:
    """Adds what this machine reports: its memory, and its GPUs if nvidia-smi is there."""
    text = Path("/proc/meminfo").read_text(errors="replace")
    sizes = {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(\w+):\s+([0-9]{1,15}) kB", text, re.M)}
    out.memory_total, out.memory_free = sizes.get("MemTotal"), sizes.get("MemAvailable")
    if shutil.which("nvidia-smi"):
        line = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total"]
        try:
            done = subprocess.run(
                [*line, "--format=csv,noheader,nounits"], capture_output=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return
        out.gpus = gpus(done.stdout.decode(errors="replace"))


def gpus(text: str) -> list[Gpu]:
    """GPUs from nvidia-smi's CSV of name, compute_cap, driver_version, memory.total."""
    out = []
    for row in text.splitlines():
        parts = [part.strip() for part in row.split(",")]
        if (
            len(parts) >= 3
            and re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", parts[1])
            and re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})*", parts[2])
        ):
            known = len(parts) > 3 and re.fullmatch(r"[0-9]{1,9}", parts[3])  # GB10: [N/A]
            out.append(Gpu(parts[0], parts[1], parts[2], int(parts[3]) if known else 0))
    return out


def digest(path: str) -> str | None:
    """SHA-256 of a file on this host; None if no file there can be read."""
    try:
        with reading.opened(Path(path), UsageError) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (UsageError, OSError):
        return None
