"""Credentials in a layer's files: what is found, what is not, and a blob that is not its digest."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import zstandard

from fp4forge.checks import credentials as layers
from fp4forge.core import paths
from fp4forge.core.errors import BinaryError

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "QUJD" * 60 + "\n-----END"
FOUND = {
    "a": ("x = hf_" + "a" * 34, "a Hugging Face token"),
    "b": ("ghp_" + "a" * 36, "a GitHub token"),
    "c": (" github_pat_" + "a" * 60, "a GitHub token"),
    "d": ("\nglpat-" + "a" * 20, "a GitLab token"),
    "e": ("AKIA" + "ABCD" * 4, "an AWS key"),
    "f": (KEY, "a private key"),
    "home/.netrc": ("", "a credentials file"),
}
CLEAN = {
    "a": "self_hf_" + "a" * 34,
    "b": "xghp_" + "a" * 36,
    "c": "hf_hub_download",
    "d": "AKIAIOSFODNN7EXAMPLE",
    "e": "-----BEGIN PRIVATE KEY-----\n...\n-----END",
}


def blob(files: dict[str, str], compress: bool = True) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text) or 1
            archive.addfile(entry, io.BytesIO(text.encode() or b"\n"))
    return zstandard.compress(stream.getvalue()) if compress else stream.getvalue()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "STATE", tmp_path)
    return tmp_path


def look(content: bytes) -> list[layers.LikelyCredential] | None:
    digest = hashlib.sha256(content).hexdigest()
    layers.keep(digest, io.BytesIO(content))
    found = layers.kept(digest)
    assert found is not None
    return found.findings


@pytest.mark.parametrize("compress", [True, False])
def test_every_kind_is_found_and_its_content_is_not_kept(state: Path, compress: bool) -> None:
    found = look(blob({name: text for name, (text, _) in FOUND.items()}, compress))
    assert found == [layers.LikelyCredential(f"/{name}", what) for name, (_, what) in FOUND.items()]
    assert not any("aaaa" in path.read_text() for path in state.rglob("*.json"))


def test_what_only_looks_alike_is_not(state: Path) -> None:
    assert look(blob(CLEAN)) == []


def test_a_manifest_is_no_layer(state: Path) -> None:
    assert look(b'{"schemaVersion": 2}') is None


@pytest.mark.parametrize("compress", [True, False])
def test_a_layer_cut_short_is_not_kept_as_clean(state: Path, compress: bool) -> None:
    whole = blob(CLEAN, compress)
    digest = hashlib.sha256(whole).hexdigest()
    with pytest.raises(BinaryError, match="does not match its digest"):
        layers.keep(digest, io.BytesIO(whole[: len(whole) // 2]))
    assert not list(state.rglob("*.json"))
