"""Registries: read and write manifests and tags over HTTP; skopeo copies the blobs.

OCI distribution specification 1.1. What a registry answers is judged by its status code, bounded in
size and time, and held to its digest. Credentials are those of ``docker login``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.core.errors import DiskError, ForgeError, RegistryError, TagError, ToolError
from fp4forge.core.limits import (
    COPY_SILENCE_SECONDS,
    MANIFEST_BYTES,
    REGISTRY_CONNECT_SECONDS,
    REGISTRY_SECONDS,
)
from fp4forge.kernels.base import Progress
from fp4forge.oci import process
from fp4forge.oci.layout import Layout, image_entries, image_manifests, is_attestation
from fp4forge.oci.reference import Reference

INDEX = "application/vnd.oci.image.index.v1+json"
_ACCEPT = ", ".join(
    (
        INDEX,
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


@dataclass(frozen=True)
class Manifest:
    """A manifest or index with the digest of its bytes."""

    digest: str
    content: bytes
    media_type: str

    @property
    def data(self) -> dict[str, Any]:
        """The manifest's JSON object.

        Raises:
            RegistryError: it is not one.
        """
        try:
            found = json.loads(self.content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise RegistryError(f"manifest {self.digest[:19]} is not a JSON object")
        return found


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: dict[str, str]
    content: bytes


def _ask(
    method: str, repository: str, path: str, headers: dict[str, str], body: bytes | None = None
) -> _Answer:
    """One request, with the login that the registry asks for.

    Raises:
        RegistryError: no answer, or one that is too large or too slow.
    """
    import requests
    import urllib3

    reference = Reference(repository)
    host = reference.host or "registry-1.docker.io"
    name = repository.removeprefix(f"{reference.host}/") if reference.host else repository
    scheme = "http" if reference.loopback else "https"
    url = f"{scheme}://{host}/v2/" + (f"{name}/{path}" if path else "")
    with requests.Session() as session:
        session.trust_env = not reference.loopback
        try:
            answer = _send(session, method, url, headers, body)
            if answer.status == 401 and path:
                login = _login(session, host, answer.headers.get("www-authenticate", ""))
                answer = _send(session, method, url, headers | login, body)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = str(getattr(error, "args", [error])[0])
            raise RegistryError(
                f"no registry answers at {host}: {reason[:200]}",
                rule=f"an answer within {REGISTRY_SECONDS} s (OCI distribution specification)",
                remedy="check the registry; scripts/registry.sh starts one on loopback",
            ) from None
    return answer


def _send(
    session: Any, method: str, url: str, headers: dict[str, str], body: bytes | None
) -> _Answer:
    deadline = time.monotonic() + REGISTRY_SECONDS
    timeout = (REGISTRY_CONNECT_SECONDS, REGISTRY_SECONDS)
    with session.request(
        method, url, headers={"Accept-Encoding": "identity"} | headers, data=body,
        timeout=timeout, stream=True, allow_redirects=method in ("GET", "HEAD"),
    ) as answer:  # fmt: skip
        content = b""
        # read1 returns what has arrived: a byte now and then must not reset the deadline.
        while chunk := answer.raw.read1(1 << 16, decode_content=False):
            content += chunk
            if len(content) > MANIFEST_BYTES:
                raise RegistryError(
                    f"{url} answers with more than {MANIFEST_BYTES} bytes",
                    rule="the distribution specification's limit for manifests is 4 MiB",
                )
            if time.monotonic() > deadline:
                raise RegistryError(f"{url} does not end its answer within {REGISTRY_SECONDS} s")
        found = {key.lower(): value for key, value in answer.headers.items()}
        return _Answer(answer.status_code, found, content)


def _login(session: Any, host: str, challenge: str) -> dict[str, str]:
    """The Authorization header that a challenge asks for (RFC 7235; token specification)."""
    import base64

    from docker import auth

    known = auth.load_config().resolve_authconfig(host) or {}
    user, password = known.get("username") or known.get("Username"), known.get("password")
    password = password or known.get("Password")
    basic = ""
    if user and password:
        basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    kind, _, rest = challenge.partition(" ")
    if kind.lower() != "bearer":
        return {"Authorization": basic} if basic else {}
    fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    query = {key: fields[key] for key in ("service", "scope") if key in fields}
    realm = fields.get("realm", "")
    if not realm.startswith("https://"):
        return {}
    from urllib.parse import urlencode

    headers = {"Authorization": basic} if basic else {}
    answer = _send(session, "GET", f"{realm}?{urlencode(query)}", headers, None)
    try:
        data = json.loads(answer.content)
        token = data.get("token") or data.get("access_token")
    except (ValueError, AttributeError):
        token = None
    return {"Authorization": f"Bearer {token}"} if token else {}


def reach(repository: str) -> None:
    """Asks the registry's API root for an answer, before anything long is started.

    Raises:
        RegistryError: nothing answers there, or it is not a registry.
        ToolError: skopeo is not installed.
    """
    if shutil.which("skopeo") is None:
        raise ToolError("skopeo is not installed", remedy="run make setup")
    status = _ask("GET", repository, "", {}).status
    if status not in (200, 401):
        host = repository.split("/", 1)[0]
        raise RegistryError(
            f"{host} answers {status} to GET /v2/: not a registry",
            rule="--push needs a registry (OCI distribution spec, GET /v2/)",
        )


def manifest(repository: str, name: str) -> Manifest | None:
    """The manifest that a tag or digest names; None if there is none (status 404).

    Raises:
        RegistryError: the registry does not answer, refuses, or sends other bytes than the digest.
    """
    answer = _ask("GET", repository, f"manifests/{name}", {"Accept": _ACCEPT})
    if answer.status == 404:
        return None
    if answer.status != 200:
        raise _refused(repository, f"read {name[:40]}", answer)
    digest = "sha256:" + hashlib.sha256(answer.content).hexdigest()
    if name.startswith("sha256:") and digest != name:
        raise RegistryError(
            f"{repository}@{name[:19]} has other content than its digest says",
            rule="what is addressed by digest has that digest",
            remedy="do not use this registry's copy; check its storage",
        )
    return Manifest(digest, answer.content, answer.headers.get("content-type", INDEX))


def resolve(repository: str, tag: str) -> tuple[str, dict[str, Any]] | None:
    """Digest and JSON of what a tag names; None if the tag is free.

    Raises:
        RegistryError: the registry does not answer, or refuses.
    """
    found = manifest(repository, tag)
    return None if found is None else (found.digest, found.data)


def _existing(repository: str, digest: str) -> Manifest:
    found = manifest(repository, digest)
    if found is None:
        raise RegistryError(f"{repository} has no {digest[:19]}", remedy="push it again")
    return found


def put(repository: str, name: str, content: bytes, media_type: str) -> None:
    """Stores a manifest under a tag or its digest.

    Raises:
        RegistryError: the registry refuses.
    """
    answer = _ask("PUT", repository, f"manifests/{name}", {"Content-Type": media_type}, content)
    if answer.status not in (200, 201, 202):
        raise _refused(repository, f"write {name[:40]}", answer)


def tag(repository: str, digest: str, name: str) -> None:
    """Makes a tag name a digest that is already in the repository, and reads it back.

    Raises:
        RegistryError: the registry refuses, or the tag names something else afterwards.
    """
    current = manifest(repository, name)
    if current is not None and current.digest == digest:
        return
    wanted = _existing(repository, digest)
    put(repository, name, wanted.content, wanted.data.get("mediaType", wanted.media_type))
    found = manifest(repository, name)
    if found is None or found.digest != digest:
        raise RegistryError(
            f"{repository}:{name} names {found.digest if found else 'nothing'}",
            rule=f"it was to name {digest}",
            remedy="somebody else may have pushed; run again",
        )


def images_of(repository: str, digest: str) -> set[str]:
    """Digests of the image manifests that an index in the repository names.

    Raises:
        RegistryError: the registry does not answer, or has no such index.
    """
    return image_manifests(_existing(repository, digest).data)


def layer_sizes(repository: str, digest: str) -> dict[str, int]:
    """Digest and compressed bytes of every layer of an index's images, all platforms together.

    Raises:
        RegistryError: the registry does not answer, or has no such index.
    """
    images = [_existing(repository, image).data for image in images_of(repository, digest)]
    return {layer["digest"]: layer["size"] for image in images for layer in image["layers"]}


def image_labels(repository: str, digest: str) -> list[dict[str, str]]:
    """The configuration's labels of each image of an index, with its platform as ``platform``.

    Raises:
        RegistryError: the registry does not answer, or lacks one of the blobs.
    """
    found = []
    for entry in image_entries(_existing(repository, digest).data):
        image = _existing(repository, entry["digest"]).data
        answer = _ask("GET", repository, f"blobs/{image['config']['digest']}", {})
        if answer.status != 200:
            raise _refused(repository, "read a configuration", answer)
        config = json.loads(answer.content)
        platform = f"{config.get('os')}/{config.get('architecture')}"
        labels = (config.get("config") or {}).get("Labels") or {}
        found.append({**labels, "platform": platform})
    return found


def check_takes_nothing_away(repository: str, name: str, labels: list[dict[str, str]]) -> None:
    """Refuses to move a tag away from an image of another platform, strategy or base.

    Args:
        repository: where.
        name: the moving tag.
        labels: of the images that the tag is to name, as ``image_labels`` has them.

    Raises:
        TagError: the tag names such an image now.
    """
    found = manifest(repository, name)
    if found is None:
        return
    now = image_labels(repository, found.digest)
    for label, what in (
        ("platform", "platform"),
        ("io.fp4forge.strategy", "strategy"),
        ("org.opencontainers.image.base.name", "base"),
    ):
        old, new = ({_kind(entry.get(label, "")) for entry in all_} for all_ in (now, labels))
        if old - new:
            raise TagError(
                f"{repository}:{name} names an image of {what} {', '.join(sorted(old))}",
                rule=f"a push never takes a tag away from another {what}",
                remedy="choose another --tag, or publish all platforms at once (--platform A,B)",
            )


def _kind(value: str) -> str:
    """A base's name without what differs between platforms and recipes."""
    return re.sub(r":([a-z]+)-(amd64|arm64)-[0-9a-f]+$", r":\1", value.partition("@")[0])


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
    line = ["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Provenance}}"]
    done = process.run([*line, reference], seconds=2 * REGISTRY_SECONDS)
    if done.returncode != 0:
        _raise(reference, "read the provenance of", done.stderr)
    found: dict[str, Any] = json.loads(done.stdout or "null") or {}
    if "SLSA" in found:
        return {"": found["SLSA"]}
    return {name: entry["SLSA"] for name, entry in found.items() if entry and "SLSA" in entry}


def combine(repository: str, digests: list[str], manifests: set[str]) -> str:
    """Stores one index of several by its digest, without a tag; returns the digest.

    Args:
        repository: where.
        digests: of the indexes, one for each platform.
        manifests: digests of the image manifests that the new index must name.

    Raises:
        RegistryError: the registry refuses, or the indexes name other images.
    """
    entries = [
        entry for digest in digests for entry in _existing(repository, digest).data["manifests"]
    ]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    if image_manifests(index) != manifests:
        raise RegistryError(
            f"the indexes in {repository} do not name the images that were verified",
            remedy="somebody else may have pushed; run again",
        )
    content = json.dumps(index, separators=(",", ":")).encode()
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    put(repository, digest, content, INDEX)
    return digest


def immutable(
    repository: str, name: str, index: dict[str, Any], own_digest: str
) -> tuple[str, str | None]:
    """The immutable tag for an image: ``name``, or if another image has it, ``name-<digest>``.

    One plan gives other bytes when packages of the distribution moved on; both images stay.

    Args:
        repository: where.
        name: the plan's tag.
        index: the index to be published.
        own_digest: its digest.

    Returns:
        The tag, and the index digest that it names already; None if it is free.

    Raises:
        TagError: both names are taken by other images.
    """
    other = f"{name}-{min(image_manifests(index))[7:15]}"
    for candidate in (name, other):
        found = manifest(repository, candidate)
        if found is None:
            return candidate, None
        if found.digest == own_digest or _same_images(found.data, index):
            return candidate, found.digest
    raise TagError(
        f"{repository}:{other} already names another image",
        rule="an immutable tag is never moved",
        remedy="publish this image in another repository (--repo)",
    )


def _same_images(found: dict[str, Any], index: dict[str, Any]) -> bool:
    """Whether an index has the same images for the same platforms, and only their attestations."""

    def images(data: dict[str, Any]) -> set[tuple[str, str, str]]:
        return {
            (entry["digest"], platform.get("os", ""), platform.get("architecture", ""))
            for entry in image_entries(data)
            for platform in (entry.get("platform") or {},)
        }

    try:
        names = image_manifests(index)
        subjects = {
            (entry.get("annotations") or {}).get("vnd.docker.reference.digest")
            for entry in found.get("manifests") or []
            if is_attestation(entry)
        }
        return images(found) == images(index) and subjects <= names
    except (AttributeError, KeyError, TypeError):
        return False


def push(layout: Path, repository: str, digest: str, report: Progress) -> None:
    """Copies an image index with all it names from an OCI layout, by digest: no tag is made.

    Raises:
        RegistryError: the registry went away, stays silent, refuses, or keeps other bytes than
            it was sent; nothing is tagged, and what was copied is not copied again.
    """
    line = [*_COPY, *_tls(repository, "dest"), f"oci:{layout}", f"docker://{repository}@{digest}"]
    _copy(line, repository, "push", report)
    read_back(Layout(layout), repository, digest)


def pull(reference: str, layout: Path, report: Progress) -> None:
    """Copies an image index with all it names into an OCI layout.

    Args:
        reference: REPOSITORY@DIGEST.
        layout: the folder of the layout.
        report: called with progress.

    Raises:
        RegistryError: the registry does not have it, or went away.
    """
    line = [*_COPY, *_tls(reference, "src"), f"docker://{reference}", f"oci:{layout}"]
    _copy(line, reference, "read", report)


def read_back(layout: Layout, repository: str, digest: str) -> None:
    """Asks the registry for what was just pushed: each manifest, and the end of each blob.

    A registry that cuts blobs must not pass: size and last bytes are compared with the local
    blob, without a second download.

    Raises:
        RegistryError: something is missing, or is not what was pushed.
    """
    index = _existing(repository, digest).data
    for entry in index.get("manifests") or [{"digest": digest}]:
        image = _existing(repository, entry["digest"]).data
        for blob in [image["config"], *image["layers"]]:
            _check_blob(layout, repository, blob["digest"])


_TAIL = 4096  # bytes compared at a blob's end


def _check_blob(layout: Layout, repository: str, digest: str) -> None:
    path = layout.path(digest)
    if not path.is_file():
        return
    size = path.stat().st_size
    length = min(_TAIL, size)
    with path.open("rb") as file:
        file.seek(size - length)
        wanted = file.read()
    head = _ask("HEAD", repository, f"blobs/{digest}", {})
    has = int(head.headers.get("content-length") or -1)
    answer = None
    if head.status == 200 and has == size:
        range_ = {"Range": f"bytes={size - length}-{size - 1}"}
        if size <= MANIFEST_BYTES:
            range_ = {}
        answer = _ask("GET", repository, f"blobs/{digest}", range_)
    if answer is None or answer.status not in (200, 206) or answer.content[-length:] != wanted:
        raise RegistryError(
            f"{repository} does not keep blob {digest[:19]} as it was pushed",
            rule=f"{size} bytes that end as the local blob does",
            remedy="check the registry's storage; nothing was tagged",
        )


_COPY = ("skopeo", "copy", "--all", "--preserve-digests")


def _copy(line: list[str], what: str, action: str, report: Progress) -> None:
    said: list[str] = []

    def follow(text: str) -> None:
        said.append(text.strip())
        del said[:-50]
        if text.startswith("Copying blob"):
            report(text.strip())

    code = process.follow(line, follow, silence=COPY_SILENCE_SECONDS)
    if code != 0:
        _raise(what, action, "\n".join(said))


def _tls(repository: str, side: str = "") -> list[str]:
    flag = f"--{side}-tls-verify" if side else "--tls-verify"
    loopback = Reference(repository.partition("@")[0]).loopback
    return [f"{flag}=false"] if loopback else []


def _refused(repository: str, action: str, answer: _Answer) -> ForgeError:
    text = re.sub(r"[^\x20-\x7e]+", " ", answer.content[:200].decode(errors="replace"))
    if answer.status == 507 or "no space left" in text.lower():
        return DiskError(f"{action} in {repository}: {text}", remedy="free space at the registry")
    return RegistryError(
        f"{action} in {repository}: status {answer.status} {text}".strip(),
        remedy="check the registry and 'docker login'; running again resumes",
    )


def _raise(repository: str, action: str, reason: str) -> None:
    lines = [line for line in reason.strip().splitlines() if line.strip()]
    last = re.sub(r'^time="[^"]*" level=\w+ msg="?', "", lines[-1] if lines else "no reason given")
    if "no space left" in last.lower():
        raise DiskError(f"{action} to {repository}: {last}", remedy="free space at the registry")
    raise RegistryError(
        f"{action} {repository}: {last.strip()}",
        remedy="check the registry and 'docker login'; running again resumes",
    )
