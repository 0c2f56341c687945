"""What an image consists of, read from the engine: audited, and held against a record."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fp4forge.oci import acquire, registry
from fp4forge.plan.request import ImageRequest
from fp4forge.publish import distro_packages, gate, signing
from fp4forge.publish.pipeline import prepare
from fp4forge.sbom import documents, kept
from fp4forge.sbom.components import SbomComponent, SbomSubject
from tests.e2e.conftest import REGISTRY, ROOT, shell

pytestmark = pytest.mark.engine
NAME = f"fp4forge/h-supply:{os.getpid()}"
DATA = ROOT / "tests" / "unit" / "data" / "osv"
REQUEST = ImageRequest(arch="sm121", release="0.20.2", strategy="wheel", base="bootstrap")
STATUS = """Package: libssl3t64
Status: install ok installed
Architecture: arm64
Source: openssl (3.5.1-1)
Version: 3.5.1-1

"""
OS_RELEASE = 'ID=debian\nVERSION_ID="13"\n'
MD5SUMS = "var/lib/dpkg/info/libssl3t64:arm64.md5sums"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image for another machine with a plan and one Debian package: never started."""
    archive = tmp_path_factory.mktemp("image") / "layer.tar"
    plan = json.dumps(prepare(REQUEST).plan.as_json())
    with tarfile.open(archive, "w") as tar:
        for path, text in (
            (f"{acquire.FOLDER}/plan.json".lstrip("/"), plan),
            ("var/lib/dpkg/status", STATUS),
            (MD5SUMS, "0 usr/lib/libssl.so.3\n"),
            ("usr/lib/os-release", OS_RELEASE),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    shell("docker", "import", "--platform", "linux/arm64", str(archive), NAME)
    yield NAME
    shell("docker", "rmi", NAME)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """OSV data: the known ones of vLLM, and one of Debian."""
    record: dict[str, Any] = {
        "id": "DEBIAN-CVE-2026-1",
        "upstream": ["CVE-2026-1"],
        "modified": "2026-11-28T00:00:00Z",
        "affected": [
            {
                "package": {"ecosystem": "Debian:13", "name": "openssl"},
                "ranges": [
                    {
                        "type": "ECOSYSTEM",
                        "events": [{"introduced": "0"}, {"fixed": "3.5.1-1+deb13u1"}],
                    }
                ],
                "ecosystem_specific": {"urgency": "high"},
            }
        ],
    }
    (tmp_path / "debian.json").write_text(json.dumps(record))
    for path in DATA.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_an_image_is_audited_with_its_distribution(imported: str, data: Path) -> None:
    done = shell(
        sys.executable, "build.py", "audit", imported, "--db", str(data), "--json", check=False
    )
    assert done.returncode == 30, done.stderr
    report = json.loads(done.stdout)
    found = {finding["id"]: finding for finding in report[0]["findings"]}
    assert report[0]["release"] == "0.20.2"
    assert found["CVE-2026-1"]["packages"] == ["openssl 3.5.1-1"]
    assert found["CVE-2026-1"]["severity"] == "high" and not found["CVE-2026-1"]["explained"]
    assert found["CVE-2026-105760"]["explained"]
    (left_out,) = report[0]["left_out"]
    assert "has no SBOM" in left_out


def test_a_publish_is_refused_for_what_only_the_image_has(imported: str, data: Path) -> None:
    from dataclasses import replace

    from fp4forge.core.errors import UsageError, VulnerableError

    known = ("PYSEC-2026-2303", "CVE-2026-115911", "GHSA-5r3c-5x4v-8gjh", "GHSA-v97p-wpxp-px84")
    plan = prepare(replace(REQUEST, allow_vulnerable=known)).plan
    assert gate.lock(plan, str(data), lambda _: None)
    with pytest.raises(VulnerableError, match="CVE-2026-1 "):
        gate.image(plan, imported, (), str(data), lambda _: None)
    accepted = prepare(replace(REQUEST, allow_vulnerable=(*known, "CVE-2026-1"))).plan
    assert "accepted: CVE-2026-1" in gate.image(accepted, imported, (), str(data), lambda _: None)
    nothing = prepare(replace(REQUEST, allow_vulnerable=(*known, "CVE-2026-1", "CVE-2026-2"))).plan
    with pytest.raises(UsageError, match="CVE-2026-2: this image has no such"):
        gate.image(nothing, imported, (), str(data), lambda _: None)


def test_a_publish_is_refused_for_a_source_that_is_compiled_in(imported: str, data: Path) -> None:
    from dataclasses import replace

    from fp4forge.core.errors import VulnerableError

    known = ("PYSEC-2026-2303", "CVE-2026-115911", "GHSA-5r3c-5x4v-8gjh", "GHSA-v97p-wpxp-px84")
    plan = prepare(replace(REQUEST, allow_vulnerable=(*known, "CVE-2026-1"))).plan
    repository, commit = "https://github.com/NVIDIA/cutlass", "1" * 40
    events = [{"introduced": "0"}, {"fixed": commit}]
    ranges = [{"type": "GIT", "repo": repository, "events": events}]
    (data / "git.json").write_text(
        json.dumps({"id": "CVE-2026-3", "affected": [{"ranges": ranges}]})
    )
    listed = SbomComponent(
        name="cutlass", version="2" * 40, purl="pkg:github/x", ecosystem="GIT", source=repository
    )
    with pytest.raises(VulnerableError, match="CVE-2026-3 "):
        gate.image(plan, imported, [listed], str(data), lambda _: None)
    fixed = msgspec.structs.replace(listed, version=commit)
    assert gate.image(plan, imported, [fixed], str(data), lambda _: None)


def test_an_image_is_audited_with_the_sbom_beside_it(imported: str, data: Path) -> None:
    """In a registry: what is compiled in is found by it, and nothing is said to be left out."""
    name = f"{REGISTRY}/fp4forge/h-supply"
    tagged = f"{name}:{os.getpid()}"
    shell("docker", "tag", imported, tagged)
    try:
        shell("docker", "push", tagged)
        repository, digest = signing.locate(tagged)
        commit, source = "2" * 40, "https://github.com/NVIDIA/cutlass"
        listed = SbomComponent(
            name="cutlass", version=commit, purl="pkg:github/x/y@2", ecosystem="GIT", source=source
        )
        subject = SbomSubject(
            digest=digest, platform="linux/arm64", title="t", version="1", plan="0", epoch=1
        )
        images = registry.existing(repository, digest).data.by_platform.values() or [digest]
        for image in images:
            bom = documents.cyclonedx(subject, [listed], ())
            kept.attach(repository, image, {kept.CYCLONEDX: bom}, 1)
        ranges = [{"type": "GIT", "repo": f"{source}.git", "events": [{"introduced": "0"}]}]
        record = {"id": "CVE-2026-3", "affected": [{"ranges": ranges}]}
        (data / "git.json").write_text(json.dumps(record))
        line = (sys.executable, "build.py", "audit", tagged, "--db", str(data), "--json")
        (report,) = json.loads(shell(*line, check=False).stdout)
        found = {finding["id"]: finding for finding in report["findings"]}
        assert found["CVE-2026-3"]["packages"] == [f"github.com/nvidia/cutlass {commit}"]
        assert found["CVE-2026-1"]["packages"] == ["openssl 3.5.1-1"]
        assert report["left_out"] == []
    finally:
        shell("docker", "rmi", tagged)


def test_its_packages_are_recorded_and_compared(
    imported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distro_packages, "FOLDER", tmp_path)
    path, moved = distro_packages.record_image(imported, lambda _: None)
    assert path == tmp_path / "bootstrap-arm64.txt"
    assert moved == ["libssl3t64:arm64 3.5.1-1 is new"]
    same = distro_packages.check(imported, "bootstrap", "linux/arm64", distro_packages.REFUSE)
    assert same.startswith("1 packages, as in")


def test_an_image_of_others_is_refused(data: Path) -> None:
    base = shell("docker", "images", "-q", "fp4forge.local/bootstrap").stdout.split()
    if not base:
        pytest.skip("NOT RUN: no image without a plan is in the engine")
    done = shell(sys.executable, "build.py", "audit", base[0], "--db", str(data), check=False)
    assert done.returncode == 2 and "has no plan" in done.stderr
