"""Small images in the form of the real ones: an OCI layout, a bundle, and a copy in a registry."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.oci.layout import INDEX, OciLayout, image_index

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER_BYTES = 48_000


@dataclass(frozen=True)
class Image:
    """An image index in a layout of its own, and a bundle of it."""

    layout: OciLayout
    digest: str
    bundle: Path


def make(folder: Path, seed: int, **labels: str) -> Image:
    """An image of one layer, whose bytes the seed decides."""
    layout = OciLayout(folder / "layout")
    layer = _blob(layout, random.Random(seed).randbytes(LAYER_BYTES))
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json"}
        | _blob(layout, _json(config)),
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar"} | layer],
    }
    entry = {"mediaType": MANIFEST} | _blob(layout, _json(manifest))
    entry["platform"] = {"os": "linux", "architecture": "amd64"}
    index = image_index([entry])
    digest = _blob(layout, _json(index))["digest"]
    (layout.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    layout.name_only(digest, {"io.containerd.image.name": "127.0.0.1:5000/team/image:1"})
    return Image(layout, digest, bundle(layout.folder, folder / "image.bundle"))


def seed(address: str, name: str, image: Image, *tags: str) -> None:
    """Puts an image into a registry, by the shortest way; tags name it."""
    layout, connection = image.layout, http.client.HTTPConnection(address, timeout=20)

    def ask(method: str, path: str, body: bytes = b"", kind: str = "") -> str:
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status in (200, 201, 202), text
        return answer.headers.get("Location", "")

    for entry in layout.document(image.digest).images:
        for blob in layout.document(entry.digest).blobs:
            place = ask("POST", f"/v2/{name}/blobs/uploads/")
            content = layout.path(blob.digest).read_bytes()
            ask("PUT", f"{place}&digest={blob.digest}", content, "application/octet-stream")
        content = layout.path(entry.digest).read_bytes()
        ask("PUT", f"/v2/{name}/manifests/{entry.digest}", content, MANIFEST)
    content = layout.path(image.digest).read_bytes()
    for tag in (image.digest, *tags):
        ask("PUT", f"/v2/{name}/manifests/{tag}", content, INDEX)
    connection.close()


def named(address: str, name: str, tag: str) -> str | None:
    """What a tag names in a registry; None if it is free."""
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", f"/v2/{name}/manifests/{tag}", headers={"Accept": INDEX})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status in (200, 404), content
    return "sha256:" + hashlib.sha256(content).hexdigest() if answer.status == 200 else None


def bundle(layout: Path, path: Path) -> Path:
    """A bundle of a layout, and of the other files in its folder."""
    names = sorted(file.name for file in layout.iterdir() if file.is_file())
    sums = [f"{hashlib.sha256((layout / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (layout / "SHA256SUMS").write_text("".join(sums))
    with tarfile.open(path, "w") as archive:
        for file in sorted(layout.rglob("*")):
            if file.is_file():
                archive.add(file, file.relative_to(layout).as_posix())
    (layout / "SHA256SUMS").unlink()
    return path


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _blob(layout: OciLayout, content: bytes) -> dict[str, Any]:
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    layout.path(digest).parent.mkdir(parents=True, exist_ok=True)
    layout.path(digest).write_bytes(content)
    return {"digest": digest, "size": len(content)}
