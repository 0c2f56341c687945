"""Registries: reach, push by digest, read, tag. skopeo and buildx do the work."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from fp4forge.console import Report
from fp4forge.errors import DiskError, RegistryError, TagError, ToolError

_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+)(:[0-9]+)?/")


def is_loopback(repository: str) -> bool:
    """Whether the registry listens on loopback, where plain HTTP is usual."""
    return bool(_LOOPBACK.match(repository))


def reach(repository: str) -> None:
    """Asks the registry's API root for an answer, before anything long is started.

    Raises:
        RegistryError: nothing answers there, or it is no registry.
        ToolError: skopeo is not installed.
    """
    import requests

    if shutil.which("skopeo") is None:
        raise ToolError("skopeo is not installed", remedy="run make setup")
    host = repository.split("/", 1)[0]
    local = is_loopback(repository)
    session = requests.Session()
    session.trust_env = not local
    try:
        answer = session.get(f"{'http' if local else 'https'}://{host}/v2/", timeout=10)
    except requests.RequestException as error:
        reason = str(getattr(error, "args", [error])[0])
        raise RegistryError(
            f"no registry answers at {host}: {reason[:200]}",
            rule="--push needs a registry (OCI distribution spec, GET /v2/)",
            remedy="scripts/registry.sh starts one on loopback; or give --registry, or --load",
        ) from None
    if answer.status_code not in (200, 401):
        raise RegistryError(f"{host} answers {answer.status_code} to GET /v2/: not a registry")


def push(layout: Path, repository: str, digest: str, report: Report) -> None:
    """Copies an image index with all it names from an OCI layout, by digest: no tag is made.

    Raises:
        RegistryError: the registry went away or refuses; nothing is tagged, and what was copied
            is not copied again.
    """
    line = [*_COPY, *_tls(repository, "dest"), f"oci:{layout}", f"docker://{repository}@{digest}"]
    _copy(line, repository, "push", report)


def pull(reference: str, layout: Path, report: Report) -> None:
    """Copies an image index with all it names from a registry into an OCI layout.

    Args:
        reference: REPOSITORY@DIGEST.
        layout: folder of the layout.
        report: called with progress.

    Raises:
        RegistryError: the registry does not have it, or went away.
    """
    line = [*_COPY, *_tls(reference, "src"), f"docker://{reference}", f"oci:{layout}"]
    _copy(line, reference, "read", report)


_COPY = ("skopeo", "copy", "--all", "--preserve-digests")


def _copy(line: list[str], what: str, action: str, report: Report) -> None:
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said: list[str] = []
    try:
        for text in process.stdout:
            said.append(text.strip())
            if text.startswith("Copying blob"):
                report(text.strip())
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if code != 0:
        _raise(what, action, "\n".join(said))


def resolve(repository: str, tag: str) -> tuple[str, dict[str, Any]] | None:
    """Digest and manifest that a tag names; None when the tag is free.

    Raises:
        RegistryError: the registry does not answer, or refuses.
    """
    line = ["skopeo", "inspect", "--raw", *_tls(repository), f"docker://{repository}:{tag}"]
    done = subprocess.run(line, capture_output=True, timeout=60)
    if done.returncode == 0:
        digest = "sha256:" + hashlib.sha256(done.stdout).hexdigest()
        return digest, json.loads(done.stdout)
    reason = done.stderr.decode(errors="replace")
    if "manifest unknown" in reason or "name unknown" in reason or "not found" in reason.lower():
        return None
    _raise(repository, "read", reason)
    return None


def tag(repository: str, digest: str, name: str) -> None:
    """Lets a tag name a digest that is already in the repository, and looks that it does.

    Raises:
        RegistryError: the registry refuses, or the tag names something else afterwards.
    """
    current = resolve(repository, name)
    if current is not None and current[0] == digest:
        return
    line = ["docker", "buildx", "imagetools", "create", "--progress=plain"]
    line += ["--tag", f"{repository}:{name}", f"{repository}@{digest}"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        _raise(repository, f"tag {name}", done.stderr)
    found = resolve(repository, name)
    if found is None or found[0] != digest:
        raise RegistryError(
            f"{repository}:{name} names {found[0] if found else 'nothing'}",
            rule=f"it was to name {digest}",
            remedy="somebody else may have pushed; run again",
        )


def images_of(repository: str, digest: str) -> set[str]:
    """Digests of the image manifests that an index in the repository names.

    Raises:
        RegistryError: the registry does not answer, or has no such index.
    """
    return image_manifests(_blob(repository, digest))


def layer_sizes(repository: str, digest: str) -> dict[str, int]:
    """Digest and compressed bytes of every layer of an index's images, all platforms together.

    Raises:
        RegistryError: the registry does not answer, or has no such index.
    """
    images = [_blob(repository, image) for image in images_of(repository, digest)]
    return {layer["digest"]: layer["size"] for image in images for layer in image["layers"]}


def _blob(repository: str, digest: str) -> dict[str, Any]:
    """A manifest or index by digest."""
    line = ["skopeo", "inspect", "--raw", *_tls(repository), f"docker://{repository}@{digest}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        _raise(repository, f"read {digest[:19]}", done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def provenance(reference: str) -> dict[str, dict[str, Any]]:
    """SLSA provenance of an image in a registry (buildx imagetools reads it), by platform.

    Args:
        reference: REPOSITORY@DIGEST of an image index.

    Returns:
        The predicate for each platform; nothing where the index has none. With one platform its
        key is empty.

    Raises:
        RegistryError: the registry does not answer, or has no such index.
    """
    line = ["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Provenance}}"]
    done = subprocess.run([*line, reference], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        _raise(reference, "read the provenance of", done.stderr)
    found: dict[str, Any] = json.loads(done.stdout or "null") or {}
    if "SLSA" in found:
        return {"": found["SLSA"]}
    return {name: entry["SLSA"] for name, entry in found.items() if entry and "SLSA" in entry}


def combine(repository: str, digests: list[str], name: str, manifests: set[str]) -> str:
    """Makes one index of several in the repository, under a tag that is free; returns its digest.

    Args:
        repository: where.
        digests: of the indexes, one for each platform.
        name: the new tag.
        manifests: digests of the image manifests that the new index must name.

    Raises:
        RegistryError: the registry refuses, or the new index names other images.
    """
    line = ["docker", "buildx", "imagetools", "create", "--progress=plain"]
    line += ["--tag", f"{repository}:{name}", *(f"{repository}@{digest}" for digest in digests)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        _raise(repository, f"make index {name}", done.stderr)
    found = resolve(repository, name)
    if found is None or image_manifests(found[1]) != manifests:
        raise RegistryError(
            f"{repository}:{name} does not name the images that were verified",
            remedy="somebody else may have pushed; run again",
        )
    return found[0]


def immutable(repository: str, name: str, manifests: set[str]) -> tuple[str, str | None]:
    """The immutable tag for an image: ``name``, or where another image has it, ``name-<digest>``.

    One plan gives other bytes when packages of the distribution moved on; both images stay.

    Args:
        repository: where.
        name: the plan's tag.
        manifests: digests of the image manifests (not attestations) to be published.

    Returns:
        The tag, and the index digest that it names already; None when it is free.

    Raises:
        TagError: both names are taken by other images.
    """
    other = f"{name}-{min(manifests)[7:15]}"
    for candidate in (name, other):
        found = resolve(repository, candidate)
        if found is None:
            return candidate, None
        if image_manifests(found[1]) == manifests:
            return candidate, found[0]
    raise TagError(
        f"{repository}:{other} already names another image",
        rule="an immutable tag is never moved",
        remedy="publish this image in another repository (--repo)",
    )


def image_manifests(index: dict[str, Any]) -> set[str]:
    """Digests of an index's image manifests, attestations left aside."""
    return {
        entry["digest"]
        for entry in index.get("manifests", [])
        if entry.get("platform", {}).get("os") != "unknown"
    }


def _tls(repository: str, side: str = "") -> list[str]:
    flag = f"--{side}-tls-verify" if side else "--tls-verify"
    return [f"{flag}=false"] if is_loopback(repository) else []


def _raise(repository: str, action: str, reason: str) -> None:
    lines = [line for line in reason.strip().splitlines() if line.strip()]
    last = re.sub(r'^time="[^"]*" level=\w+ msg="?', "", lines[-1] if lines else "no reason given")
    if "no space left" in last.lower():
        raise DiskError(f"{action} to {repository}: {last}", remedy="free space at the registry")
    raise RegistryError(
        f"{action} {repository}: {last.strip()}",
        rule="no tag was moved",
        remedy="check the registry and 'docker login'; running again resumes",
    )
