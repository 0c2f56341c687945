"""The record of a distribution's packages: what moved, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp4forge.advisories.installed import DPKG_STATUS
from fp4forge.core.errors import BinaryError, DriftError
from fp4forge.publish import distro_packages
from fp4forge.publish.distro_packages import DistroPackage
from tests.fuzz import fuzz, survives

STATUS = b"""Package: libssl3t64
Status: install ok installed
Architecture: amd64
Source: openssl
Version: 3.5.1-1

Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2-1

Package: tzdata
Status: install ok installed
Architecture: all
Version: 2026a-1
"""
FILES = {
    DPKG_STATUS: STATUS,
    "/var/lib/dpkg/info/libssl3t64:amd64.md5sums": b"0 usr/lib/libssl.so.3\n",
    "/var/lib/dpkg/info/bash.md5sums": b"1 bin/bash\n",
}


def with_(path: str, content: bytes) -> dict[str, DistroPackage]:
    return distro_packages.of_files(FILES | {path: content})


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = distro_packages.of_files(FILES)
    assert found.keys() == {"libssl3t64:amd64", "bash:amd64", "tzdata:all"}
    assert found["bash:amd64"].version == "5.2-1" and found["tzdata:all"].files == "-"
    file = tmp_path / "record.txt"
    file.write_text(distro_packages.text(found))
    assert distro_packages.read(file) == found


def test_what_moved() -> None:
    old = distro_packages.of_files(FILES)
    newer = STATUS.replace(b"3.5.1-1", b"3.5.4-1~deb13u1").replace(b"tzdata", b"zoneinfo")
    assert distro_packages.differences(old, with_(DPKG_STATUS, newer)) == [
        "libssl3t64:amd64 3.5.1-1 -> 3.5.4-1~deb13u1",
        "tzdata:all 2026a-1 is gone",
        "zoneinfo:all 2026a-1 is new",
    ]
    # Rebuilt under the same version: only its files show it.
    other = with_("/var/lib/dpkg/info/bash.md5sums", b"2 bin/bash\n")
    assert distro_packages.differences(old, other) == [
        "bash:amd64 5.2-1 has different files under the same version"
    ]
    assert distro_packages.differences(old, distro_packages.of_files(FILES)) == []


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record of an older bash."""
    monkeypatch.setattr(distro_packages, "FOLDER", tmp_path)
    monkeypatch.setattr(distro_packages, "of_image", lambda _: distro_packages.of_files(FILES))
    path = distro_packages.record_of("bootstrap", "linux/amd64")
    old = distro_packages.of_files(FILES) | {"bash:amd64": DistroPackage("5.1-9", "-")}
    path.write_text(distro_packages.text(old))
    return path


def check(choice: str) -> str:
    return distro_packages.check("image", "bootstrap", "linux/amd64", choice)


def test_a_move_is_said_refused_or_recorded(moved: Path) -> None:
    line = "bash:amd64 5.1-9 -> 5.2-1"
    before = moved.read_text()
    assert check(distro_packages.SAY).splitlines()[1:] == [line]
    with pytest.raises(DriftError, match=line) as error:
        check(distro_packages.REFUSE)
    assert "--moved-packages record" in error.value.remedy
    assert moved.read_text() == before
    assert check(distro_packages.RECORD).splitlines()[1:] == [line]
    assert (
        check(distro_packages.REFUSE) == "3 packages, as in releases/packages/bootstrap-amd64.txt"
    )


def test_without_a_record(moved: Path) -> None:
    moved.unlink()
    assert check(distro_packages.SAY).startswith("no record")
    with pytest.raises(DriftError, match="no record"):
        check(distro_packages.REFUSE)


def test_an_image_without_dpkg() -> None:
    with pytest.raises(BinaryError, match="/var/lib/dpkg/status"):
        distro_packages.of_files({})


def test_a_broken_record_is_refused(moved: Path) -> None:
    moved.write_text("bash 5.2-1\n")
    with pytest.raises(DriftError, match="line 1"):
        check(distro_packages.SAY)


@fuzz
@given(st.text(max_size=200))
def test_fuzz_record(tmp_path_factory: pytest.TempPathFactory, noise: str) -> None:
    file = tmp_path_factory.getbasetemp() / "record.txt"
    good = distro_packages.text(distro_packages.of_files(FILES))
    place = len(noise) * 7 % len(good)
    file.write_bytes((good[:place] + noise + good[place:]).encode(errors="replace"))
    survives(lambda: distro_packages.read(file))


@fuzz
@given(st.binary(max_size=300))
def test_fuzz_status(noise: bytes) -> None:
    place = len(noise) % len(STATUS)
    spoilt = STATUS[:place] + noise + STATUS[place:]
    survives(lambda: distro_packages.of_files(FILES | {DPKG_STATUS: spoilt}))
