"""Bundles: one archive of evidence to attach to a report, without secrets and addresses."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

from fp4forge.core import files, reading
from fp4forge.core.errors import UsageError
from fp4forge.core.limits import LOG_BYTES
from fp4forge.core.text import as_json, without_secrets
from fp4forge.doctor import described, gather, inspected
from fp4forge.doctor import evidence as evidences
from fp4forge.doctor.evidence import Evidence, GivenEvidence
from fp4forge.oci import acquire

_RECORDS = {f"{name}.json": name for name in acquire.RECORDS}
_MEMBERS = ("log.txt", "inspect.json", "compose.yaml", "nvidia-smi.txt", "versions.json", *_RECORDS)
_KEPT = ("127.0.0.1", "0.0.0.0")  # noqa: S104
# Four numbers after "==" are the version of a package.
_ADDRESS = re.compile(r"(?<![\w.])(?<!==)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])")
_IPV6 = re.compile(
    r"(?<![\w:])(?:[0-9a-f]{1,4}:){3,7}[0-9a-f]{0,4}(?:::[0-9a-f:]*)?(?![\w:])", re.I
)
_MAC = re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.I)
_UUID = re.compile(r"\bGPU-[0-9a-f-]{36}\b", re.I)
_SECRET_VALUE = re.compile(
    r"(?i)([\"']?[\w-]*(?:token|secret|passw|credential|api[_-]?key|authorization)[\w-]*[\"']?"
    r"\s*[=:,]\s*[\"']?)([^\s\"',}]{4,})"
)
_FLAG = re.compile(r"(?i)(--api[-_]key[\"',\s=]{1,6})([^\s\"',]{1,})")


def clean(text: str) -> str:
    """Text without secrets, addresses and serial numbers."""
    text = without_secrets(text)
    text = _FLAG.sub(r"\1...", text)
    text = _SECRET_VALUE.sub(r"\1...", text)
    text = _MAC.sub("<mac>", text)
    text = _ADDRESS.sub(lambda m: m[0] if m[0] in _KEPT else "<address>", text)
    text = _IPV6.sub("<address>", text)
    return _UUID.sub("GPU-<id>", text)


_SECRET = re.compile(r"(?i)token(?!s|iz)|secret|passw|credential|api[_-]?key|authorization")


def structured(content: str, where: str) -> str:
    """JSON or YAML as JSON, its texts without secrets; other text as ``clean`` leaves it."""
    try:
        value = reading.yaml(content, where, UsageError)
    except UsageError:
        return clean(content)
    return as_json(_cleaned(value)) if isinstance(value, dict | list) else clean(content)


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            clean(str(key)): "..." if _SECRET.search(str(key)) else _cleaned(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        before = ["", *(str(entry) for entry in value)][:-1] if value else []
        return [
            "..." if name.startswith("--") and _SECRET.search(name) else _cleaned(entry)
            for name, entry in zip(before, value, strict=True)
        ]
    return clean(value) if isinstance(value, str) else value


def write(path: Path, handed: gather.EvidenceSources, found: Evidence) -> None:
    """Writes the bundle of what was handed over, and of what a container gave.

    Raises:
        ForgeError: a file cannot be read or written.
    """
    parts: dict[str, str] = {}
    if found.log:
        parts["log.txt"] = found.log
    if handed.inspection:
        parts["inspect.json"] = _file_text(handed.inspection)
    elif handed.container:
        parts["inspect.json"] = as_json(_inspect_form(found))
    if handed.compose_file:
        parts["compose.yaml"] = _file_text(handed.compose_file)
    if handed.smi:
        parts["nvidia-smi.txt"] = _file_text(handed.smi)
    elif found.gpus:
        rows = (f"{g.name}, {g.capability}, {g.driver}, {g.memory_mib}" for g in found.gpus)
        parts["nvidia-smi.txt"] = "\n".join(rows) + "\n"
    parts["versions.json"] = as_json(
        {"versions": _bundle_versions(found), "inputs": [entry.name for entry in found.inputs]}
    )
    parts |= {  # the image's own, public files: no address is in them, and versions look like one
        name: found.records.contents[stem].decode(errors="replace")
        for name, stem in _RECORDS.items()
        if stem in found.records.contents
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in parts.items():
            kept = _redacted(name, text)
            content = kept.encode(errors="replace")
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    files.replace(path, buffer.getvalue())


def _redacted(name: str, text: str) -> str:
    if name in _RECORDS:
        return without_secrets(text)
    return clean(text) if name.endswith(".txt") else structured(text, name)


def _bundle_versions(found: Evidence) -> dict[str, str]:
    from fp4forge.doctor import facts

    return facts.versions(found)


def _file_text(path: Path) -> str:
    return reading.content(path, UsageError, LOG_BYTES).decode(errors="replace")


def _inspect_form(found: Evidence) -> list[dict[str, Any]]:
    """What the doctor read of a container, in docker inspect's form."""
    env = [f"{name}={value}" for name, value in found.environment.items()]
    mounts = [{"Source": m.source, "Destination": m.target, "Type": m.kind} for m in found.mounts]
    return [
        {
            "Config": {
                "Image": found.image,
                "Labels": found.labels,
                "Env": env,
                "Cmd": found.command,
            },
            "HostConfig": {
                "ShmSize": found.shm_bytes,
                "IpcMode": found.ipc,
                "DeviceRequests": [{"Count": found.gpu_count or -1}] if found.gpu_requested else [],
            },
            "State": {
                "Status": found.status,
                "ExitCode": found.exit_code,
                "OOMKilled": found.out_of_memory,
                "Health": {"Status": found.health},
            },
            "Mounts": mounts,
        }
    ]


def read(path: Path) -> Evidence:
    """The evidence of a bundle.

    Raises:
        UsageError: it is not one, or a part of it cannot be read.
    """
    parts = _bundle_parts(path)
    if not parts:
        raise UsageError(
            f"--bundle {path} has nothing to examine", rule="an archive that --bundle wrote"
        )
    found = Evidence()
    if "inspect.json" in parts:
        found = described.from_text(parts["inspect.json"], f"inspect.json of {path}")
        found.inputs.append(GivenEvidence("inspect.json", inspected.summary(found), inspected.FORM))
    elif "compose.yaml" in parts:
        text = parts["compose.yaml"].decode(errors="replace")
        found = described.composed.from_text(text, f"compose.yaml of {path}", path.parent)
        # The bundle's own machine is another one.
        found.mounts = [evidences.Mount(m.source, m.target, m.kind, False) for m in found.mounts]
        form = described.composed.FORM
        found.inputs.append(GivenEvidence("compose.yaml", inspected.summary(found), form))
    if "log.txt" in parts:
        found.log = evidences.as_log(parts["log.txt"])
        found.inputs.append(GivenEvidence("log.txt", gather.log_facts(found), gather.LOG_FORM))
    if "nvidia-smi.txt" in parts:
        gather.take_smi(found, evidences.as_log(parts["nvidia-smi.txt"]), "nvidia-smi.txt")
    found.records = acquire.ImageRecords(
        {stem: parts[name] for name, stem in _RECORDS.items() if name in parts}
    )
    gather.note_records(found)
    return found


def _bundle_parts(path: Path) -> dict[str, bytes]:
    data = reading.content(path, UsageError, LOG_BYTES)
    out: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            for entry in archive:
                name = entry.name.removeprefix("./")
                if name in _MEMBERS and entry.isreg() and entry.size <= LOG_BYTES:
                    file = archive.extractfile(entry)
                    out[name] = file.read(LOG_BYTES) if file else b""
    except (tarfile.TarError, OSError, EOFError, ValueError, MemoryError) as error:
        raise UsageError(
            f"--bundle {path} is not a bundle: {type(error).__name__}",
            rule="an archive that --bundle wrote",
        ) from None
    except Exception as error:  # zlib.error and lzma's have no common class
        raise UsageError(f"--bundle {path} is damaged: {type(error).__name__}") from None
    return out
