"""Hashed dependency locks (``releases/locks/``): one per release, strategy, platform and Python."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fp4forge.core import reading
from fp4forge.core.errors import DriftError
from fp4forge.core.paths import LOCKS

# Layers of installed packages, from the slowest to the fastest to change. vLLM is one of its own.
LAYERS = ("cuda", "torch", "python")
_TORCH = {"torch", "torchvision", "torchaudio", "triton"}
_NOT_CUDA = {"nvidia-modelopt"}  # NVIDIA's, but no part of CUDA
TOOLS = "tools.txt"


@dataclass(frozen=True)
class LockName:
    """What a lock is resolved for; with an extra's name, what that adds to the lock without."""

    release: str
    strategy: str
    platform: str
    python: str
    extra: str = ""

    @property
    def file(self) -> str:
        """File name under ``releases/locks/``."""
        platform = self.platform.replace("/", "-")
        python = f"py{self.python.replace('.', '')}"
        parts = (self.release, self.strategy, platform, python, self.extra)
        return "-".join(filter(None, parts)) + ".txt"


def group_of(package: str) -> str:
    """The layer that a package belongs to."""
    if package == "vllm":
        return "vllm"
    if package in _TORCH:
        return "torch"
    cuda = package.startswith("nvidia-") and package not in _NOT_CUDA
    return "cuda" if cuda or package == "flashinfer-cubin" else "python"


def pin(block: str) -> tuple[str, str]:
    """Package and version of one of a lock's entries."""
    name, _, version = re.split(r"[\s;\\]", block, maxsplit=1)[0].partition("==")
    return name.partition("[")[0], version


def entries(text: str) -> dict[str, str]:
    """Package name and its lines (pin and hashes), from a lock's text."""
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", re.sub(r"(?m)^#.*\n", "", text))
    return {re.split(r"[=\[ ]", block, maxsplit=1)[0]: block for block in blocks if block.strip()}


def read(name: LockName) -> dict[str, str]:
    """A lock's entries.

    Raises:
        DriftError: as ``content``, or it has no packages.
    """
    found = entries(content(name.file))
    if not found:
        raise DriftError(
            f"lock releases/locks/{name.file} has no packages",
            rule="a lock has each package of its image, with hashes",
            remedy="run build.py lock",
        )
    return found


def content(file: str) -> str:
    """The text of a lock, by the name of its file.

    Raises:
        DriftError: the lock was never made, or cannot be read.
    """
    path, where = LOCKS / file, f"releases/locks/{file}"
    if not path.is_file():
        raise DriftError(f"lock {where} is missing", remedy="run build.py lock")
    return reading.text(path, DriftError, where=where)


def build_file(name: str) -> str:
    """File name of the lock of what compiling a release needs beside its dependencies."""
    return f"{name}-build.txt"
