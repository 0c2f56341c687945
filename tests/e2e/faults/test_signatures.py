"""Signatures against a real registry, with real cosign and keys of this run: each fault is refused.

Every case is also in ``docs/supply-chain.md``'s table of what is refused.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import SignatureError, UsageError
from fp4forge.oci import cosign, referrers, registry
from fp4forge.oci.cosign import Signer, Trust
from fp4forge.oci.layout import OciLayout
from fp4forge.publish import beside, provenance, records, signing, tagging
from fp4forge.sbom import kept
from tests.e2e.faults import images
from tests.e2e.faults.commands import Command
from tests.e2e.faults.images import Image, seed

PASSWORD = "correct-horse-battery"
MOVING = "1.0-sm121-awq-wheel"
PREDICATES = {
    provenance.KIND: b'{"buildDefinition":{},"runDetails":{"builder":{"id":"urn:x"}}}',
    "https://cyclonedx.org/bom": b'{"bomFormat":"CycloneDX","specVersion":"1.6"}',
    "https://spdx.dev/Document": b'{"spdxVersion":"SPDX-2.3"}',
}
if shutil.which("cosign") is None:
    pytest.skip("NOT RUN: needs cosign (scripts/test-tools.sh)", allow_module_level=True)


def quiet(_: str) -> None:
    pass


def key_pair(folder: Path) -> Path:
    """A new private key; its public one lies beside it."""
    subprocess.run(
        ["cosign", "generate-key-pair", f"--output-key-prefix={folder / 'cosign'}"],
        env=os.environ | {cosign.PASSWORD: PASSWORD},
        check=True,
        capture_output=True,
    )
    return folder / "cosign.key"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return key_pair(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return key_pair(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module", autouse=True)
def password() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cosign.PASSWORD, PASSWORD)
        yield


@pytest.fixture(autouse=True)
def waits(limits: None, patient: Callable[[], None]) -> None:
    """No login of the user's; cosign has its own limits."""
    patient()


@pytest.fixture(scope="module")
def place(upstream: str, image: Image, ours: Path, password: None) -> str:
    """A repository that has ``image``, signed whole; the other tests add images to it."""
    seed(upstream, "team/signed", image, "one")
    place = f"{upstream}/team/signed"
    sign(place, image, ours)
    return place


@pytest.fixture
def fresh(place: str, tmp_path: Path) -> Image:
    """Another image in the same repository, tagged "two", and not signed."""
    host, _, name = place.partition("/")
    made = images.make(tmp_path, int.from_bytes(os.urandom(6)))
    seed(host, name, made, "two")
    return made


def inner(image: Image) -> str:
    """The digest of the index's one platform."""
    (digest,) = image.layout.document(image.digest).image_digests
    return digest


def sign(place: str, image: Image, key: Path) -> None:
    signing.sign(place, image.digest, Signer(str(key)), quiet, {inner(image): PREDICATES})


def public(key: Path) -> str:
    return str(key.with_suffix(".pub"))


def copy_tag(place: str, source: str, target: str) -> None:
    found = registry.existing(place, source)
    registry.put(place, target, found.content, found.media_type)


def refused(command: Command, place: str, key: Path, *said: str, tag: str = "two") -> None:
    """``verify`` ends with the code of a signature's error, one message and no traceback."""
    done = command("verify", f"{place}:{tag}", "--key", public(key))
    assert done.code == SignatureError.exit_code, done.err
    (message,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    for text in said:
        assert text in message
    assert "Traceback" not in done.err


def test_a_signed_image_passes(place: str, image: Image, ours: Path, command: Command) -> None:
    done = command("verify", f"{place}:one", "--key", public(ours), "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["image"] == f"{place}@{image.digest}"
    assert found["manifests"] == 2
    assert found["attestations"] == list(signing.KINDS)
    stock = ["cosign", "verify", "--insecure-ignore-tlog", f"--key={public(ours)}"]
    assert subprocess.run([*stock, f"{place}:one"], capture_output=True).returncode == 0


def test_a_signer_knows_what_it_signed(
    place: str, image: Image, fresh: Image, ours: Path, theirs: Path
) -> None:
    assert signing.signed_by(place, image.digest, Signer(str(ours)), quiet)
    assert not signing.signed_by(place, image.digest, Signer(str(theirs)), quiet)
    assert not signing.signed_by(place, fresh.digest, Signer(str(ours)), quiet)


def test_signing_again_adds_nothing(place: str, image: Image, ours: Path) -> None:
    sign(place, image, ours)
    tags = (cosign.signature_tag(image.digest), cosign.attestation_tag(inner(image)))
    assert [len(registry.existing(place, tag).data.layers or ()) for tag in tags] == [1, 3]


def test_unsigned(place: str, fresh: Image, ours: Path, command: Command) -> None:
    refused(command, place, ours, fresh.digest, "has no signature")


def test_forged_by_another_key(
    place: str, fresh: Image, ours: Path, theirs: Path, command: Command
) -> None:
    cosign.sign(place, [inner(fresh), fresh.digest], Signer(str(theirs)))
    refused(command, place, ours, fresh.digest, "has no signature of the key")


def test_stripped_of_the_signature_of_the_platforms_image(
    place: str, fresh: Image, ours: Path, command: Command
) -> None:
    cosign.sign(place, [fresh.digest], Signer(str(ours)))
    refused(command, place, ours, inner(fresh), "has no signature")


def test_swapped_for_the_signatures_of_another_image(
    place: str, image: Image, fresh: Image, ours: Path, command: Command
) -> None:
    copy_tag(place, cosign.signature_tag(image.digest), cosign.signature_tag(fresh.digest))
    copy_tag(place, cosign.signature_tag(inner(image)), cosign.signature_tag(inner(fresh)))
    refused(command, place, ours, fresh.digest, "has no signature of the key")


@pytest.mark.parametrize("kind", signing.KINDS)
def test_stripped_of_an_attestation(
    place: str, image: Image, ours: Path, command: Command, kind: str
) -> None:
    tag = cosign.attestation_tag(inner(image))
    whole = registry.existing(place, tag)
    manifest = json.loads(whole.content)
    manifest["layers"] = [
        layer for layer in manifest["layers"] if layer["annotations"]["predicateType"] != kind
    ]
    assert len(manifest["layers"]) == 2
    registry.put(place, tag, json.dumps(manifest).encode(), whole.media_type)
    try:
        refused(command, place, ours, "has no attestation", kind, tag="one")
    finally:
        registry.put(place, tag, whole.content, whole.media_type)


def test_an_attestation_forged_by_another_key(
    place: str, fresh: Image, ours: Path, theirs: Path, command: Command
) -> None:
    kind = signing.KINDS[0]
    cosign.attest(place, inner(fresh), kind, PREDICATES[kind], Signer(str(theirs)))
    cosign.sign(place, [inner(fresh), fresh.digest], Signer(str(ours)))
    refused(command, place, ours, "has no attestation")


def test_an_attestation_swapped_for_that_of_another_image(
    place: str, image: Image, fresh: Image, ours: Path, command: Command
) -> None:
    cosign.sign(place, [inner(fresh), fresh.digest], Signer(str(ours)))
    copy_tag(place, cosign.attestation_tag(inner(image)), cosign.attestation_tag(inner(fresh)))
    refused(command, place, ours, inner(fresh), "has no attestation")


def test_a_compose_file_names_only_a_signed_image(
    place: str, image: Image, fresh: Image, ours: Path, theirs: Path, command: Command
) -> None:
    compose = ["serve", "compose", "--model", "/models/m", "--image"]
    for tag, key in (("two", ours), ("one", theirs)):
        done = command(*compose, f"{place}:{tag}", "--key", public(key))
        assert done.code == SignatureError.exit_code, done.err
        assert "services:" not in done.out
    done = command(*compose, f"{place}:one", "--key", public(ours))
    assert done.code == 0, done.err
    assert f"{place}@{image.digest}" in done.out


def move(place: str, image: Image, key: Path | None) -> str:
    by = Signer(str(key)) if key else None
    return tagging.give(place, image.digest, (MOVING,), quiet, verdict="9 checks", by=by)


def test_only_signed_records_count_with_a_key(
    place: str, image: Image, fresh: Image, ours: Path, theirs: Path, command: Command
) -> None:
    trust = Trust(public(ours))
    assert move(place, fresh, ours) == ""
    assert move(place, image, ours) == ""
    assert move(place, fresh, None) == ""
    assert move(place, image, theirs) == ""
    assert len(records.of(place, image.digest, MOVING)) == 4
    newest, first = records.of(place, image.digest, MOVING, trust)
    assert newest.tags[MOVING] == records.TagMove(fresh.digest, image.digest)
    assert first.tags[MOVING] == records.TagMove("", fresh.digest)
    done = command("history", f"{place}:{MOVING}", "--key", public(theirs), "--json")
    assert done.code == 0, done.err
    assert [entry["digest"] for entry in json.loads(done.out)] == [image.digest]


def test_a_signed_record_counts_only_beside_its_own_image(
    place: str, image: Image, fresh: Image, ours: Path
) -> None:
    tagging.give(place, image.digest, ("other-tag",), quiet, by=Signer(str(ours)))
    copy_tag(place, referrers.tag(image.digest), referrers.tag(fresh.digest))
    assert records.of(place, fresh.digest)
    assert records.of(place, fresh.digest, trust=Trust(public(ours))) == []


def test_a_key_is_tried_before_anything_is_built(
    ours: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cosign.signer(str(ours)).key == str(ours)
    monkeypatch.setenv(cosign.PASSWORD, "wrong-password")
    with pytest.raises(SignatureError, match="cannot be used") as caught:
        cosign.signer(str(ours))
    assert "wrong-password" not in str(caught.value)
    monkeypatch.delenv(cosign.PASSWORD)
    with pytest.raises(UsageError, match=f"{cosign.PASSWORD} is not set"):
        cosign.signer(str(ours))
    with pytest.raises(UsageError):
        cosign.signer(str(tmp_path / "none.key"))


def test_provenance_that_lacks_what_was_fetched(
    place: str, fresh: Image, ours: Path, command: Command
) -> None:
    """Both are signed by the right key: they are compared. The same with the list passes."""
    digest, kind = "a" * 64, "https://cyclonedx.org/bom"
    entry = {
        "name": "thing",
        "version": "1",
        "purl": "pkg:pypi/thing@1",
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "properties": [{"name": "fp4forge:ecosystem", "value": "PyPI"}],
    }
    bom = json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [entry]})
    made = PREDICATES | {kind: bom.encode()}
    signing.sign(place, fresh.digest, Signer(str(ours)), quiet, {inner(fresh): made})
    refused(command, place, ours, "does not list what the build fetched: thing 1")
    listed = [{"name": "thing 1", "uri": "pkg:pypi/thing@1", "digest": {"sha256": digest}}]
    whole = json.dumps({"buildDefinition": {"resolvedDependencies": listed}}).encode()
    signing.sign(
        place, fresh.digest, Signer(str(ours)), quiet, {inner(fresh): {provenance.KIND: whole}}
    )
    done = command("verify", f"{place}:two", "--key", public(ours))
    assert done.code == 0, done.err
    shown = command("sbom", f"{place}:two", "--key", public(ours), "--format", "fetched")
    assert shown.out == f"sha256:{digest}  thing 1  pkg:pypi/thing@1  BuildKit\n"


def test_the_password_is_on_no_command_line(
    ours: Path, monkeypatch: pytest.MonkeyPatch, place: str, fresh: Image
) -> None:
    lines: list[list[str]] = []
    real = subprocess.run

    def spy(line: list[str], **options: Any) -> Any:
        lines.append(line)
        return real(line, **options)

    monkeypatch.setattr(subprocess, "run", spy)
    kind = signing.KINDS[0]
    signer = cosign.signer(str(ours))
    signing.sign(place, fresh.digest, signer, quiet, {inner(fresh): {kind: PREDICATES[kind]}})
    commands = {line[1] for line in lines if line[0] == "cosign"}
    assert commands == {"public-key", "attest", "sign"}
    assert not any(PASSWORD in word for line in lines for word in line)


def test_an_index_is_not_signed_before_what_it_names(
    place: str, fresh: Image, ours: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "cosign.key"
    shutil.copy(ours, copy)

    def lose(text: str) -> None:
        if text.startswith("signing"):
            copy.unlink()

    with pytest.raises(SignatureError, match="was not signed"):
        signing.sign(place, fresh.digest, Signer(str(copy)), lose, {})
    assert registry.manifest(place, cosign.signature_tag(fresh.digest)) is None


@pytest.fixture
def carried(place: str, image: Image, tmp_path: Path) -> Image:
    """A bundle of the signed image, with an SBOM and all signatures, as ``bundle`` makes one."""
    kept.attach(place, inner(image), {kept.CYCLONEDX: b"{}"}, 1)
    layout = OciLayout(tmp_path / "layout")
    shutil.copytree(image.layout.folder, layout.folder)
    found = beside.save(place, image.digest, layout, quiet)
    beside.write(layout.folder, found)
    return Image(layout, image.digest, images.bundle(layout.folder, tmp_path / "signed.bundle"))


def test_a_bundle_is_checked_without_a_registry(
    carried: Image, ours: Path, theirs: Path, command: Command, tmp_path: Path
) -> None:
    unbundle = ["unbundle", str(carried.bundle), "-o", str(tmp_path / "to")]
    done = command(*unbundle, "--key", public(theirs))
    assert done.code == SignatureError.exit_code, done.err
    assert not (tmp_path / "to").exists()
    done = command(*unbundle, "--key", public(ours))
    assert done.code == 0, done.err
    offline = ["unshare", "--net", "cosign", "verify", "--local-image", "--insecure-ignore-tlog"]
    view = tmp_path / "view"
    view.mkdir()
    found = beside.read(tmp_path / "to")
    own = found.signatures[carried.digest]
    cosign.view(OciLayout(tmp_path / "to"), carried.digest, own, "", view)
    line = [*offline, f"--key={public(ours)}", str(view)]
    assert subprocess.run(line, capture_output=True).returncode == 0


def test_a_bundle_brings_its_signatures_to_another_registry(
    upstream: str, carried: Image, ours: Path, command: Command, tmp_path: Path
) -> None:
    there = f"{upstream}/team/carried"
    arguments = ["unbundle", str(carried.bundle), "-o", str(tmp_path / "to"), "--to", there]
    done = command(*arguments, "--key", public(ours))
    assert done.code == 0, done.err
    done = command("verify", f"{there}:1", "--key", public(ours))
    assert done.code == 0, done.err
    assert kept.documents_of(there, inner(carried))[kept.CYCLONEDX] == b"{}"


@pytest.mark.parametrize("what", ["signatures", "attestations"])
def test_a_bundle_that_lacks_signatures_is_refused(
    carried: Image, ours: Path, command: Command, tmp_path: Path, what: str
) -> None:
    file = carried.layout.folder / beside.FILE
    found = json.loads(file.read_text())
    del found[what][inner(carried)]
    file.write_text(json.dumps(found))
    spoilt = images.bundle(carried.layout.folder, tmp_path / "spoilt.bundle")
    done = command("unbundle", str(spoilt), "-o", str(tmp_path / "to"), "--key", public(ours))
    assert done.code == SignatureError.exit_code, done.err
    assert inner(carried) in done.err
    assert not (tmp_path / "to").exists()
