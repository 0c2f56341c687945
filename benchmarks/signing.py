"""What signatures and SBOMs add to a publish, and what checking a signature takes.

The image is a whole distribution made by mmdebstrap, or the one that FP4FORGE_BENCH_IMAGE names
(REPOSITORY@DIGEST in the registry, of ``make image``'s plan): its files are read, both documents
made and attached, attested and signed, and all of it checked again.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fp4forge.inputs import bases, defaults
from fp4forge.oci import copying, cosign, engine, registry
from fp4forge.oci.cosign import Trust
from fp4forge.oci.layout import OciLayout
from fp4forge.plan.plan import Plan
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.publish import base_images as making
from fp4forge.publish import fetched, image_sbom, signing
from fp4forge.sbom import kept

REGISTRY = os.environ.get("REGISTRY", "127.0.0.1:5000")
REPEAT = 5


def quiet(_: str) -> None:
    """Takes progress and drops it."""


def _took(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def sign() -> dict[str, Any]:
    """Seconds of each part; pushing the same image is what they are compared with."""
    plan = resolve(
        ImageRequest(
            "blackwell", defaults.newest("wheel", "awq"), "awq", "wheel", "bootstrap", aot="none"
        )
    )
    with tempfile.TemporaryDirectory(prefix="fp4forge-bench-") as name, _key(Path(name)) as key:
        folder = Path(name)
        repository, digest, push_s = _image(folder, plan)
        signer, trust = cosign.signer(str(key)), Trust(str(key.with_suffix(".pub")))
        client, made = engine.connect(), {}

        def list_() -> None:
            made.update(image_sbom.make(client, f"{repository}@{digest}", digest, plan, quiet))

        def sign_() -> None:
            predicates = signing.provenances(repository, digest, fetched.of(plan))
            for image in predicates:
                kept.attach(repository, image, made, plan.epoch)
                predicates[image] |= {kept.PREDICATES[kind]: text for kind, text in made.items()}
            signing.sign(repository, digest, signer, quiet, predicates)

        sbom_s, sign_s = _took(list_), _took(sign_)
        one = [_took(lambda: cosign.check(repository, [digest], trust)) for _ in range(REPEAT)]
        check = [
            _took(lambda: signing.check(repository, digest, trust, quiet, signing.KINDS))
            for _ in range(REPEAT)
        ]
    return {
        "image": f"{repository}@{digest}",
        "compressed_bytes": sum(registry.layer_sizes(repository, digest).values()),
        "push_s": push_s,
        "sbom_s": sbom_s,
        "sign_s": sign_s,
        "ratio": (sbom_s + sign_s) / push_s if push_s else None,
        "verify_signature_s": statistics.median(one),
        "verify_all_s": statistics.median(check),
        "goal": "sbom and sign under 20 s at 8.6 GB, a signature under 1 s",
    }


class _key:
    """A key pair of this run, with its password in the environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before = os.environ.get(cosign.PASSWORD)

    def __enter__(self) -> Path:
        os.environ[cosign.PASSWORD] = "benchmark"
        line = ["cosign", "generate-key-pair", f"--output-key-prefix={self.folder / 'cosign'}"]
        subprocess.run(line, check=True, capture_output=True)
        return self.folder / "cosign.key"

    def __exit__(self, *_: object) -> None:
        del os.environ[cosign.PASSWORD]
        if self.before is not None:
            os.environ[cosign.PASSWORD] = self.before


def _image(folder: Path, plan: Plan) -> tuple[str, str, float]:
    """Repository and digest of the image, and what pushing it took; 0 if it was there."""
    given = os.environ.get("FP4FORGE_BENCH_IMAGE", "")
    if given:
        return *signing.locate(given), 0.0
    base = making.ensure(bases.load("bootstrap"), plan.platform, quiet)
    context = folder / "context"
    context.mkdir()
    left = "/etc/*- /var/log/lastlog /var/log/faillog /var/log/dpkg.log /var/log/apt"
    left += " /var/log/alternatives.log /var/cache/debconf/*-old /var/lib/dpkg/*-old"
    (context / "Dockerfile").write_text(f"FROM {base}\nRUN rm -rf {left} /var/cache/ldconfig\n")
    layout = OciLayout(folder / "layout")
    line = ["docker", "buildx", "build", "--quiet", "--provenance=mode=max"]
    line += [f"--output=type=oci,tar=false,dest={layout.folder},oci-mediatypes=true", str(context)]
    subprocess.run(line, check=True, capture_output=True)
    digest = json.loads((layout.folder / "index.json").read_text())["manifests"][0]["digest"]
    layout.name_only(digest)
    repository = f"{REGISTRY}/fp4forge/bench-signing"
    took = _took(lambda: copying.push(layout.folder, repository, digest, quiet))
    return repository, digest, took
