"""A small image that BuildKit built: its provenance as SLSA v1, and an SBOM from its real files."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fp4forge.core.errors import VerifyError
from fp4forge.core.platform import host_platform
from fp4forge.inputs import bases
from fp4forge.inputs.sbom import table
from fp4forge.oci import copying, cosign, engine, registry
from fp4forge.oci.cosign import Signer, Trust
from fp4forge.oci.layout import OciLayout
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.publish import base_images as making
from fp4forge.publish import image_sbom, provenance, signing
from fp4forge.publish.fetched import ResolvedDependency
from fp4forge.sbom import contents, documents, kept
from tests.e2e.conftest import PASSWORD, REGISTRY, REPO, build, shell, tag_digest

FETCHED = ResolvedDependency("thing 1", "pkg:pypi/thing@1", {"sha256": "a" * 64}, {"from": "it"})
pytestmark = pytest.mark.engine
if shutil.which("cosign") is None:
    pytest.skip("NOT RUN: needs cosign (scripts/test-tools.sh)", allow_module_level=True)


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cosign.PASSWORD, PASSWORD)
        line = ["cosign", "generate-key-pair", f"--output-key-prefix={folder / 'cosign'}"]
        subprocess.run(line, check=True, capture_output=True)
        yield folder / "cosign.key"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Repository and digest of an image of one file, with BuildKit's attestation."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "file").write_text(str(time.time_ns()))
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
    layout = OciLayout(folder / "layout")
    output = f"--output=type=oci,tar=false,dest={layout.folder},oci-mediatypes=true"
    shell("docker", "buildx", "build", "--provenance=mode=max", output, str(folder))
    digest = json.loads((layout.folder / "index.json").read_text())["manifests"][0]["digest"]
    repository = f"{REGISTRY}/fp4forge/signing"
    copying.push(layout.folder, repository, digest, quiet)
    return repository, digest


def test_buildkits_provenance_is_signed_as_slsa_v1(built: tuple[str, str], key: Path) -> None:
    repository, digest = built
    signing.sign(
        repository, digest, Signer(str(key)), quiet, signing.provenances(*built, [FETCHED])
    )
    trust = Trust(str(key.with_suffix(".pub")))
    found = signing.check(repository, digest, trust, quiet, (provenance.KIND,))
    assert found.manifests == 3  # the index, the image, and BuildKit's attestation of it
    (image,) = registry.images_of(repository, digest)
    line = ["cosign", "verify-attestation", "--insecure-ignore-tlog", f"--key={trust.key}"]
    done = shell(*line, "--type=slsaprovenance1", f"{repository}@{image}")
    statement = json.loads(base64.b64decode(json.loads(done.stdout)["payload"]))
    assert statement["subject"][0]["digest"]["sha256"] == image[7:]
    predicate = statement["predicate"]
    definition, run = predicate["buildDefinition"], predicate["runDetails"]
    assert definition["buildType"] == provenance.BUILD_TYPE
    assert definition["externalParameters"]["configSource"]["path"] == "Dockerfile"
    assert definition["resolvedDependencies"][-1] == msgspec.to_builtins(FETCHED)
    assert run["builder"]["id"] == provenance.builder()
    assert run["metadata"]["startedOn"] < run["metadata"]["finishedOn"]


# What the template's system layer removes (templates/), and mmdebstrap leaves in its base.
LEFT = (
    "/etc/group- /etc/passwd- /etc/shadow- /etc/gshadow- /var/log/lastlog /var/log/faillog"
    " /var/log/dpkg.log /var/log/apt /var/log/alternatives.log"
    " /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig"
)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A whole distribution as an image, and the same with one more file."""
    base = making.ensure(bases.load("bootstrap"), "linux/amd64", quiet)
    folder = tmp_path_factory.mktemp("system")
    names = [f"fp4forge.local/h-{kind}:{os.getpid()}" for kind in ("clean", "spoilt")]
    for name, last in zip(names, ("", "COPY Dockerfile /usr/bin/implant"), strict=True):
        (folder / "Dockerfile").write_text(f"FROM {base}\nRUN rm -rf {LEFT}\n{last}\n")
        shell("docker", "build", "--quiet", "--tag", name, str(folder))
    yield names[0], names[1]
    shell("docker", "rmi", *names)


@pytest.mark.skipif(host_platform() != "linux/amd64", reason="NOT RUN: the plan is amd64's")
def test_a_distributions_files_all_belong_to_something(system: tuple[str, str]) -> None:
    clean, spoilt = system
    client, where = engine.connect(), "linux/amd64"
    plan = resolve(ImageRequest("blackwell", "0.20.2", "awq", "wheel", "bootstrap", aot="none"))
    made = image_sbom.make(client, clean, "sha256:" + "0" * 64, plan, quiet)
    assert made == image_sbom.make(client, clean, "sha256:" + "0" * 64, plan, quiet)
    components = documents.read(made[kept.CYCLONEDX], "the document")
    assert {"libc6", "bash", "dpkg"} <= {c.name for c in components}
    assert {c.ecosystem for c in components} == {"Debian:13"}
    found = contents.read(client, spoilt, where, plan.python, table(), quiet)
    assert found.unowned == ["/usr/bin/implant"]
    with pytest.raises(VerifyError, match="/usr/bin/implant"):
        contents.demand(components, found)
    without = [component for component in components if component.name != "bash"]
    found = contents.read(client, clean, where, plan.python, table(), quiet)
    assert len(contents.faults(without, found)) == 1


def test_a_push_is_listed_and_signed_before_its_tags(published: dict[str, Any], key: Path) -> None:
    free = f"signed-{time.time_ns()}"
    refused = build("--push", "--sign-key", str(key), "--tag", free, COSIGN_PASSWORD="wrong")
    assert refused.returncode == 27, refused.stderr
    assert tag_digest(free) is None
    done = build("--push", "--json", "--sign-key", str(key))
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["digest"] == published["digest"]
    names = [step["name"] for step in outcome["steps"]]
    assert names.index("sbom") < names.index("sign") < names.index("publish")
    trust = Trust(str(key.with_suffix(".pub")))
    repository = f"{REGISTRY}/{REPO}"
    signing.check(repository, outcome["digest"], trust, quiet, signing.KINDS)
    (components,) = kept.components(repository, outcome["digest"], trust).values()
    versions = {(c.name, c.version) for c in components}
    assert set(outcome["plan"]["packages"].items()) <= versions
    assert {"cutlass", "triton_kernels", "FlashMLA"} <= {c.name for c in components}
    config = shell(
        "skopeo", "inspect", "--config", "--tls-verify=false", f"docker://{outcome['image']}"
    )
    assert PASSWORD not in config.stdout
