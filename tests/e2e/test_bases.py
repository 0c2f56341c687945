"""Bases made here: the same bytes each time, and only of packages that the base's keyring signs."""

from __future__ import annotations

import functools
import http.server
import json
import re
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from fp4forge.core.errors import BaseImageError, UsageError
from fp4forge.inputs import bases
from fp4forge.inputs.bases import Base
from fp4forge.oci.layout import OciLayout
from fp4forge.publish import base_images as making
from tests.e2e.conftest import shell

PLATFORM = "linux/amd64"


def base(keyring: str = bases.load("bootstrap").keyring) -> Base:
    known = bases.load("bootstrap")
    return Base(name="bootstrap", python=known.python, suite=known.suite, keyring=keyring)


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_a_base_made_here_is_the_same_image_each_time(platform: str, tmp_path: Path) -> None:
    """With the time of its making in it, each machine's images on top would have other digests."""
    reference = f"fp4forge.local/same:{tmp_path.name}"
    made = []
    for number in range(2):
        place = tmp_path / str(number)
        place.mkdir()
        with tarfile.open(place / "layer.tar", "w") as layer:
            layer.addfile(tarfile.TarInfo("etc"))
        making.import_layer(place / "layer.tar", platform, reference)
        form = "{{.Id}} {{.Os}}/{{.Architecture}}"
        made.append(shell("docker", "image", "inspect", "--format", form, reference).stdout)
        shell("docker", "rmi", "--force", reference)
    assert made[0] == made[1]
    assert made[0].split()[1] == platform


def opened(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    assert file is not None
    return file


def test_a_base_is_the_same_wherever_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt takes folders for its own user, but only if that user can reach the temporary folder."""
    reference, saved = f"fp4forge.local/anywhere:{tmp_path.name}", tmp_path / "saved.tar"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        Path(place).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", place)
        monkeypatch.setenv("TMPDIR", place)
        making._bootstrap_base(base(), PLATFORM, reference, lambda line: None)
    shell("docker", "save", "--output", str(saved), reference)
    shell("docker", "rmi", "--force", reference)
    with tarfile.open(saved) as image:
        (layer,) = json.load(opened(image, "manifest.json"))[0]["Layers"]
        with tarfile.open(fileobj=opened(image, layer)) as archive:
            owners = {member.name: member.uid for member in archive if "apt/" in member.name}
    assert "./var/lib/apt/lists/partial" in owners and set(owners.values()) == {0}


def test_a_command_on_the_base_gives_the_same_layer_each_time(tmp_path: Path) -> None:
    """BuildKit makes a folder that a container needs and the base lacks, with the present time."""
    reference = making.ensure(base(), PLATFORM, lambda line: None)
    (tmp_path / "Dockerfile").write_text(f"FROM {reference}\nRUN touch --date=@0 /x\n")
    found = []
    for number in range(2):
        place = tmp_path / str(number)
        flags = ["--no-cache", "--provenance=false", f"--output=type=oci,tar=false,dest={place}"]
        shell("docker", "buildx", "build", *flags, str(tmp_path))
        digest = json.loads((place / "index.json").read_text())["manifests"][0]["digest"]
        found.append([layer.digest for layer in OciLayout(place).document(digest).layers or []])
        time.sleep(1)  # an archive's times are in seconds
    assert found[0] == found[1] and len(found[0]) == 2


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The suite's folder of a mirror on loopback, the only one that this machine's apt then has."""
    root = tmp_path / "mirror"
    suite = root / "debian/dists" / base().suite
    suite.mkdir(parents=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sources, config = tmp_path / "sources.list", tmp_path / "apt.conf"
    where = f"http://127.0.0.1:{server.server_port}/debian"
    sources.write_text(f"deb {where} {base().suite} main\n")
    config.write_text(f'Dir::Etc::sourcelist "{sources}"; Dir::Etc::sourceparts "/dev/null";\n')
    monkeypatch.setenv("APT_CONFIG", str(config))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield suite
    server.shutdown()


def refused(wanted: Base) -> str:
    with pytest.raises(BaseImageError) as raised:
        making.ensure(wanted, PLATFORM, lambda line: None)
    assert "signed by a key of" in str(raised.value.rule)
    return raised.value.message


def test_a_mirror_without_a_signature_is_refused(mirror: Path) -> None:
    (mirror / "Release").write_text("Origin: Debian\nSuite: stable\nCodename: trixie\n")
    unknown = base("debian-archive-removed-keys.gpg")  # a base that the engine does not have
    assert "is not signed" in refused(unknown)


def test_a_mirror_with_an_altered_list_is_refused(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as real:
        real.delenv("APT_CONFIG")
        source = f"{making._debian_mirror()}/dists/{base().suite}/InRelease"
    with urllib.request.urlopen(source, timeout=60) as answer:
        signed = answer.read().decode()
    (mirror / "InRelease").write_text(
        re.sub("^Origin: Debian", "Origin: Other", signed, flags=re.M)
    )
    monkeypatch.setattr(bases, "EPOCH", "1767225601")  # a base that the engine does not have
    assert "is not signed" in refused(base())


def test_a_mirror_that_another_keyring_signs_is_refused() -> None:
    """This machine's apt trusts the mirror; the base does not."""
    assert "is not signed" in refused(base("debian-archive-removed-keys.gpg"))


@pytest.mark.parametrize("address", ["debian", "http://u:p@127.0.0.1/debian", "http://a/ b]"])
def test_a_mirror_is_an_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FP4FORGE_DEBIAN_MIRROR", address)
    monkeypatch.setattr(bases, "EPOCH", "1767225601")
    with pytest.raises(UsageError, match="FP4FORGE_DEBIAN_MIRROR"):
        making.ensure(base(), PLATFORM, lambda line: None)
