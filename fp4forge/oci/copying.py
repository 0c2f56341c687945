"""Copies images between layouts and registries: skopeo moves the blobs, and they are read back."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from fp4forge.core import reading
from fp4forge.core.errors import DiskError, RegistryError
from fp4forge.core.limits import COPY_SILENCE_SECONDS, MANIFEST_BYTES, REGISTRY_SECONDS
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress
from fp4forge.oci import api, dockercli, process, registry
from fp4forge.oci.layout import Descriptor, OciLayout
from fp4forge.oci.reference import ImageReference


def provenance(reference: str) -> dict[str, dict[str, Any]]:
    """SLSA provenance of an image in a registry (buildx imagetools reads it), by platform.

    Args:
        reference: REPOSITORY@DIGEST of an image index.

    Returns:
        The predicate for each platform; nothing if the index has none. With one platform its
        key is empty.

    Raises:
        RegistryError: the registry does not answer, or has no such index.
    """
    line = dockercli.line("buildx", "imagetools", "inspect", "--format", "{{json .Provenance}}")
    done = process.run([*line, reference], seconds=2 * REGISTRY_SECONDS)
    if done.returncode != 0:
        _raise_transfer_error(reference, "read the provenance of", done.stderr)
    where = f"the provenance of {reference}"
    text = done.stdout.strip()
    shape = dict[str, dict[str, Any] | None]
    found = reading.json(text if text not in ("", "null") else "{}", shape, where, RegistryError)
    one = found.get("SLSA")
    if one is not None:
        return {"": one}
    return {
        name: entry["SLSA"]
        for name, entry in found.items()
        if entry and isinstance(entry.get("SLSA"), dict)
    }


def missing(reference: str) -> str:
    """Why no registry has an image; empty if one has it, with docker's login and mirrors."""
    line = dockercli.line("buildx", "imagetools", "inspect", "--raw", reference)
    try:
        found = process.run(line, REGISTRY_SECONDS)
    except RegistryError as error:
        return error.message
    if found.returncode == 0:
        return ""
    return shown(found.stderr.strip().rpartition("\n")[2], 300) or "no reason given"


def push(layout: Path, repository: str, digest: str, report: Progress) -> None:
    """Copies an image index with all it names from an OCI layout, by digest: no tag is made.

    Raises:
        RegistryError: the registry went away, stays silent, refuses, or keeps other bytes than
            it was sent; nothing is tagged, and what was copied is not copied again.
    """
    line = [
        *_COPY,
        *_tls_flags(repository, "dest"),
        f"oci:{layout}",
        f"docker://{repository}@{digest}",
    ]
    _skopeo_copy(line, repository, "push", report)
    read_back(OciLayout(layout), repository, digest)


def pull(reference: str, layout: Path, report: Progress) -> None:
    """Copies an image index with all it names into an OCI layout.

    Args:
        reference: REPOSITORY@DIGEST.
        layout: the folder of the layout.
        report: called with progress.

    Raises:
        RegistryError: the registry does not have it, or went away.
    """
    line = [*_COPY, *_tls_flags(reference, "src"), f"docker://{reference}", f"oci:{layout}"]
    _skopeo_copy(line, reference, "read", report)


def read_back(layout: OciLayout, repository: str, digest: str) -> None:
    """Asks the registry for what was just pushed: each manifest, and the end of each blob.

    A registry that cuts blobs must not pass: small ones are read whole and held to their digest;
    of large ones size and last bytes are compared with the local blob, without a second download.

    Raises:
        RegistryError: something is missing, or is not what was pushed.
    """
    index = registry.existing(repository, digest).data
    for entry in index.manifests or [Descriptor(digest)]:
        image = registry.existing(repository, entry.digest).data
        for blob in [registry.config_of(repository, image), *(image.layers or ())]:
            _check_blob(layout, repository, blob.digest)


_TAIL = 4096  # bytes compared at a blob's end


def _check_blob(layout: OciLayout, repository: str, digest: str) -> None:
    path = layout.path(digest)
    if not path.is_file():
        return
    size = path.stat().st_size
    length = min(_TAIL, size)
    with path.open("rb") as file:
        file.seek(size - length)
        wanted = file.read()
    head = api.ask("HEAD", repository, f"blobs/{digest}", {})
    kept = head.status == 200 and head.headers.get("content-length", "") == str(size)
    if kept:
        whole = size <= MANIFEST_BYTES
        range_ = {} if whole else {"Range": f"bytes={size - length}-{size - 1}"}
        answer = api.ask("GET", repository, f"blobs/{digest}", range_)
        kept = answer.status in (200, 206) and answer.content[-length:] == wanted
        if whole:
            kept = kept and "sha256:" + hashlib.sha256(answer.content).hexdigest() == digest
    if not kept:
        raise RegistryError(
            f"{repository} does not keep blob {digest[:19]} as it was pushed",
            rule=f"{size} bytes, identical to the local blob",
            remedy="check the registry's storage; nothing was tagged",
        )


_COPY = ("skopeo", "copy", "--all", "--preserve-digests")


def _skopeo_copy(line: list[str], what: str, action: str, report: Progress) -> None:
    said: list[str] = []

    def follow(text: str) -> None:
        said.append(text.strip())
        del said[:-50]
        if text.startswith("Copying blob"):
            report(text.strip())

    code = process.follow(line, follow, silence=COPY_SILENCE_SECONDS)
    if code != 0:
        _raise_transfer_error(what, action, "\n".join(said))


def _tls_flags(repository: str, side: str = "") -> list[str]:
    flag = f"--{side}-tls-verify" if side else "--tls-verify"
    loopback = ImageReference(repository).loopback
    return [f"{flag}=false"] if loopback else []


def _raise_transfer_error(repository: str, action: str, reason: str) -> None:
    lines = [line for line in reason.strip().splitlines() if line.strip()]
    last = re.sub(r'^time="[^"]*" level=\w+ msg="?', "", lines[-1] if lines else "no reason given")
    last = shown(last, 500)
    if re.search(r"(?i)no space left|status: 507\b", last):  # skopeo drops the text of a 507
        raise DiskError(f"{action} to {repository}: {last}", remedy="free space at the registry")
    raise RegistryError(
        f"{action} {repository}: {last}",
        remedy="check the registry and 'docker login'; running again resumes",
    )
