"""The published image: tags, digests, layers, attestations; what a stock client sees."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from fp4forge.oci.layout import ManifestOrIndex
from tests.e2e.conftest import (
    REGISTRY,
    REPO,
    ROOT,
    WHEEL,
    build,
    left_over,
    raw,
    shell,
    tag_digest,
)


def test_both_tags_name_the_verified_digest(published: dict[str, Any]) -> None:
    for tag in published["tags"]:
        assert tag_digest(tag) is not None
        digest = hashlib.sha256(
            shell(
                "skopeo",
                "inspect",
                "--raw",
                "--tls-verify=false",
                f"docker://{REGISTRY}/{REPO}:{tag}",
            ).stdout.encode()
        ).hexdigest()
        assert published["digest"] == f"sha256:{digest}"


def test_layers_are_zstd_and_provenance_is_attached(published: dict[str, Any]) -> None:
    index = raw(published["image"])
    images = [m for m in index["manifests"] if m["platform"]["os"] == "linux"]
    attestations = [m for m in index["manifests"] if m["platform"]["os"] == "unknown"]
    assert len(images) == len(attestations) == 1
    manifest = raw(f"{REGISTRY}/{REPO}@{images[0]['digest']}")
    assert {layer["mediaType"] for layer in manifest["layers"]} == {
        "application/vnd.oci.image.layer.v1.tar+zstd"
    }
    statement = raw(f"{REGISTRY}/{REPO}@{attestations[0]['digest']}")
    kinds = [layer["annotations"]["in-toto.io/predicate-type"] for layer in statement["layers"]]
    assert any("slsa.dev/provenance" in kind for kind in kinds)


def test_a_stock_pull_works(published: dict[str, Any]) -> None:
    tag = published["plan"]["tags"][1]
    shell("docker", "pull", "--quiet", f"{REGISTRY}/{REPO}:{tag}")


def test_every_check_ran_and_sizes_are_reported(edited: dict[str, Any]) -> None:
    assert 5e9 < edited["unpacked_bytes"] <= 9e9
    assert 2e9 < edited["compressed_bytes"] < 5e9
    assert len(edited["checks"]) >= 15
    by_outcome = {check["outcome"]: check["name"] for check in edited["checks"]}
    assert set(by_outcome) == {"passed", "skipped"}
    assert by_outcome["skipped"].startswith("nvfp4-emulation-scales")  # 0.20.2 has the fix


def test_building_again_changes_nothing(published: dict[str, Any]) -> None:
    done = build("--push", "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["digest"] == published["digest"]
    assert again["plan"]["id"] == published["plan"]["id"]


def test_a_patch_edit_changes_only_the_last_thin_layers(
    published: dict[str, Any], edited: dict[str, Any]
) -> None:
    old, new = (layers(outcome["image"]) for outcome in (published, edited))
    changed = [layer for layer in new if layer not in old]
    assert 0 < sum(layer["size"] for layer in changed) < 200_000
    assert 0 < len(changed) <= 3  # the file's folder, the record, the plan


def layers(image: str) -> list[dict[str, Any]]:
    index = raw(image)
    digest = next(m["digest"] for m in index["manifests"] if m["platform"]["os"] == "linux")
    found: list[dict[str, Any]] = raw(f"{REGISTRY}/{REPO}@{digest}")["layers"]
    return found


def document(index: dict[str, Any]) -> ManifestOrIndex:
    return msgspec.convert(index, ManifestOrIndex)


def test_nothing_temporary_stays(published: dict[str, Any], containers_before: set[str]) -> None:
    assert not left_over(containers_before)


def test_an_immutable_tag_that_another_image_has_is_left_alone(published: dict[str, Any]) -> None:
    from fp4forge.oci import registry_tags

    repository, tag = f"{REGISTRY}/{REPO}", published["tags"][0]
    index, digest = raw(published["image"]), published["digest"]
    assert registry_tags.immutable(repository, tag, document(index), digest) == (tag, digest)
    other = json.loads(json.dumps(index))
    for entry in other["manifests"]:
        if entry["platform"]["os"] != "unknown":
            entry["digest"] = "sha256:" + "0123456789abcdef" * 4
    assert registry_tags.immutable(repository, tag, document(other), "sha256:1") == (
        f"{tag}-01234567",
        None,
    )
    forged = json.loads(json.dumps(index))
    for entry in forged["manifests"]:
        entry["platform"] = {"os": "linux", "architecture": "arm64"}
    assert registry_tags.immutable(repository, tag, document(forged), "sha256:1")[0] != tag


def test_layers_built_anew_have_the_same_digest(published: dict[str, Any]) -> None:
    from fp4forge.image import context as contexts
    from fp4forge.oci import buildkit
    from fp4forge.plan.request import ImageRequest
    from fp4forge.plan.resolve import resolve
    from fp4forge.publish import build as building

    request = ImageRequest("blackwell", "0.20.2", "awq", "wheel", "bootstrap", aot="none")
    context = contexts.assemble(resolve(request))
    line = building.command(
        context.plan,
        contexts.stage(context),
        [f"type=oci,tar=false,dest={building.LAYOUT.folder},{buildkit.COMPRESSION}"],
        buildkit.BuildOptions(),
    )
    built = buildkit.build(
        [*line, "--no-cache-filter=system"], lambda _: None, buildkit.BuildOptions()
    )
    found = [layer.digest for layer in building.LAYOUT.layers(built.digest)]
    assert found == [layer["digest"] for layer in layers(published["image"])]


def test_the_image_is_built_by_hand_as_documented(
    published: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "context" / published["plan"]["id"]
    wheel = [*WHEEL[: WHEEL.index("--repo")], "--output", str(folder.parent)]
    script = shell(sys.executable, "build.py", "context", *wheel).stdout
    committed = ROOT / "dockerfiles" / "0.20.2" / "wheel.Dockerfile"
    assert (folder / "Dockerfile").read_bytes() == committed.read_bytes()
    again = shell(sys.executable, "build.py", "context", *wheel, check=False)
    assert again.returncode == 2 and "is not empty" in again.stderr
    image = f"fp4forge/vllm:unverified-{published['plan']['id']}"
    shell("bash", "-euc", script)
    shell("docker", "pull", "--quiet", published["image"])  # a later build may have retired it
    try:
        ours, theirs = (
            json.loads(shell("docker", "image", "inspect", name).stdout)[0]
            for name in (image, published["image"])
        )
    finally:
        shell("docker", "rmi", image, check=False)
    assert ours["RootFS"] == theirs["RootFS"]
    assert ours["Config"]["Env"] == theirs["Config"]["Env"]
    labels = theirs["Config"]["Labels"] | {"io.fp4forge.ledger": ""}  # which only a build knows
    assert ours["Config"]["Labels"] == labels


def test_a_base_is_pinned_where_a_registry_answers(
    published: dict[str, Any], copied_releases: Path
) -> None:
    bases = copied_releases / "bases.yaml"
    ours = f"{REGISTRY}/{REPO}:{published['plan']['tags'][1]}"
    bases.write_text(bases.read_text().replace("image: ubuntu:24.04", f"image: {ours}"))
    code = "from fp4forge.maintain import pins; print(pins.pin())"
    said = shell(sys.executable, "-c", code, FP4FORGE_RELEASES=str(copied_releases)).stdout
    assert published["digest"] in said
    assert f'digest: "{published["digest"]}"' in bases.read_text()
    assert "suite: trixie" in bases.read_text()
