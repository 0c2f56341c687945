"""Reads everything that was handed to the doctor, and keeps what each piece contributed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fp4forge.core.text import shown
from fp4forge.doctor import composed, described, facts, host, inspected, live, logs, smi
from fp4forge.doctor import evidence as _evidence
from fp4forge.doctor.evidence import Evidence, GivenEvidence
from fp4forge.oci import acquire

LOG_FORM = "what the server printed: docker logs, docker compose logs, kubectl logs or journalctl"
# What a description may leave to another one, in the order of these fields.
_DESCRIBED = ("image", "labels", "environment", "command", "mounts", "status", "exit_code", "ipc")


@dataclass(frozen=True)
class EvidenceSources:
    """What the command line names."""

    container: str | None = None
    inspection: Path | None = None
    compose_file: Path | None = None
    url: str | None = None
    logs: Path | None = None
    smi: Path | None = None

    @property
    def anything(self) -> bool:
        """Whether there is something beside nvidia-smi's output."""
        return any((self.container, self.inspection, self.compose_file, self.url, self.logs))


def evidence(handed: EvidenceSources) -> Evidence:
    """All the evidence together.

    Raises:
        ForgeError: a file cannot be read, or is something else.
    """
    found = _describe_server(handed)
    if handed.logs:
        found.log = _evidence.read_log(handed.logs)
        found.inputs.append(GivenEvidence(f"log {handed.logs}", log_facts(found), LOG_FORM))
    if handed.url:
        found.url = handed.url
    if handed.smi:
        take_smi(found, _evidence.read_log(handed.smi), f"nvidia-smi {handed.smi}")
    _this_machine(handed, found)
    if found.url:
        found.live = live.first(found.url, facts.family_of(found))
    return found


def take_smi(found: Evidence, text: str, name: str) -> None:
    """Adds what nvidia-smi printed."""
    found.gpus, found.smi_failed = smi.gpus(text), shown(smi.failure(text), 300)
    said = [f"{g.name}, driver {g.driver or 'unknown'}" for g in found.gpus]
    said += ["a failure"] if found.smi_failed else []
    found.inputs.append(GivenEvidence(name, tuple(said), smi.FORM))


def _this_machine(handed: EvidenceSources, found: Evidence) -> None:
    """What this machine reports, if the server runs here; of a saved file nothing says so."""
    if handed.container and host.has_engine():
        own = host.limits(found.pid) if found.pid else host.ProcessLimits()
        found.open_files = own.open_files or found.open_files
        found.memory_limit = own.memory or found.memory_limit
        found.shm_free = own.shm_free
    elif not host.is_url(handed.url or ""):
        if not handed.compose_file:
            return
        # A compose file is about to be started here.
        found.host = host.HostResources(disks=_mounted_disks(found))
        return
    found.host = host.here()
    found.host.disks = _mounted_disks(found)
    found.gpus = found.gpus or host.cards()


def _mounted_disks(found: Evidence) -> dict[str, int]:
    """What the disks of the mounted folders of this machine have left."""
    folders = {mount.source for mount in found.mounts if mount.here and mount.kind == "bind"}
    sizes = {folder: host.free(folder) for folder in sorted(folders)}
    return {folder: size for folder, size in sizes.items() if size is not None}


def _describe_server(handed: EvidenceSources) -> Evidence:
    if handed.container:
        found = described.container(handed.container)
        note_records(found)
        return found
    if handed.inspection:
        found = described.read_inspect(handed.inspection)
        name, form = f"inspect {handed.inspection}", inspected.FORM
        found.inputs.append(GivenEvidence(name, inspected.summary(found), form))
        if handed.compose_file:
            _complete_from_compose(
                found, described.from_compose(handed.compose_file), handed.compose_file
            )
        return found
    if handed.compose_file:
        found = described.from_compose(handed.compose_file)
        name = f"compose file {handed.compose_file}"
        found.inputs.append(GivenEvidence(name, inspected.summary(found), composed.FORM))
        return found
    return Evidence()


def _complete_from_compose(found: Evidence, other: Evidence, path: Path) -> None:
    """Fills what the running container's description lacks from its compose file."""
    for name in _DESCRIBED:
        if not getattr(found, name):
            setattr(found, name, getattr(other, name))
    form = composed.FORM
    found.inputs.append(GivenEvidence(f"compose file {path}", inspected.summary(other), form))


def note_records(found: Evidence) -> None:
    """Lists what the image's records contributed, if there are any.

    Raises:
        BinaryError: one of them is damaged.
    """
    if not found.records.contents:
        return
    plan, ledger = found.records.plan, found.records.ledger or acquire.RecordedLedger()
    served = [name for name, verdicts in ledger.gpus.items() if verdicts.get("ok")]
    said = [
        f"release {plan.release}" if plan.release else "",
        f"kernels for {', '.join(served)}" if served else "",
        f"{len(found.records.patches.files)} patched files" if found.records.patches.files else "",
    ]
    form = f"what {acquire.FOLDER} in the image holds"
    gave = tuple(shown(one, 200) for one in said if one)
    found.inputs.append(GivenEvidence("the image's records", gave, form))


def log_facts(found: Evidence) -> tuple[str, ...]:
    """What a log contributed; nothing if no line of it is a server's."""
    log = found.parsed
    known = sum(1 for line in log.lines if line.level or line.seconds >= 0)
    raised = logs.root(log)
    versions = facts.versions(found)
    said = [
        f"{known} lines of a server" if known else "",
        "a ready line" if log.ready >= 0 else "",
        f"an exception: {shown(raised.text, 80)}" if raised else "",
        f"vLLM {versions['vllm']}" if "vllm" in versions else "",
        f"family {facts.family_name(found)}" if facts.family_name(found) else "",
    ]
    return tuple(entry for entry in said if entry)
