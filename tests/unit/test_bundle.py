"""A bundle is one image and what belongs to it: nothing else is loaded, pushed or put beside."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import ArtefactError
from fp4forge.oci.layout import OciLayout
from fp4forge.publish import beside, bundle, records
from fp4forge.publish.beside import Beside
from tests.e2e.faults import images
from tests.e2e.faults.images import Image

OTHER = "sha256:" + "0" * 64


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return images.make(tmp_path, 1)


def unpack(image: Image, tmp_path: Path) -> None:
    file = images.bundle(image.layout.folder, tmp_path / "spoilt.bundle")
    with bundle.unpacked(file, tmp_path / "to", lambda _: None):
        pass


def artifact(layout: OciLayout, subject: str, **more: Any) -> str:
    """An artifact's manifest in a layout; its digest."""
    config = {"mediaType": "x"} | images._blob(layout, b"{}")
    data = {"config": config, "layers": [], "subject": {"digest": subject, "size": 1}} | more
    return str(images._blob(layout, json.dumps(data).encode())["digest"])


@pytest.mark.parametrize("name", ["manifest.json", "repositories"])
def test_what_docker_would_load_instead_is_refused(image: Image, tmp_path: Path, name: str) -> None:
    (image.layout.folder / name).write_text("[]")
    with pytest.raises(ArtefactError, match="not an OCI layout alone"):
        unpack(image, tmp_path)


def test_a_layout_that_does_not_say_so_is_refused(image: Image, tmp_path: Path) -> None:
    (image.layout.folder / "oci-layout").unlink()
    with pytest.raises(ArtefactError, match="not an OCI layout alone"):
        unpack(image, tmp_path)


def test_a_file_that_is_there_twice_is_refused(image: Image, tmp_path: Path) -> None:
    with tarfile.open(image.bundle, "a") as archive:
        archive.addfile(tarfile.TarInfo("index.json"), io.BytesIO())
    with (
        pytest.raises(ArtefactError, match=r"'index\.json' twice"),
        bundle.unpacked(image.bundle, tmp_path / "to", lambda _: None),
    ):
        pass


def _header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.USTAR_FORMAT)


def _extended(kind: bytes, text: str) -> bytes:
    return _header("x", len(text), kind) + text.encode().ljust(512, b"\0")


def _changed(header: bytes, **fields: tuple[int, bytes]) -> bytes:
    """A header with other bytes at some places, and the checksum that goes with them."""
    new = bytearray(header)
    for at, value in fields.values():
        new[at : at + len(value)] = value
    new[148:156] = b" " * 8
    new[148:156] = b"%06o\0 " % sum(new)
    return bytes(new)


FILE = _header("manifest.json", 2) + b"[]".ljust(512, b"\0")
# docker's reader takes each of these for manifest.json.
TWO_NAMES = {
    "a pax name before GNU's": _extended(b"x", "24 path=evidence/x.json\n")
    + _extended(b"L", "manifest.json\0")
    + FILE,
    "a global name": _extended(b"g", "24 path=evidence/x.json\n")
    + _extended(b"x", "11 mtime=1\n")
    + FILE,
    "a record with a sign": _extended(b"x", "11 mtime=1\n+23 path=manifest.json\n")
    + _header("evidence/x.json", 2)
    + FILE[512:],
    "the prefix of an old header": _changed(
        FILE[:512], magic=(257, b"\0" * 8), prefix=(345, b"evidence")
    )
    + FILE[512:],
    "behind a header that Python cannot read": _changed(
        FILE[:512], magic=(257, b"\0" * 8), device=(329, b"garbage")
    )
    + FILE[512:],
    "behind the end": bytes(1024) + FILE,
}


@pytest.mark.parametrize("form", TWO_NAMES)
def test_a_file_that_docker_reads_by_another_name_is_refused(
    image: Image, tmp_path: Path, form: str
) -> None:
    with tarfile.open(image.bundle) as archive:
        last = archive.getmembers()[-1]
        end = last.offset_data + -(-last.size // 512) * 512
    content = image.bundle.read_bytes()[:end] + TWO_NAMES[form] + bytes(1024)
    image.bundle.write_bytes(content)
    with (
        pytest.raises(ArtefactError, match=r"of another form|behind its last file"),
        bundle.unpacked(image.bundle, tmp_path / "to", lambda _: None),
    ):
        pass


@pytest.mark.parametrize("tag", ["sha256-" + "0" * 64, f"sha256-{'0' * 64}.sig"])
def test_a_tag_of_what_lies_beside_an_image_is_refused(
    image: Image, tmp_path: Path, tag: str
) -> None:
    name = {"io.containerd.image.name": f"127.0.0.1:5000/team/image:{tag}"}
    image.layout.name_only(image.digest, name)
    with pytest.raises(ArtefactError, match="names the image"):
        unpack(image, tmp_path)


@pytest.mark.parametrize("kind", ["signatures", "attestations", "artifacts", "subject"])
def test_what_is_not_beside_its_own_image_is_refused(
    image: Image, tmp_path: Path, kind: str
) -> None:
    layout, own = image.layout, image.digest
    good = artifact(layout, own)
    beside.write(layout.folder, Beside({own: good, good: good}, {own: good}, {own: [good]}))
    unpack(image, tmp_path)
    (tmp_path / "to").rename(tmp_path / "good")
    found = {
        "signatures": Beside(signatures={OTHER: good}),
        "attestations": Beside(attestations={OTHER: good}),
        "artifacts": Beside(artifacts={OTHER: [artifact(layout, OTHER)]}),
        "subject": Beside(artifacts={own: [artifact(layout, OTHER)]}),
    }[kind]
    beside.write(layout.folder, found)
    with pytest.raises(ArtefactError, match="does not belong to the image"):
        unpack(image, tmp_path)


def test_a_record_of_a_publish_in_another_registry_stays_behind(
    image: Image, tmp_path: Path
) -> None:
    layout, own = image.layout, image.digest
    config = {"mediaType": records.KIND} | images._blob(layout, b"{}")
    good = artifact(layout, own)
    said = artifact(layout, own, artifactType=records.KIND)
    meant = artifact(layout, own, config=config)  # as registries list what has no type of its own
    beside.write(layout.folder, Beside(artifacts={own: [said, good, meant]}))
    file = images.bundle(layout.folder, tmp_path / "x.bundle")
    with bundle.unpacked(file, tmp_path / "to", lambda _: None) as (found, _):
        assert found.beside.artifacts == {own: [good]}
