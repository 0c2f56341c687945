"""Keyless signatures, as far as they go without an OIDC issuer: certificates and their expiry.

Fulcio and Rekor are a CA and a key of this run, made by openssl; cosign is real, and checks
certificate, identity, issuer and the log's signed time without a network. It is told not to demand
a certificate transparency log (``--insecure-ignore-sct``), which this run's CA does not have;
fp4forge never says so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import SignatureError
from fp4forge.oci import cosign, registry
from fp4forge.oci.cosign import Trust
from tests.e2e.faults import images

IDENTITY, ISSUER = "publisher@example.org", "https://issuer.example.org"
DAY = 86400
if shutil.which("cosign") is None or shutil.which("openssl") is None:
    pytest.skip("NOT RUN: needs cosign and openssl", allow_module_level=True)


def run(*line: str, **environment: str) -> bytes:
    done = subprocess.run(line, capture_output=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def ec_key(path: Path) -> Path:
    run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
        "-out", str(path))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, a log's key, and a certificate of a day for IDENTITY by ISSUER."""
    folder = tmp_path_factory.mktemp("authority")
    ca, log = (ec_key(folder / f"{name}.key") for name in ("ca", "log"))
    run("cosign", "generate-key-pair", f"--output-key-prefix={folder / 'own'}", COSIGN_PASSWORD="")
    run("openssl", "req", "-x509", "-key", str(ca), "-subj", "/CN=test CA", "-days", "30",
        "-addext", "keyUsage=critical,keyCertSign", "-out", str(folder / "ca.pem"))  # fmt: skip
    extensions = folder / "extensions"
    extensions.write_text(
        f"subjectAltName=email:{IDENTITY}\nextendedKeyUsage=codeSigning\n"
        "keyUsage=critical,digitalSignature\n"
        f"1.3.6.1.4.1.57264.1.1=DER:{ISSUER.encode().hex(':')}\n"  # Fulcio's issuer: plain bytes
    )
    run("openssl", "req", "-new", "-key", str(ca), "-subj", "/", "-out", str(folder / "csr"))
    run("openssl", "x509", "-req", "-in", str(folder / "csr"), "-CA", str(folder / "ca.pem"),
        "-CAkey", str(ca), "-force_pubkey", str(folder / "own.pub"), "-days", "1",
        "-extfile", str(extensions),
        "-out", str(folder / "leaf.pem"))  # fmt: skip
    (folder / "log.pub").write_bytes(run("openssl", "pkey", "-in", str(log), "-pubout"))
    real = shutil.which("cosign")
    (folder / "bin").mkdir()
    shim = folder / "bin" / "cosign"
    shim.write_text(f'#!/bin/sh\nverb=$1; shift\nexec {real} "$verb" --insecure-ignore-sct "$@"\n')
    shim.chmod(0o755)
    return folder


@pytest.fixture
def place(
    upstream: str,
    authority: Path,
    repository: str,
    tmp_path: Path,
    patient: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, str]:
    """An image signed with the certificate, and not yet in the log; trust is in the authority."""
    patient()
    made = images.make(tmp_path, int.from_bytes(os.urandom(6)))
    images.seed(upstream, repository, made)
    image = f"{upstream}/{repository}@{made.digest}"
    run("cosign", "sign", "--yes", "--tlog-upload=false", f"--key={authority / 'own.key'}",
        f"--certificate={authority / 'leaf.pem'}", f"--certificate-chain={authority / 'ca.pem'}",
        image, COSIGN_PASSWORD="")  # fmt: skip
    monkeypatch.setenv("PATH", f"{authority / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SIGSTORE_ROOT_FILE", str(authority / "ca.pem"))
    monkeypatch.setenv("SIGSTORE_REKOR_PUBLIC_KEY", str(authority / "log.pub"))
    monkeypatch.setenv("SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", str(authority / "log.pub"))
    return f"{upstream}/{repository}", made.digest


def log(place: tuple[str, str], authority: Path, when: float) -> None:
    """Adds the log's signed entry of a signature, made at a time (Rekor's hashedrekord)."""
    repository, digest = place
    tag = cosign.signature_tag(digest)
    found = registry.existing(repository, tag)
    manifest = json.loads(found.content)
    (layer,) = manifest["layers"]
    payload = registry.blob(repository, layer["digest"], "a signature")
    certificate = layer["annotations"]["dev.sigstore.cosign/certificate"]
    signature = {
        "content": layer["annotations"]["dev.cosignproject.cosign/signature"],
        "publicKey": {"content": base64.b64encode(certificate.encode()).decode()},
    }
    hashed = {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}
    body = {
        "apiVersion": "0.0.1",
        "kind": "hashedrekord",
        "spec": {"data": {"hash": hashed}, "signature": signature},
    }
    der = run("openssl", "pkey", "-pubin", "-in", str(authority / "log.pub"), "-outform", "DER")
    entry: dict[str, Any] = {
        "body": base64.b64encode(json.dumps(body, separators=(",", ":")).encode()).decode(),
        "integratedTime": int(when),
        "logIndex": 1,
        "logID": hashlib.sha256(der).hexdigest(),
    }
    text = authority / "entry"
    text.write_text(json.dumps(entry, separators=(",", ":"), sort_keys=True))
    signed = run("openssl", "dgst", "-sha256", "-sign", str(authority / "log.key"), str(text))
    layer["annotations"]["dev.sigstore.cosign/bundle"] = json.dumps(
        {"SignedEntryTimestamp": base64.b64encode(signed).decode(), "Payload": entry}
    )
    registry.put(repository, tag, json.dumps(manifest).encode(), found.media_type)


def test_a_certificate_that_was_valid_when_it_signed(
    place: tuple[str, str], authority: Path
) -> None:
    log(place, authority, time.time() + 60)
    cosign.check(place[0], [place[1]], Trust(identity=IDENTITY, issuer=ISSUER))


def test_a_certificate_that_had_expired(place: tuple[str, str], authority: Path) -> None:
    log(place, authority, time.time() + 2 * DAY)
    with pytest.raises(SignatureError, match="expired"):
        cosign.check(place[0], [place[1]], Trust(identity=IDENTITY, issuer=ISSUER))


@pytest.mark.parametrize(
    "trust",
    [
        Trust(identity="mallory@example.org", issuer=ISSUER),
        Trust(identity=IDENTITY, issuer="https://mallory.example.org"),
    ],
    ids=["identity", "issuer"],
)
def test_anothers_certificate(place: tuple[str, str], authority: Path, trust: Trust) -> None:
    log(place, authority, time.time() + 60)
    with pytest.raises(SignatureError, match="has no signature of"):
        cosign.check(place[0], [place[1]], trust)


def test_a_signature_that_is_in_no_log(place: tuple[str, str]) -> None:
    with pytest.raises(SignatureError):
        cosign.check(place[0], [place[1]], Trust(identity=IDENTITY, issuer=ISSUER))
