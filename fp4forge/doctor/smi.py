"""GPUs as nvidia-smi prints them: its table, CSV, XML (-x) and text (-q)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fp4forge.kernels.gpus import GPUS

FORM = (
    "nvidia-smi as printed, nvidia-smi -q, nvidia-smi -q -x, or"
    " nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv"
)


@dataclass(frozen=True)
class SmiGpu:
    """One GPU as nvidia-smi sees it; capability such as 12.1, memory in MiB (0: unknown)."""

    name: str
    capability: str
    driver: str
    memory_mib: int = 0


# Compute capability by product name (developer.nvidia.com/cuda/gpus); the first that fits counts.
_CAPABILITIES = (
    (r"GB10\b|DGX Spark", "12.1"),
    (r"Thor", "11.0"),
    (r"GB300|B300", "10.3"),
    (r"GB200|B200|B100", "10.0"),
    (r"RTX 50[5-9]0|RTX PRO \d000 Blackwell|RTX PRO.*Blackwell|RTX PRO 6000", "12.0"),
    (r"GH200|H[12]00|H20\b|H800", "9.0"),
    (r"RTX 40[5-9]0|L4\b|L40|L20\b|Ada", "8.9"),
    (r"RTX 30[5-9]0|RTX A\d000|A10\b|A16\b|A2\b|A40\b", "8.6"),
    (r"A100|A30\b|A800", "8.0"),
    (r"\bT4\b|RTX 20[5-9]0|GTX 16", "7.5"),
    (r"V100", "7.0"),
)
_NUMBER = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}){1,3}")
_CAPABILITY = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
# KMD Version from R610 on; -q keeps the old name, with a note for a value.
_DRIVER = re.compile(r"(?:Driver|KMD) Version\s*: *([0-9][0-9.]{2,19})")
_FAILED = re.compile(
    r"NVIDIA-SMI has failed because|Failed to initialize NVML|Driver/library version mismatch"
    r"|No devices were found|GPU is lost|[Uu]nable to determine the device handle"
)
_ROW = re.compile(
    r"\|\s+[0-9]{1,3}\s+((?:NVIDIA|Tesla|Quadro|GeForce)[^|]{1,60}?)\s+(?:On|Off|N/A)\s*\|"
)
_USED = re.compile(r"/\s*([0-9]{1,9})MiB")


def capability(name: str) -> str:
    """Compute capability of a product; empty if the name is not known."""
    for pattern, found in _CAPABILITIES:
        if re.search(pattern, name):
            return found
    for gpu in GPUS.values():  # a chip that the list above does not have
        if any(re.search(rf"\b{re.escape(product)}\b", name) for product in gpu.products):
            return gpu.label
    return ""


def failure(text: str) -> str:
    """The line in which nvidia-smi says that it, or a GPU, failed; empty if it does not."""
    return next((line.strip(" |") for line in text.splitlines() if _FAILED.search(line)), "")


def gpus(text: str) -> list[SmiGpu]:
    """The GPUs in any of nvidia-smi's forms."""
    text = text.removeprefix("\ufeff")
    if "<nvidia_smi_log" in text[:2000]:
        return _xml(text)
    if "Product Name" in text:
        return _query(text)
    if listed := re.findall(r"(?m)^GPU [0-9]{1,3}: (.{1,80}?) \(UUID:", text):  # nvidia-smi -L
        return [_smi_gpu(name, "", 0) for name in listed]
    return _smi_table(text) if _DRIVER.search(text) else _csv(text)


def _csv(text: str) -> list[SmiGpu]:
    """``--query-gpu``: columns by its header, or those that FORM names."""
    columns, out = ["name", "compute_cap", "driver_version", "memory.total"], []
    for row in text.splitlines():
        cells = [cell.strip().strip('"') for cell in row.split(",")]
        heads = [cell.split(" [")[0].lower() for cell in cells]
        if "name" in heads or "gpu_name" in heads:
            columns = ["name" if head == "gpu_name" else head for head in heads]
            continue
        found = dict(zip(columns, cells, strict=False))
        name, driver = found.get("name", ""), found.get("driver_version", "")
        able = found.get("compute_cap") or capability(name)
        known = _NUMBER.fullmatch(driver) or "driver_version" not in columns
        if name and _CAPABILITY.fullmatch(able) and known:
            out.append(SmiGpu(name, able, driver, _mib(found.get("memory.total", ""))))
    return out


def _mib(text: str) -> int:
    match = re.match(r"([0-9]{1,9})(?: *MiB)?$", text)  # GB10: [N/A]
    return int(match[1]) if match else 0


def _smi_gpu(name: str, driver: str, memory: int) -> SmiGpu:
    name = re.sub(r"\s+", " ", name).strip()
    return SmiGpu(name, capability(name), driver if _NUMBER.fullmatch(driver) else "", memory)


def _smi_table(text: str) -> list[SmiGpu]:
    driver = _DRIVER.search(text)
    out: list[SmiGpu] = []
    name = ""
    for line in text.splitlines():
        if row := _ROW.match(line):
            if name:
                out.append(_smi_gpu(name, driver[1] if driver else "", 0))
            name = row[1]
        elif name and (used := _USED.search(line)):
            out.append(_smi_gpu(name, driver[1] if driver else "", int(used[1])))
            name = ""
        elif name and "Not Supported" in line:  # GB10 shares the host's memory
            out.append(_smi_gpu(name, driver[1] if driver else "", 0))
            name = ""
    if name:
        out.append(_smi_gpu(name, driver[1] if driver else "", 0))
    return out


def _query(text: str) -> list[SmiGpu]:
    driver = _DRIVER.search(text)
    out = []
    for part in re.split(r"(?m)^GPU [0-9A-Fa-f]{8}:", text)[1:] or [text]:
        name = re.search(r"Product Name\s*:(.{1,80})", part)
        if not name:
            continue
        total = re.search(r"FB Memory Usage\s*\n\s*Total\s*: *([0-9]{1,9}) MiB", part)
        out.append(_smi_gpu(name[1], driver[1] if driver else "", int(total[1]) if total else 0))
    return out


def _xml(text: str) -> list[SmiGpu]:
    """By patterns: they expand no entities, and read a file that was cut as far as it goes."""
    driver = re.search(r"<(?:driver|kmd)_version>\s*([0-9][^<]{1,40})<", text)
    out = []
    for part in text.split("<gpu ")[1:]:
        name = re.search(r"<product_name>([^<]{1,80})<", part)
        if not name:
            continue
        total = re.search(r"<fb_memory_usage>\s*<total>([0-9]{1,9}) MiB", part)
        out.append(
            _smi_gpu(name[1], driver[1].strip() if driver else "", int(total[1]) if total else 0)
        )
    return out
