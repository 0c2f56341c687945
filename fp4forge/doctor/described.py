"""How a server is described: files of docker, podman, kubectl and compose, or a container here."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from fp4forge.core import reading
from fp4forge.core.errors import ServingError, UsageError
from fp4forge.core.limits import LOG_BYTES
from fp4forge.core.text import shown
from fp4forge.doctor import composed, evidence, inspected, kubernetes
from fp4forge.doctor.composed import from_compose
from fp4forge.doctor.evidence import Evidence
from fp4forge.doctor.inspected import from_inspect
from fp4forge.oci import acquire, engine

__all__ = ["composed", "container", "from_compose", "from_inspect", "read_inspect"]


def read_inspect(path: Path) -> Evidence:
    """From a file with docker inspect's or podman inspect's JSON, or kubectl's description.

    Raises:
        UsageError: it is something else.
    """
    return from_text(reading.content(path, UsageError), f"--inspect {shown(path, 300)}")


def from_text(data: bytes, where: str) -> Evidence:
    """As ``read_inspect``, from the file's content.

    Raises:
        UsageError: it is something else.
    """
    text = evidence.decoded(data)
    if kubernetes.is_description(text):
        return kubernetes.from_description(text)
    found = _documents_in(text, where)
    if isinstance(found, dict) and (pod := kubernetes.pod(found)):
        return kubernetes.from_object(pod)
    try:
        return from_inspect(found, where)
    except UsageError as error:
        raise UsageError(error.message, rule=inspected.FORM) from None


def _documents_in(text: str, where: str) -> object:
    """The JSON in a text, as one value or one on each line, or its YAML.

    Raises:
        UsageError: it is neither.
    """
    try:
        return reading.json(text.encode(errors="replace"), object, where, UsageError)
    except UsageError as error:
        failed = error
    lines = [line for line in text.splitlines() if line.strip()]
    with contextlib.suppress(UsageError):
        return [reading.json(line, object, where, UsageError) for line in lines]
    if re.search(r"(?m)^kind: ", text):
        return reading.yaml(text, where, UsageError)
    raise UsageError(failed.message, rule=inspected.FORM)


def container(name: str) -> Evidence:
    """From a container that the engine has, running or not.

    Raises:
        ServingError: the container does not exist.
    """
    found = engine.find_container(name)
    if found is None:
        raise ServingError(
            f"container {shown(name, 200)!r} does not exist", remedy="docker ps --all lists them"
        )
    out = from_inspect(found.attrs, f"docker inspect {shown(name, 100)}", here=True)
    out.log = evidence.as_log(found.logs(tail=20_000)[-LOG_BYTES:])
    out.records = acquire.records_of(found)
    out.inputs = [evidence.GivenEvidence(f"container {name}", inspected.summary(out))]
    out.url = out.address
    return out
