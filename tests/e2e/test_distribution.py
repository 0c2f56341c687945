"""Images brought to other machines: real sshd and engines in network namespaces; bundles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fp4forge.oci import registry, registry_tags
from fp4forge.oci.layout import INDEX, image_index
from tests.e2e.conftest import REGISTRY, ROOT, Completed, shell
from tests.e2e.nodes import Node, make_key, push_two_versions, write_ssh_config

REPO = "fp4forge/small"
IMAGE = f"{REGISTRY}/{REPO}:1"
PATCHED = f"{REGISTRY}/{REPO}:2"
# The real image's shape in small: a thick layer, and a thin one of patched files on top.
THICK_MIB = 48


def cli(*arguments: str) -> Completed:
    return shell(sys.executable, "build.py", *arguments, check=False)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two versions of an image that differ in their last layer, pushed to the registry."""
    push_two_versions(f"{REGISTRY}/{REPO}", THICK_MIB, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key") / "id")


@pytest.fixture(scope="module")
def nodes(
    images: None, key: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Node, Node, Node]]:
    """Two machines with room and one with almost none."""
    folder = tmp_path_factory.mktemp
    made = (
        Node("spark1", 1, folder("spark1")),
        Node("spark2", 2, folder("spark2")),
        Node("full", 3, folder("full")),
    )
    try:
        for node in made:
            node.start(key, disk_mb=40 if node.name == "full" else 0)
        yield made
    finally:
        for node in made:
            node.stop()


@pytest.fixture(scope="module")
def config(nodes: tuple[Node, Node, Node], key: Path) -> Path:
    return write_ssh_config(nodes, key)


def send(image: str, config: Path, *nodes: str) -> Completed:
    to = ",".join(nodes)
    return cli("distribute", image, "--to", to, "--ssh-config", str(config), "--json")


def test_first_copy_then_only_the_thin_layer(nodes: tuple[Node, Node, Node], config: Path) -> None:
    done = send(IMAGE, config, "spark1", "spark2")
    assert done.returncode == 0, done.stderr
    for node, found in zip(nodes[:2], json.loads(done.stdout), strict=True):
        assert found["sent_bytes"] > THICK_MIB << 20
        assert node.docker("image", "inspect", "--format", "{{.Id}}", IMAGE).startswith("sha256:")
        assert node.docker("run", "--rm", "--network=none", IMAGE, "head", "-1", "/thin") == (
            "patched 1"
        )
    before = nodes[0].received()
    done = send(PATCHED, config, "spark1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["sent_layers"] == 1
    assert nodes[0].received() - before < 300_000  # on the wire, ssh and manifests included
    assert nodes[0].docker("run", "--rm", "--network=none", PATCHED, "head", "-1", "/thin") == (
        "patched 2"
    )
    # Only the images' own names stay: no reference to the tunnel's port.
    names = nodes[0].docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
    assert sorted(names) == [IMAGE, PATCHED]


def test_a_node_without_room_is_told_and_the_other_gets_it(
    nodes: tuple[Node, Node, Node], config: Path
) -> None:
    done = send(PATCHED, config, "spark2", "full")
    assert done.returncode == 21
    assert "full: " in done.stderr and "no space left" in done.stderr
    assert "1 of 2 nodes have" in done.stderr and "Traceback" not in done.stderr
    assert PATCHED in nodes[1].docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
    assert PATCHED not in nodes[2].docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")


def test_a_node_lost_half_way_goes_on_later(nodes: tuple[Node, Node, Node], config: Path) -> None:
    spark1, spark2, _ = nodes
    for node in (spark1, spark2):
        node.docker("image", "rm", "--force", IMAGE, PATCHED, check=False)
        node.docker("system", "prune", "--all", "--force")
    # Slow enough to be cut in the middle: 48 MB at 32 Mbit/s take 12 s.
    shell(
        "tc",
        "qdisc",
        "add",
        "dev",
        spark1.link,
        "root",
        "tbf",
        "rate",
        "32mbit",
        "burst",
        "64kb",
        "latency",
        "400ms",
    )
    line = [
        sys.executable,
        "build.py",
        "distribute",
        IMAGE,
        "--to",
        "spark1,spark2",
        "--ssh-config",
        str(config),
        "--json",
    ]
    before = spark1.received()
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    while spark1.received() - before < 8 << 20:
        assert process.poll() is None
        time.sleep(0.1)
    spark1.cut()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 21, said
    assert "spark1: the connection was lost" in said
    assert IMAGE not in spark1.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
    assert spark2.docker("run", "--rm", "--network=none", IMAGE, "head", "-1", "/thin")
    spark1.mend()
    shell("tc", "qdisc", "del", "dev", spark1.link, "root")
    done = send(IMAGE, config, "spark1", "spark2")
    assert done.returncode == 0, done.stderr
    _, second = json.loads(done.stdout)
    assert second["sent_layers"] == 0
    assert spark1.docker("run", "--rm", "--network=none", IMAGE, "head", "-1", "/thin")


def test_a_corrupted_blob_is_refused_on_arrival(
    nodes: tuple[Node, Node, Node], config: Path
) -> None:
    spark1 = nodes[0]
    index = json.loads(
        shell("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{PATCHED}").stdout
    )
    manifest = next(m for m in index["manifests"] if m["platform"]["os"] != "unknown")
    raw = f"docker://{REGISTRY}/{REPO}@{manifest['digest']}"
    layers = json.loads(shell("skopeo", "inspect", "--raw", "--tls-verify=false", raw).stdout)
    thin = layers["layers"][-1]["digest"].removeprefix("sha256:")
    store = Path(os.environ.get("FP4FORGE_STATE", "/var/lib/fp4forge")) / "registry"
    blob = store / f"docker/registry/v2/blobs/sha256/{thin[:2]}/{thin}/data"
    if not blob.is_file():
        pytest.skip("NOT RUN: the registry's storage is not on this machine")
    spark1.docker("image", "rm", "--force", PATCHED, check=False)
    spark1.docker("system", "prune", "--all", "--force")
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        done = send(PATCHED, config, "spark1")
    finally:
        blob.write_bytes(content)
    assert done.returncode == 21
    assert "digest" in done.stderr or "checksum" in done.stderr, done.stderr
    assert PATCHED not in spark1.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
    for _ in range(5):  # the node drops what it received a moment after it refused it
        done = send(PATCHED, config, "spark1")
        if done.returncode == 0:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stderr


def test_bad_requests(images: None) -> None:
    for arguments, code, words in (
        (("distribute", IMAGE, "--to", "root@h;reboot"), 2, "is not [USER@]HOST"),
        (("distribute", "ghcr.example/x:1", "--to", "spark1"), 2, "skopeo copy"),
        (("distribute", f"{REGISTRY}/{REPO}:none", "--to", "spark1"), 5, "has no"),
        (("bundle", f"{REGISTRY}/{REPO}", "-o", "/tmp/x.tar"), 2, "has no tag"),
    ):
        done = cli(*arguments)
        assert done.returncode == code, done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def bundled(images: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "compose.yaml").write_text("services: {}\n")
    done = cli(
        "bundle", IMAGE, "-o", str(folder / "small.tar"), "--manifest", str(folder / "compose.yaml")
    )
    assert done.returncode == 0, done.stderr
    assert [p.name for p in sorted(folder.iterdir())] == ["compose.yaml", "small.tar"]
    return folder / "small.tar"


def test_a_bundle_goes_to_a_site_without_network(bundled: Path, tmp_path: Path) -> None:
    there = f"{REGISTRY}/fp4forge/site-{time.time_ns()}"  # of an earlier run, the tag is taken
    done = cli("unbundle", str(bundled), "-o", str(tmp_path / "b"), "--to", there, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (tmp_path / "b" / "compose.yaml").is_file()
    raw = ("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}")
    assert shell(*raw, f"docker://{there}:1").stdout.strip() == found["digest"]
    assert shell(*raw, f"docker://{IMAGE}").stdout.strip() == found["digest"]


def test_a_bundle_moves_no_tag(bundled: Path, tmp_path: Path) -> None:
    """The tag names another image there already: the bundle's was not checked here."""
    there = f"{REGISTRY}/fp4forge/taken"
    other = image_index([])
    registry.put(there, "1", json.dumps(other).encode(), INDEX)
    before = registry.resolve(there, "1")
    done = cli("unbundle", str(bundled), "-o", str(tmp_path / "b"), "--to", there)
    assert done.returncode == 14, done.stderr
    assert registry.resolve(there, "1") == before


def test_a_bundle_gives_no_moving_tag_to_an_image_that_nobody_vouches_for(
    images: None, tmp_path: Path
) -> None:
    moving = "0.20.2-sm121-awq-wheel-bootstrap-amd64"
    digest = (registry.resolve(f"{REGISTRY}/{REPO}", "1") or ("",))[0]
    registry_tags.tag(f"{REGISTRY}/{REPO}", digest, moving)
    packed, there = tmp_path / "moving.tar", f"{REGISTRY}/fp4forge/unvouched"
    done = cli("bundle", f"{REGISTRY}/{REPO}:{moving}", "-o", str(packed))
    assert done.returncode == 0, done.stderr
    done = cli("unbundle", str(packed), "-o", str(tmp_path / "b"), "--to", there)
    assert done.returncode == 2 and "nobody vouches" in done.stderr, done.stderr
    assert registry.resolve(there, moving) is None and not (tmp_path / "b").exists()


def test_a_bundle_loads_into_an_engine(bundled: Path, nodes: tuple[Node, Node, Node]) -> None:
    node = nodes[0]
    node.docker("image", "rm", "--force", IMAGE, check=False)
    node.docker("load", "-i", str(bundled))
    assert node.docker("run", "--rm", "--network=none", IMAGE, "head", "-1", "/thin") == "patched 1"


@pytest.mark.parametrize("spoil", ["flip", "cut", "drop", "escape"])
def test_a_spoilt_bundle_is_refused(bundled: Path, tmp_path: Path, spoil: str) -> None:
    broken = tmp_path / "broken.tar"
    content = bytearray(bundled.read_bytes())
    if spoil == "flip":
        content[len(content) // 2] ^= 1
        broken.write_bytes(content)
    elif spoil == "cut":
        broken.write_bytes(content[: len(content) // 2])
    else:
        with tarfile.open(bundled) as source, tarfile.open(broken, "w") as target:
            for number, entry in enumerate(source):
                if spoil == "drop" and entry.size > THICK_MIB << 20:
                    continue
                if spoil == "escape" and number == 1:
                    entry.name = "../outside"
                target.addfile(entry, source.extractfile(entry))
    done = cli("unbundle", str(broken), "-o", str(tmp_path / "out"))
    assert done.returncode == 8, done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["broken.tar"]
