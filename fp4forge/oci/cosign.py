"""Signs manifests and attestations with cosign, and checks them (sigstore/cosign 2.5.0).

A signature of ``sha256:X`` lies in the same repository under the tag ``sha256-X.sig``, its
attestations under ``sha256-X.att`` (cosign's specs/SIGNATURE_SPEC.md): podman, CRI-O and admission
controllers look there. cosign 2.5 also writes signatures as OCI 1.1 referrers, but only as an
experiment.

A key's signature is not sent to a transparency log: the log is public, and names the repository.
A keyless signature always is: the log's time says that the certificate was valid then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from msgspec import Raw, Struct

from fp4forge.core import reading
from fp4forge.core.errors import SignatureError, ToolError, UsageError
from fp4forge.core.limits import SIGN_SECONDS, SIGNATURE_SECONDS
from fp4forge.core.text import shown
from fp4forge.oci import process
from fp4forge.oci.layout import OciLayout, image_index

PASSWORD = "COSIGN_PASSWORD"  # noqa: S105 - the variable's name; cosign reads it
_URI = re.compile(r"[a-z][a-z0-9]*://[\x21-\x7e]+")
# cosign 2.5.0, cmd/cosign/errors/exit_code_lookup.go
_UNSIGNED, _NO_MATCH = 10, 12


@dataclass(frozen=True)
class Signer:
    """Who signs: a key (a file's path or a KMS URI); without one, an OIDC identity (keyless)."""

    key: str = ""

    @property
    def flags(self) -> list[str]:
        """The options of ``cosign sign`` and ``attest``."""
        return [f"--key={self.key}", "--tlog-upload=false"] if self.key else []


@dataclass(frozen=True)
class Trust:
    """Whose signature counts: a public key's, or that of an identity that an issuer vouches for."""

    key: str = ""
    identity: str = ""
    issuer: str = ""

    @property
    def flags(self) -> list[str]:
        """The options of ``cosign verify`` and ``verify-attestation``."""
        if self.key:
            return [f"--key={self.key}", "--insecure-ignore-tlog"]
        return [
            f"--certificate-identity={self.identity}",
            f"--certificate-oidc-issuer={self.issuer}",
        ]

    def __str__(self) -> str:
        return f"the key {self.key}" if self.key else f"{self.identity} (by {self.issuer})"


def require() -> None:
    """Checks that cosign is installed.

    Raises:
        ToolError: PATH does not have it.
    """
    if shutil.which("cosign") is None:
        raise ToolError(
            "cosign is not installed",
            rule="signatures are made and checked by cosign 2.5 or newer",
            remedy="run scripts/cosign.sh, or install it from your distribution",
        )


def key(text: str, flag: str) -> str:
    """A key file's absolute path, or a KMS URI as it is.

    Raises:
        UsageError: it is neither a file nor a URI.
    """
    if "://" in text:
        if not _URI.fullmatch(text):
            raise UsageError(f"{flag} {text!r} is not a URI", rule="SCHEME://..., as cosign has it")
        return text
    reading.opened(Path(text), UsageError, f"{flag} {shown(text, 200)}").close()
    return str(Path(text).resolve())


def signer(text: str) -> Signer:
    """Who signs with a key, after a first use of it: a wrong password shows before a build.

    Args:
        text: a private key's file, or a KMS URI. The file's password is in COSIGN_PASSWORD.

    Raises:
        ToolError: cosign is not installed.
        UsageError: there is no such file, or COSIGN_PASSWORD is not set.
        SignatureError: the key cannot be used.
    """
    require()
    found = Signer(key(text, "--sign-key"))
    if "://" not in found.key and PASSWORD not in os.environ:
        raise UsageError(
            f"{PASSWORD} is not set",
            rule="the password of a key file comes from the environment; it may be empty",
            remedy=f"read -rs {PASSWORD} && export {PASSWORD}",
        )
    public_key(found)
    return found


def public_key(by: Signer) -> str:
    """The public key (PEM) of a signer that has a key.

    Raises:
        SignatureError: the key cannot be used.
    """
    done = _run_cosign(["public-key", f"--key={by.key}"], SIGNATURE_SECONDS)
    if done.returncode != 0:
        raise SignatureError(
            f"the key {by.key} cannot be used: {_cosign_reason(done)}",
            rule=f"a private key of cosign, with its password in {PASSWORD}, or the URI of a KMS",
            remedy="cosign generate-key-pair makes one",
        )
    return done.stdout


def sign(repository: str, digests: list[str], by: Signer) -> None:
    """Signs manifests in their order; with a key, what it has signed already stays as it is.

    Raises:
        SignatureError: one cannot be signed.
    """
    _cosign_sign(["sign", "--yes", *by.flags], repository, digests, "signed")


def attest(repository: str, digest: str, kind: str, predicate: bytes, by: Signer) -> None:
    """Signs an in-toto statement on a manifest, in place of an earlier one of its kind.

    Args:
        repository: where.
        digest: of the manifest.
        kind: the predicate's type, a URI.
        predicate: its JSON.
        by: who signs.

    Raises:
        SignatureError: it cannot be signed.
    """
    with tempfile.TemporaryDirectory(prefix="fp4forge-attest-") as folder:
        path = Path(folder, "predicate.json")
        path.write_bytes(predicate)
        line = ["attest", "--yes", "--replace", f"--type={kind}", f"--predicate={path}", *by.flags]
        _cosign_sign(line, repository, [digest], f"attested ({kind})")


def _cosign_sign(line: list[str], repository: str, digests: list[str], what: str) -> None:
    done = _run_cosign([*line, *(f"{repository}@{digest}" for digest in digests)], SIGN_SECONDS)
    if done.returncode != 0:
        raise SignatureError(
            f"{repository} was not {what}: {_cosign_reason(done)}",
            rule="what is published with a signature is signed before a tag moves",
            remedy="check the key, the registry and 'docker login'; running again resumes",
        )


def check(repository: str, digests: list[str], trust: Trust) -> None:
    """Demands a signature on each manifest.

    Raises:
        SignatureError: one has none, or none of that key or identity, or for another digest.
    """
    names = [f"{repository}@{digest}" for digest in digests]
    for place in range(0, len(names), _AT_ONCE):
        _cosign_verify(names[place : place + _AT_ONCE], trust)


def check_local(folder: Path, trust: Trust) -> None:
    """Demands a signature on the manifest of a folder that ``view`` made; asks no registry.

    Raises:
        SignatureError: as ``check``.
    """
    _cosign_verify([str(folder)], trust, "--local-image", *_OFFLINE)


def _cosign_verify(images: list[str], trust: Trust, *flags: str) -> None:
    line = ["verify", *trust.flags, "--output=json", *flags, *images]
    done = _run_cosign(line, SIGNATURE_SECONDS)
    if done.returncode != 0:
        _refuse_signature(images, "signature", done, trust)


def attestations(repository: str, digest: str, kind: str, trust: Trust) -> list[bytes]:
    """The signed in-toto predicates of a kind on a manifest; at least one.

    Args:
        repository: where.
        digest: of the manifest.
        kind: the predicate's type, a URI.
        trust: whose signature counts.

    Raises:
        SignatureError: there is none, none of that key or identity, or one for another digest.
    """
    return _attestations(f"{repository}@{digest}", kind, trust)


def attestations_local(folder: Path, kind: str, trust: Trust) -> list[bytes]:
    """The same for the manifest of a folder that ``view`` made; asks no registry."""
    return _attestations(str(folder), kind, trust, "--local-image", *_OFFLINE)


def _attestations(image: str, kind: str, trust: Trust, *flags: str) -> list[bytes]:
    line = ["verify-attestation", *trust.flags, f"--type={kind}", "--output=json", *flags, image]
    done = _run_cosign(line, SIGNATURE_SECONDS)
    if done.returncode != 0:
        _refuse_signature([image], f"attestation {kind}", done, trust)
    found = []
    for text in done.stdout.splitlines():
        envelope = reading.json(text, _Envelope, f"an attestation of {image}", SignatureError)
        content = reading.json(
            envelope.payload_bytes(), _InTotoStatement, f"an attestation of {image}", SignatureError
        )
        if content.predicateType == kind:
            found.append(bytes(content.predicate))
    if not found:
        _refuse_signature([image], f"attestation {kind}", done, trust)
    return found


class _Envelope(Struct, frozen=True):
    """A DSSE envelope (secure-systems-lab/dsse)."""

    payload: str

    def payload_bytes(self) -> bytes:
        import base64
        import binascii

        try:
            return base64.b64decode(self.payload, validate=True)
        except binascii.Error:
            raise SignatureError(
                "an attestation's payload is not base64", rule="DSSE envelope"
            ) from None


class _InTotoStatement(Struct, frozen=True):
    """An in-toto statement."""

    predicateType: str
    predicate: Raw


# Images that one call of cosign checks; all their names go on its command line.
_AT_ONCE = 50
_OFFLINE = ("--offline",)  # a keyless signature carries its entry of the log


def view(layout: OciLayout, digest: str, signatures: str, attested: str, folder: Path) -> None:
    """Shows cosign a manifest of a layout with its signatures, in the form of ``cosign save``.

    Args:
        layout: has the manifest, and those of its signatures and attestations.
        digest: of the manifest.
        signatures: digest of the manifest of its signatures; empty for none.
        attested: digest of the manifest of its attestations; empty for none.
        folder: an empty folder, which refers to the layout's blobs.

    Raises:
        ArtefactError: the layout lacks one of them.
    """
    image = "imageIndex" if layout.document(digest).manifests is not None else "image"
    entries = [
        {
            "mediaType": layout.document(own).mediaType,
            "digest": own,
            "size": layout.path(own).stat().st_size,
            "annotations": {"kind": f"dev.cosignproject.cosign/{kind}"},
        }
        for kind, own in ((image, digest), ("sigs", signatures), ("atts", attested))
        if own
    ]
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps(image_index(entries)))
    (folder / "blobs").symlink_to((layout.folder / "blobs").resolve())


def _refuse_signature(
    images: list[str], what: str, done: CompletedProcess[str], trust: Trust
) -> None:
    """Raises the error for what cosign did not accept; names the first image that it stopped at."""
    passed = done.stderr.count("\nVerification for ")
    image = images[min(passed, len(images) - 1)]
    said = _cosign_reason(done)
    if done.returncode == _UNSIGNED or re.search("no signatures found|the predicate type", said):
        message = f"{image} has no {what}"
    elif done.returncode == _NO_MATCH or "no matching" in said:
        message = f"{image} has no {what} of {trust}: {said}"
    else:
        message = f"the {what} of {image} cannot be checked: {said}"
    raise SignatureError(
        message,
        rule=f"signed by {trust}",
        remedy="do not use it; get the image, or the key, from where it was published",
    )


def _run_cosign(arguments: list[str], seconds: float) -> CompletedProcess[str]:
    require()
    return process.run(["cosign", *arguments], seconds, SignatureError)


def _cosign_reason(done: CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return shown((lines or done.stderr.strip().splitlines() or ["no reason given"])[-1], 300)


def signature_tag(digest: str) -> str:
    """The tag under which cosign keeps a manifest's signatures."""
    return digest.replace(":", "-") + ".sig"


def attestation_tag(digest: str) -> str:
    """The tag under which cosign keeps a manifest's attestations."""
    return digest.replace(":", "-") + ".att"
