"""A layer of compile caches on a small image in a real registry; on the published one, its seed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import uuid
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import ArtefactError, NoGpuError, TagError, UsageError
from fp4forge.image.runtime.opt.fp4forge import warm
from fp4forge.oci import registry
from fp4forge.oci.layout import INDEX, OciLayout, image_index
from fp4forge.publish import verified
from tests.e2e.conftest import REGISTRY, Completed, raw, shell

pytestmark = pytest.mark.engine
PLANS = {"amd64": "0123456789ab", "arm64": "ba9876543210"}
CACHES = "/home/vllm/.cache"


def keep(layout: OciLayout, content: bytes | dict[str, Any], kind: str) -> dict[str, Any]:
    """Writes a blob into a layout; its descriptor."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    layout.path(digest).parent.mkdir(parents=True, exist_ok=True)
    layout.path(digest).write_bytes(data)
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(data)}


def layer(name: str) -> tuple[bytes, str]:
    """A compressed layer of one file, and the digest before compression."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    diff_id = "sha256:" + hashlib.sha256(plain.getvalue()).hexdigest()
    return gzip.compress(plain.getvalue()), diff_id


@pytest.fixture
def cold(tmp_path: Path) -> str:
    """A small image of two platforms, each with the labels of a plan, in a new repository."""
    layout, entries = OciLayout(tmp_path / "layout"), []
    for architecture, plan in PLANS.items():
        content, diff_id = layer(f"{architecture}-{uuid.uuid4()}")
        labels = {"release": "1.0", "arch": "sm121", "variant": "awq", "plan": plan}
        config = {
            "os": "linux",
            "architecture": architecture,
            "config": {"Labels": {f"io.fp4forge.{k}": v for k, v in labels.items()}, "User": "1"},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created_by": "test"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": keep(layout, config, "config.v1+json"),
            "layers": [keep(layout, content, "layer.v1.tar+gzip")],
        }
        entry = keep(layout, manifest, "manifest.v1+json")
        entries.append(entry | {"platform": {"os": "linux", "architecture": architecture}})
    index = image_index(entries)
    digest = keep(layout, index, "index.v1+json")["digest"]
    (layout.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    layout.name_only(digest)
    repository = f"{REGISTRY}/fp4forge/warm-{uuid.uuid4().hex[:8]}"
    copy = ("skopeo", "copy", "--all", "--preserve-digests", "--dest-tls-verify=false")
    shell(*copy, f"oci:{layout.folder}", f"docker://{repository}:cold")
    return f"{repository}:cold"


def pack(folder: Path, software: str, files: dict[str, bytes] | None = None) -> Path:
    """What a server of that software would have collected."""
    folder.mkdir()
    with tarfile.open(folder / "cache.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in (files or {"triton/ABC/kernel.cubin": b"\x7fELF"}).items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1_700_000_000
            tar.addfile(member, io.BytesIO(content))
    key = {
        "format": warm.FORMAT,
        "gpu": "NVIDIA GB10",
        "capability": "12.1",
        "driver": "580.95.05",
        "software": software,
        "config": hashlib.sha256(b"{}").hexdigest(),
        "quantisation": "",
        "caches": {"triton": f"{CACHES}/triton"},
        "model": "/models/tiny",
        "archive": warm.digest(folder / "cache.tar"),
    }
    (folder / "key.json").write_text(json.dumps(key))
    return folder


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    return pack(tmp_path / "collected", f"release 1.0, plan {PLANS['arm64']}")


def run(*arguments: str, **environment: str) -> Completed:
    return shell(sys.executable, "build.py", "warm", *arguments, check=False, **environment)


def published(cold: str, collected: Path) -> dict[str, Any]:
    done = run(cold, "--collected", str(collected), "--push", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def parts(image: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and configuration of an index's image for arm64."""
    place = image.rpartition("@")[0] or image.rpartition(":")[0]
    entries = raw(image)["manifests"]
    (entry,) = (e for e in entries if e["platform"]["architecture"] == "arm64")
    manifest = raw(f"{place}@{entry['digest']}")
    config = registry.blob(place, manifest["config"]["digest"], "the configuration")
    return manifest, json.loads(config)


def tags_of(image: str) -> list[str]:
    place = image.rpartition(":")[0]
    line = ("skopeo", "list-tags", "--tls-verify=false", f"docker://{place}")
    return sorted(json.loads(shell(*line).stdout)["Tags"])


def test_exactly_one_layer_is_added(cold: str, collected: Path) -> None:
    before = raw(cold)
    made = published(cold, collected)
    place = cold.rpartition(":")[0]
    old, new = parts(cold), parts(made["image"])
    assert new[0]["layers"][:-1] == old[0]["layers"]
    content = registry.blob(place, new[0]["layers"][-1]["digest"], "the layer")
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
        assert tar.getnames() == [
            "opt/fp4forge/warm",
            "opt/fp4forge/warm/cache.tar",
            "opt/fp4forge/warm/key.json",
        ]
        for name in ("cache.tar", "key.json"):
            file = tar.extractfile(f"opt/fp4forge/warm/{name}")
            assert file is not None and file.read() == (collected / name).read_bytes()
    assert new[1]["config"]["Labels"].pop("io.fp4forge.warm") == made["key"]["archive"]
    plain = "sha256:" + hashlib.sha256(gzip.decompress(content)).hexdigest()
    assert new[1]["rootfs"]["diff_ids"].pop() == plain
    new[1]["history"].pop()
    assert new[1] == old[1]
    # Its own tag, by its own digest; the verified image's tag names what it did.
    image = raw(made["image"])["manifests"][0]["digest"]
    assert made["tag"] == f"1.0-sm121-awq-{PLANS['arm64']}-warm-{image[7:19]}"
    assert [tag for tag in tags_of(cold) if not tag.startswith("sha256-")] == sorted(
        [made["tag"], "cold"]
    )
    assert raw(cold) == before
    assert raw(f"{place}:{made['tag']}") == raw(made["image"])


def test_a_second_time_gives_the_same_image(cold: str, collected: Path) -> None:
    assert published(cold, collected) == published(cold, collected)


def test_other_caches_get_another_tag(cold: str, collected: Path, tmp_path: Path) -> None:
    software = f"release 1.0, plan {PLANS['arm64']}"
    other = pack(tmp_path / "other", software, {"triton/DEF/kernel.cubin": b"2"})
    first, second = published(cold, collected), published(cold, other)
    assert first["tag"] != second["tag"]
    assert {first["tag"], second["tag"]} <= set(tags_of(cold))


def refused(cold: str, collected: Path, code: int, said: str) -> None:
    before = tags_of(cold)
    done = run(cold, "--collected", str(collected), "--push")
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert tags_of(cold) == before


@pytest.mark.parametrize(
    ("software", "files", "said"),
    [
        ("release 1.0, plan ffffffffffff", None, "plan ffffffffffff"),
        ("vllm 1.0, torch 2.0", None, "vllm 1.0"),
        (None, {"triton/a": b"hf_" + b"a1B2" * 9}, "a Hugging Face token"),
        (None, {"huggingface/token": b"x"}, "not a compiled result"),
        (None, {"triton/../../../etc/passwd": b"x"}, "not a compiled result"),
    ],
)
def test_what_does_not_belong_is_refused(
    cold: str, tmp_path: Path, software: str | None, files: Any, said: str
) -> None:
    of_image = f"release 1.0, plan {PLANS['amd64']}"
    folder = pack(tmp_path / "collected", software or of_image, files)
    refused(cold, folder, ArtefactError.exit_code, said)


def test_damaged_caches_are_refused(cold: str, collected: Path) -> None:
    with (collected / "cache.tar").open("ab") as file:
        file.write(b"more")
    refused(cold, collected, ArtefactError.exit_code, "SHA-256")
    (collected / "cache.tar").unlink()
    os.mkfifo(collected / "cache.tar")
    refused(cold, collected, ArtefactError.exit_code, "cache.tar")


def test_a_warm_image_gets_no_second_layer(cold: str, collected: Path) -> None:
    made = published(cold, collected)
    refused(f"{cold.rpartition(':')[0]}:{made['tag']}", collected, UsageError.exit_code, "already")


def test_a_taken_tag_is_not_moved(cold: str, collected: Path) -> None:
    made = published(cold, collected)
    place = cold.rpartition(":")[0]
    index = registry.existing(place, raw_digest(cold))
    registry.put(place, made["tag"], index.content, INDEX)
    refused(cold, collected, TagError.exit_code, "already names another image")
    assert raw(f"{place}:{made['tag']}") == raw(cold)


def raw_digest(image: str) -> str:
    found = registry.resolve(image.rpartition(":")[0], image.rpartition(":")[2])
    assert found is not None
    return found[0]


def test_what_was_verified_stays_verified(cold: str, collected: Path) -> None:
    place = cold.rpartition(":")[0]
    assert not verified.here(place, published(cold, collected)["digest"])
    verified.record(place, raw_digest(cold))
    assert verified.here(place, published(cold, collected)["digest"])


def test_without_a_gpu_no_server_is_started(cold: str, tmp_path: Path) -> None:
    python = str(Path(sys.executable).parent)
    done = run(cold, "--model", str(tmp_path), "--push", PATH=python)
    assert done.returncode == NoGpuError.exit_code, done.stderr
    assert "--collected" in done.stderr and "Traceback" not in done.stderr


def test_a_dry_run_pushes_nothing(cold: str, collected: Path) -> None:
    done = run(cold, "--collected", str(collected), "--push", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tag"].endswith("-warm-DIGEST")
    assert tags_of(cold) == ["cold"]


def test_the_published_image_seeds_its_layer(image: str, tmp_path: Path) -> None:
    """With a stand-in nvidia-smi: an equal key seeds before vLLM starts, another does not."""
    repository = f"{REGISTRY}/fp4forge/warm-{uuid.uuid4().hex[:8]}"
    copy = ("skopeo", "copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false")
    shell(*copy, f"docker://{image}", f"docker://{repository}:cold")
    (labels,) = registry.image_labels(repository, raw_digest(f"{repository}:cold"))
    software = f"release {labels['io.fp4forge.release']}, plan {labels['io.fp4forge.plan']}"
    made = published(f"{repository}:cold", pack(tmp_path / "collected", software))
    model, smi = tmp_path / "tiny", tmp_path / "nvidia-smi"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def start(driver: str, *command: str) -> Completed:
        smi.write_text(f"#!/bin/sh\necho 'NVIDIA GB10, 12.1, {driver}'\n")
        smi.chmod(0o755)
        line = ["docker", "run", "--rm", "--network=none", "-e", "FP4FORGE_ALLOW_ANY_GPU=1"]
        line += ["-v", f"{smi}:/usr/bin/nvidia-smi:ro", "-v", f"{model}:/models/tiny:ro"]
        return shell(*line, made["image"], *command, check=False)

    try:
        seed = ("python3", "-IS", "/opt/fp4forge/warm.py", "seed", CACHES, "/opt/fp4forge/warm")
        assert start("580.95.05", *seed, "--model=/models/tiny").returncode == 0
        other = start("590.1", *seed, "--model=/models/tiny")
        assert other.returncode == warm.DIFFERS and "the driver of these results" in other.stderr
        # vLLM itself ends, for want of a GPU.
        assert "1 files with 0 MB" in start("580.95.05", "serve", "/models/tiny").stderr
    finally:
        shell("docker", "rmi", made["image"], check=False)
