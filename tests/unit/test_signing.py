"""What signing decides without cosign: options, keys, provenance, and what a bundle carries."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fp4forge.cli import cli
from fp4forge.core.errors import (
    ArtefactError,
    ForgeError,
    RegistryError,
    SignatureError,
    ToolError,
    UsageError,
)
from fp4forge.inputs import locks
from fp4forge.inputs.release import Release
from fp4forge.oci import cosign
from fp4forge.oci.cosign import Signer, Trust
from fp4forge.plan import packages
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.publish import beside, fetched, provenance, signing
from fp4forge.publish.fetched import ResolvedDependency
from fp4forge.sbom import documents, kept
from fp4forge.sbom.components import SbomComponent, SbomSubject, canonical, wheel_hashes
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
    new = json.loads(provenance.convert(OLD, []))
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
    assert json.loads(provenance.convert(new, [])) == new
    # BuildKit sees its base; what the steps fetched is added, to either version.
    one = ResolvedDependency("a 1", "pkg:pypi/a@1", {"sha256": "a" * 64}, {"from": "locks/a.txt"})
    for made in (provenance.convert(OLD, [one]), provenance.convert(new, [one])):
        *base, last = json.loads(made)["buildDefinition"]["resolvedDependencies"]
        assert base == OLD["materials"] and last["digest"] == {"sha256": "a" * 64}
        assert fetched.read(made, "it")[-1] == one


PLANS = (
    ImageRequest("sm121", "0.33.0", "plain", "wheel", "bootstrap", aot="none", extras=("ray",)),
    ImageRequest("blackwell", "0.20.2", "awq", "source", "bootstrap", aot="none"),
)


@pytest.mark.parametrize("request_", PLANS, ids=("wheel", "source"))
def test_every_file_of_the_locks_is_in_the_list_of_fetches(request_: ImageRequest) -> None:
    plan = resolve(request_)
    listed = fetched.of(plan)
    digests = {one.digest.get("sha256") for one in listed}
    names = {one.name for one in listed}
    for file in packages.files(plan):
        for package, block in locks.entries(locks.content(file)).items():
            name, version = locks.pin(block)
            own = set(re.findall(r"sha256:([0-9a-f]{64})", block))
            if plan.strategy == "source" and name == "vllm":
                continue
            assert own and own <= digests, package
            assert f"{canonical(name)} {version}" in names
    for name, source in plan.sources.items():
        (entry,) = (one for one in listed if one.name == name)
        assert source.where.partition("#")[0] in entry.uri
        commit = source.where.partition("#")[2]
        assert entry.digest == ({"gitCommit": commit} if len(commit) == 40 else {})
    release = plan.inputs.release
    assert isinstance(release, Release)
    vllm = release.sdist if plan.strategy == "source" else release.vllm.wheels[plan.platform]
    assert vllm.sha256 in digests
    deb = SbomComponent(name="libc6", version="1", purl="pkg:deb/x", ecosystem="Debian:13")
    assert [one.name for one in fetched.of(plan, [deb]) if one not in listed] == ["libc6"]
    assert all(len(one.text.split("  ")) == 4 for one in listed)


def test_provenance_that_lacks_a_wheel_of_the_sbom_is_refused() -> None:
    plan = resolve(PLANS[0])
    allowed = wheel_hashes(plan)
    every = [
        SbomComponent(name=n, version=v, purl=f"pkg:pypi/{n}@{v}", ecosystem="PyPI", sha256=hashes)
        for (n, v), hashes in allowed.items()
    ]
    listed = fetched.of(plan)
    fetched.demand(provenance.convert(OLD, listed), every, "it")
    (gone,) = (one for one in every if one.name == "torch")
    left = [one for one in listed if one.digest.get("sha256") not in gone.sha256]
    lacking = provenance.convert(OLD, left)
    with pytest.raises(
        SignatureError, match=f"not list what the build fetched: torch {gone.version}"
    ):
        fetched.demand(lacking, every, "it")
    with pytest.raises(SignatureError, match="more"):
        fetched.demand(provenance.convert(OLD, []), every, "it")
    # The signatures' check compares the two that are signed.
    subject = SbomSubject(
        digest="sha256:" + "ab" * 32, platform="p", title="t", version="1", plan="0", epoch=0
    )
    sbom = documents.cyclonedx(subject, every, ())
    kind = kept.PREDICATES[kept.CYCLONEDX]
    signing.demand_fetches({provenance.KIND: lacking}, "it")
    with pytest.raises(SignatureError, match="torch"):
        signing.demand_fetches({provenance.KIND: lacking, kind: sbom}, "it")


def test_the_list_of_fetches_is_a_signed_one() -> None:
    done = CliRunner().invoke(cli, ["sbom", "host/image:tag", "--format", "fetched"])
    assert isinstance(done.exception, UsageError) and "whose signature" in str(done.exception)
    with pytest.raises(SignatureError):
        fetched.read(b'{"buildDefinition": {"resolvedDependencies": 1}}', "it")
    # Whoever signs, a terminal gets no control characters.
    text = b'{"buildDefinition": {"resolvedDependencies": [{"uri": "a\\u001b[2J\\tb"}]}}'
    (one,) = fetched.read(text, "it")
    assert "\x1b" not in one.text and len(one.text.split("  ")) == 4


def test_a_workflow_is_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.example")
    monkeypatch.setenv("GITHUB_WORKFLOW_REF", "o/r/.github/workflows/build.yml@refs/heads/main")
    new = json.loads(provenance.convert(OLD, []))
    assert new["runDetails"]["builder"]["id"] == (
        "https://github.example/o/r/.github/workflows/build.yml@refs/heads/main"
    )
    kept = json.loads(provenance.convert(OLD | {"builder": {"id": "https://its.own"}}, []))
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
        json.loads(provenance.convert(OLD | {name: value}, []))
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
