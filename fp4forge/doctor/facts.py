"""What the evidence says together: model, family, GPUs, versions, and how the model is split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fp4forge.checkpoint import config as configs
from fp4forge.core.errors import CheckpointError
from fp4forge.doctor import command_line as commands
from fp4forge.doctor.evidence import Evidence
from fp4forge.kernels.gpus import GPUS, PRODUCTS, Product
from fp4forge.models import family

_QUOTED = r"('[^']{0,300}'|\"[^\"]{0,300}\"|[\w./+-]{1,300})"
_COMPONENTS = {
    "flashinfer": r"flashinfer(?:[-_]python)?(?:==|[ :]+v?(?:ersion:? )?)([0-9]+\.[0-9]+[0-9.]*)",
    "nccl": r"(?:nccl==|NCCL version |nvidia-nccl-cu1[0-9]==)([0-9]+\.[0-9]+\.[0-9]+)",
    "transformers": r"transformers(?:==|[ :]+v?(?:ersion:? )?)([0-9]+\.[0-9]+[0-9.]*)",
    "triton": r"(?<!py)triton(?:==|[ :]+v?(?:ersion:? )?)([0-9]+\.[0-9]+[0-9.]*)",
    "torch": r"(?:torch==|PyTorch version: |torch version:? )([0-9]+\.[0-9]+[0-9.]*)",
    "modelopt": r"nvidia[-_]modelopt(?:==|[ :]+v?)([0-9]+\.[0-9]+[0-9.]*)",
    "cutlass": r"nvidia-cutlass-dsl(?:==|[ :]+v?)([0-9]+\.[0-9]+[0-9.]*)",
    "compressed-tensors": r"compressed[-_]tensors(?:==|[ :]+v?)([0-9]+\.[0-9]+[0-9.]*)",
}


@dataclass(frozen=True)
class LoggedSplit:
    """How many GPUs the flags ask for, and on how many machines."""

    tensor: int
    pipeline: int
    nodes: int
    ray: bool
    data: int = 1  # copies of the model on each machine

    @property
    def world(self) -> int:
        """Processes with a GPU each, on all machines."""
        return self.tensor * self.pipeline


def setting(found: Evidence, name: str) -> str | None:
    """A flag's value: from the command line, else as the log says it was chosen."""
    if (given := found.flag("--" + name)) is not None:
        return given
    return logged(found.parsed.text, name.replace("-", "_"))


@lru_cache(maxsize=256)
def logged(text: str, name: str) -> str | None:
    """A setting as vLLM logs it: of its non-default arguments, or of its engine."""
    for pattern in (rf"'{name}': {_QUOTED}", rf"\b{name}={_QUOTED}"):
        if (match := re.search(pattern, text)) and match[1] != "None":
            return match[1].strip("'\"")
    return None


def model(found: Evidence) -> str:
    """The model that is served; empty if nothing names it."""
    text = found.parsed.text
    return commands.model(found.command) or logged(text, "model_tag") or logged(text, "model") or ""


def folders(found: Evidence) -> Iterator[tuple[Path, bool]]:
    """Where a mount has the model on this host, and whether that is certain."""
    name = model(found)
    for mount in found.mounts:
        if not name or not mount.target or mount.kind != "bind":
            continue
        target = mount.target.rstrip("/")
        if name == target or name.startswith(target + "/"):
            yield Path(mount.source + name[len(target) :]), mount.here


def config(found: Evidence) -> configs.ModelConfig | None:
    """The model's config.json, if this host has it."""
    for folder, _ in folders(found):
        try:
            return configs.read(folder)
        except CheckpointError:
            continue
    return None


def architecture(found: Evidence) -> str:
    """The class that serves the model, by the log; of a drafter's class nothing is said."""
    match = re.search(r"Resolved architecture: (\w{1,100})", found.parsed.text)
    return match[1] if match else ""


def family_name(found: Evidence) -> str:
    """The model's family by its configuration, or by the class that vLLM chose; empty: unknown."""
    known = config(found)
    if known and known.family:
        return known.family
    if name := family.by_architecture(architecture(found)):
        return name
    kind = re.search(r"model type [`'\"](\w{1,60})[`'\"]", found.parsed.text)
    return family.of((kind[1],), (), {}) if kind else ""


def family_of(found: Evidence) -> family.Family:
    """The model's family; the neutral one if it is not known."""
    name = family_name(found)
    return family.get(name) if name in family.table() else family.UNKNOWN


def versions(found: Evidence) -> dict[str, str]:
    """Versions of vLLM and of what it stands on, as far as anything names them."""
    text = found.parsed.text
    out = {"vllm": found.version} if found.version else {}
    for name, pattern in _COMPONENTS.items():
        if match := re.search(pattern, text, re.I):
            out[name] = match[1].rstrip(".")
    drivers = sorted(g.driver for g in found.gpus if g.driver)
    return out | ({"driver": drivers[0]} if drivers else {})


def unified(found: Evidence) -> bool:
    """Whether GPU and host share one memory."""
    if found.gpus:
        return bool(_unified_products(found))
    arch = re.search(r"[-:](sm1\d\d)\b", found.image)
    name = found.labels.get("io.fp4forge.arch") or (arch[1] if arch else "")
    shared = {p.gpu for p in PRODUCTS.values() if p.unified}
    return name in shared


def memory(found: Evidence) -> int:
    """Bytes of unified memory: of this host, or of the product."""
    if found.host.memory_total:
        return found.host.memory_total
    products = _unified_products(found) or [p for p in PRODUCTS.values() if p.unified]
    return min(product.memory_bytes for product in products)


def _unified_products(found: Evidence) -> list[Product]:
    """The products with unified memory that the evidence's GPUs can be."""
    seen = capabilities(found)
    return [p for p in PRODUCTS.values() if p.unified and GPUS[p.gpu].label in seen]


def capabilities(found: Evidence) -> set[str]:
    """Compute capabilities that nvidia-smi, or a product's name, gives."""
    return {g.capability for g in found.gpus if g.capability}


def split(found: Evidence) -> LoggedSplit:
    """How the flags divide the model; 1 for what they do not say."""
    return LoggedSplit(
        _flag_number(setting(found, "tensor-parallel-size")),
        _flag_number(setting(found, "pipeline-parallel-size")),
        _flag_number(setting(found, "nnodes")),
        setting(found, "distributed-executor-backend") == "ray",
        _flag_number(
            setting(found, "data-parallel-size-local") or setting(found, "data-parallel-size")
        ),
    )


def _flag_number(text: str | None) -> int:
    return int(text) if text and re.fullmatch("[1-9][0-9]{0,3}", text) else 1
