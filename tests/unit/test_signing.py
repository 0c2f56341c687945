"""What signing decides without cosign: options, keys, provenance, and what a bundle carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fp4forge.cli import cli
from fp4forge.core.errors import ArtefactError, ForgeError, RegistryError, ToolError, UsageError
from fp4forge.oci import cosign
from fp4forge.oci.cosign import Signer, Trust
from fp4forge.publish import beside, provenance
from tests.fuzz import fuzz

# BuildKit 0.12's predicate of https://slsa.dev/provenance/v0.2, shortened.
OLD: dict[str, Any] = {
    "buildType": "https://mobyproject.org/buildkit@v1",
    "builder": {"id": ""},
    "invocation": {
        "configSource": {"entryPoint": "Dockerfile"},
        "parameters": {"frontend": "dockerfile.v0", "args": {"build-arg:VARIANT": "awq"}},
        "environment": {"platform": "linux/amd64"},
    },
    "materials": [{"uri": "pkg:docker/debian@13", "digest": {"sha256": "ab"}}],
    "buildConfig": {"llbDefinition": []},
    "metadata": {
        "buildInvocationID": "one",
        "buildStartedOn": "2026-01-01T00:00:00Z",
        "buildFinishedOn": "2026-01-01T00:01:00Z",
        "completeness": {"parameters": True, "environment": True, "materials": False},
        "reproducible": False,
    },
}


def test_provenance_of_version_02_becomes_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_WORKFLOW_REF", "CI_CONFIG_REF_URI"):
        monkeypatch.delenv(name, raising=False)
    new = json.loads(provenance.convert(OLD))
    definition, run = new["buildDefinition"], new["runDetails"]
    assert definition["buildType"] == provenance.BUILD_TYPE
    assert definition["externalParameters"] == {
        "configSource": {"path": "Dockerfile"},
        "request": OLD["invocation"]["parameters"],
    }
    assert definition["resolvedDependencies"] == OLD["materials"]
    assert run["builder"]["id"] == provenance.LOCAL_BUILDER
    assert run["metadata"]["invocationId"] == "one"
    assert run["metadata"]["buildkit_completeness"]["resolvedDependencies"] is False
    assert json.loads(provenance.convert(new)) == new


def test_a_workflow_is_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.example")
    monkeypatch.setenv("GITHUB_WORKFLOW_REF", "o/r/.github/workflows/build.yml@refs/heads/main")
    new = json.loads(provenance.convert(OLD))
    assert new["runDetails"]["builder"]["id"] == (
        "https://github.example/o/r/.github/workflows/build.yml@refs/heads/main"
    )
    kept = json.loads(provenance.convert(OLD | {"builder": {"id": "https://its.own"}}))
    assert kept["runDetails"]["builder"]["id"] == "https://its.own"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@fuzz
@given(st.sampled_from(sorted(OLD)), _JSON)
def test_provenance_with_any_field(name: str, value: Any) -> None:
    try:
        json.loads(provenance.convert(OLD | {name: value}))
    except RegistryError as error:
        assert name in error.message


@fuzz
@given(
    st.binary(max_size=200) | _JSON.map(lambda value: json.dumps({"signatures": value}).encode())
)
def test_what_a_bundle_carries_of_any_bytes(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        Path(name, beside.FILE).write_bytes(content)
        try:
            found = beside.read(Path(name))
        except ArtefactError as error:
            assert beside.FILE in error.message
        else:
            # Each digest becomes a path below the layout's blobs.
            assert all(digest.startswith("sha256:") for digest in found.manifests)


def test_a_bundle_names_no_path_outside_its_blobs(tmp_path: Path) -> None:
    evil = {"signatures": {"sha256:" + "a" * 64: "sha256:../../../../etc/passwd"}}
    (tmp_path / beside.FILE).write_text(json.dumps(evil))
    with pytest.raises(ArtefactError):
        beside.read(tmp_path)


def test_a_key_is_a_file_or_a_uri(tmp_path: Path) -> None:
    file = tmp_path / "-x.key"
    file.write_text("key")
    assert cosign.key(str(file), "--key") == str(file)
    assert cosign.key("awskms:///alias/fp4forge", "--key") == "awskms:///alias/fp4forge"
    for wrong in ("awskms:// --upload=false", "://x", str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(UsageError, match="--key"):
            cosign.key(wrong, "--key")


def test_only_a_key_leaves_the_log_out() -> None:
    assert "--tlog-upload=false" in Signer("k").flags
    assert Signer().flags == []
    assert "--insecure-ignore-tlog" in Trust("k").flags
    assert not any("ignore" in flag for flag in Trust(identity="me", issuer="https://x").flags)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "sm121", "--sign-key", "k"], "go with --push"),
        (["--arch", "sm121", "--sign-keyless"], "go with --push"),
        (["--arch", "sm121", "--push", "--sign-key", "k", "--sign-keyless"], "exclude each other"),
        (["verify", "x:1", "--identity", "me"], "go together"),
        (["history", "x:1", "--issuer", "https://x"], "go together"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], said: str) -> None:
    environment = {"REGISTRY": "127.0.0.1:1", "FP4FORGE_SIGN_KEY": "", "FP4FORGE_KEY": ""}
    done = CliRunner().invoke(cli, arguments, env=environment, standalone_mode=False)
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_a_machine_without_cosign_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="cosign is not installed"):
        cosign.signer(str(tmp_path))


@fuzz
@given(st.text(max_size=60))
def test_a_signers_key_of_any_text(text: str) -> None:
    try:
        found = cosign.key(text, "--sign-key")
    except ForgeError as error:
        assert "--sign-key" in error.message
    else:
        assert found.startswith("/") or "://" in found
