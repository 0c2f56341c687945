"""What ``kubectl describe pod`` prints, and ``kubectl get pod -o json``, as evidence."""

from __future__ import annotations

import re
from typing import Any

from fp4forge.doctor import command_line as commands
from fp4forge.doctor.evidence import Evidence

_FIELD = re.compile(r"^( {2,40})([A-Z][\w /]{1,40}):(?: +(.*))?$")
_EVENT = re.compile(r"^ {2}(?:Normal|Warning) +(\w+) .*")
_GPUS = re.compile(r"nvidia\.com/(?:gpu|mig-[\w.-]+): +([0-9]{1,4})")
_SERVER = re.compile(r"vllm", re.I)
_CONTAINERS = re.compile(r"(?m)^ {0,2}Containers:\s*$")  # two spaces: of a deployment's template


def is_description(text: str) -> bool:
    """Whether a text is what kubectl describe pod prints."""
    return bool(re.search(r"(?m)^Name: ", text) and _CONTAINERS.search(text))


def from_description(text: str) -> Evidence:
    """From kubectl describe pod: the container that serves a model, and the events."""
    described = [part for part in re.split(r"(?m)^(?=Name: )", text) if _CONTAINERS.search(part)]
    text = next((part for part in described if _SERVER.search(part)), described[0])
    after = _CONTAINERS.split(text, maxsplit=1)[1]
    parts = re.split(r"(?m)^ {2,3}(?=[a-z0-9][\w-]{0,62}:\s*$)", after)
    chosen = next((part for part in parts[1:] if _SERVER.search(part)), "".join(parts[1:2]))
    chosen = re.split(r"(?m)^ {0,2}[A-Z]\w+:", chosen)[0]
    fields = _container_fields(chosen)
    image = "".join(fields.get("Image", ())[:1])
    entry, arguments = fields.get("Command", []), fields.get("Args", [])
    given = commands.words([*entry, *arguments])
    asked = _GPUS.search(chosen)
    code = "".join(fields.get("Exit Code", ())[:1])
    reasons = fields.get("Reason", [])
    states = fields.get("State", [])
    return Evidence(
        image=image,
        command=commands.served(image, given, bool(entry)),
        environment=_pod_environment(fields.get("Environment", [])),
        status=_pod_status("".join(states[:1]), reasons),
        exit_code=int(code) if re.fullmatch("[0-9]{1,3}", code) else None,
        out_of_memory="OOMKilled" in reasons,
        gpu_requested=bool(asked) if chosen else None,
        gpu_count=int(asked[1]) if asked else None,
        events=[line.strip() for line in text.splitlines() if _EVENT.match(line)][-20:],
    )


def _pod_status(state: str, reasons: list[str]) -> str:
    if state == "Running":
        return "running"
    return "exited" if {"CrashLoopBackOff", "Error", "OOMKilled"} & set(reasons) else state.lower()


def _container_fields(part: str) -> dict[str, list[str]]:
    """The fields of a container; of nested and repeated ones every value, in order."""
    out: dict[str, list[str]] = {}
    name, depth = "", 0
    for line in part.splitlines():
        match = _FIELD.match(line)
        if match and (not name or len(match[1]) <= depth or name not in ("Command", "Args")):
            name, depth = match[2], len(match[1])
            out.setdefault(name, []).extend([match[3].strip()] if match[3] else [])
        elif name and line.strip():
            out[name].append(line.strip())
    return out


def _pod_environment(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def pod(data: dict[str, Any]) -> dict[str, Any] | None:
    """The pod in what kubectl get prints: one, of a list, or a deployment's; None if it is none."""
    if "kind" not in data:
        return None
    found = [item for item in _manifest_field(data, "items") or [data] if isinstance(item, dict)]
    pods = [_manifest_field(item, "spec", "template") or item for item in found]
    pods = [one for one in pods if _manifest_field(one, "spec", "containers")]
    return next((one for one in pods if _SERVER.search(str(one))), pods[0] if pods else None)


def from_object(data: dict[str, Any]) -> Evidence:
    """From kubectl get pod -o json; a field of another shape counts as absent."""
    containers = [
        c for c in _manifest_field(data, "spec", "containers") or () if isinstance(c, dict)
    ]
    chosen = next((c for c in containers if _SERVER.search(str(c))), (containers or [{}])[0])
    image = str(chosen.get("image") or "")
    entry = _command_words(chosen.get("command"))
    given = commands.words([*entry, *_command_words(chosen.get("args"))])
    limits = _manifest_field(chosen, "resources", "limits") or {}
    asked = [str(v) for k, v in limits.items() if "nvidia.com/" in str(k)] if limits else []
    statuses = [
        s for s in _manifest_field(data, "status", "containerStatuses") or () if isinstance(s, dict)
    ]
    state = next((s for s in statuses if s.get("name") == chosen.get("name")), {})
    ended = (
        _manifest_field(state, "lastState", "terminated")
        or _manifest_field(state, "state", "terminated")
        or {}
    )
    waiting = _manifest_field(state, "state", "waiting") or {}
    reasons = [str(entry.get("reason")) for entry in (ended, waiting) if entry]
    code = ended.get("exitCode")
    return Evidence(
        image=image,
        command=commands.served(image, given, bool(entry)),
        environment={
            str(e.get("name")): str(e["value"])
            for e in chosen.get("env") or ()
            if isinstance(e, dict) and isinstance(e.get("value"), str)
        }
        if isinstance(chosen.get("env"), list)
        else {},
        status="running"
        if _manifest_field(state, "state", "running")
        else _pod_status("", reasons),
        exit_code=code if type(code) is int else None,
        out_of_memory="OOMKilled" in reasons,
        gpu_requested=bool(asked),
        gpu_count=int(asked[0]) if asked and re.fullmatch("[0-9]{1,4}", asked[0]) else None,
    )


def _command_words(value: Any) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else []


def _manifest_field(value: Any, *names: str) -> Any:
    """A field of nested mappings; None if a step is of another kind, or its end no collection."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict | list) else None
