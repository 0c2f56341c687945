"""images, rollback and prune against a real registry: what is listed, moved and removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fp4forge.oci import api, catalog, cosign, referrers, registry, registry_tags
from fp4forge.publish import records, tagging
from fp4forge.serve import runlock, settings
from tests.e2e.faults import images
from tests.e2e.faults.commands import Command
from tests.e2e.faults.registry import Fault, Proxy, status

MOVING = "1.0-sm121-awq-wheel-bootstrap-amd64"
PASSED = "9 of 9 checks passed"
LABELS = {
    "io.fp4forge.release": "1.0",
    "io.fp4forge.arch": "sm121",
    "io.fp4forge.variant": "awq",
    "io.fp4forge.strategy": "wheel",
    "org.opencontainers.image.base.name": "fp4forge.local/bootstrap:trixie-amd64-00000000",
}


def fixed(number: int) -> str:
    return f"1.0-sm121-awq-{number:012x}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[images.Image]:
    """Five images of one kind."""
    return [images.make(tmp_path_factory.mktemp("image"), 10 + n, **LABELS) for n in range(5)]


@dataclass(frozen=True)
class Shelf:
    """A repository with images that were published one after the other."""

    proxy: Proxy
    name: str
    made: list[images.Image]
    command: Command

    @property
    def repository(self) -> str:
        return f"{self.proxy.address}/{self.name}"

    def publish(self, number: int, verdict: str = PASSED, *more: str) -> None:
        images.seed(self.proxy.upstream, self.name, self.made[number])
        names = (fixed(number), MOVING, *more)
        lost = tagging.give(
            self.repository, self.made[number].digest, names, lambda _: None, names[0], verdict
        )
        assert lost == ""

    def run(self, *arguments: str, code: int = 0) -> Any:
        registry_, repo = self.proxy.address, self.name
        done = self.command(*arguments, "--registry", registry_, "--repo", repo, "--json")
        assert done.code == code, (done.out, done.err)
        return json.loads(done.out)

    def named(self, tag: str = MOVING) -> str | None:
        return images.named(self.proxy.upstream, self.name, tag)

    def tags(self) -> set[str]:
        return {tag for tag in catalog.every_tag(self.repository) if catalog.is_image(tag)}


@pytest.fixture
def shelf(
    limits: None,
    proxy: Proxy,
    repository: str,
    made: list[images.Image],
    command: Command,
    patient: Callable[[], None],
) -> Shelf:
    patient()
    return Shelf(proxy, repository, made, command)


def test_what_is_listed(shelf: Shelf) -> None:
    shelf.publish(0)
    shelf.publish(1, "", "latest")  # from a bundle: no check ran here
    tag = f"{referrers.tag(shelf.made[0].digest)}.sig"
    images.seed(shelf.proxy.upstream, shelf.name, shelf.made[2], tag)  # as cosign names one
    newest, first = shelf.run("images")
    assert newest["tags"] == [fixed(1), MOVING, "latest"]
    assert (newest["digest"], newest["verified"], newest["signed"]) == (
        shelf.made[1].digest,
        False,
        False,
    )
    assert (first["tags"], first["verified"], first["signed"]) == ([fixed(0)], True, True)
    assert first["release"] == "1.0" and first["platforms"] == ["linux/amd64"]
    assert first["bytes"] == images.LAYER_BYTES
    assert first["published"] < newest["published"]
    assert first["verdicts"] == {}  # there is no release 1.0


def test_verdicts_on_an_images_release(shelf: Shelf, tmp_path: Path) -> None:
    old = images.make(tmp_path, 98, **LABELS | {"io.fp4forge.release": "0.20.2"})
    images.seed(shelf.proxy.upstream, shelf.name, old, "old")
    (found,) = shelf.run("images")
    assert found["verdicts"] == {"affected": 3, "not_affected": 5, "under_investigation": 3}


HOSTILE: list[bytes] = [b"", b"[]", b'{"tags": "x"}', b'{"tags": ["../x", "\\u001b[2J", 1]}']


@pytest.mark.parametrize("content", HOSTILE)
def test_a_list_of_tags_that_is_none(shelf: Shelf, content: bytes) -> None:
    shelf.publish(0)
    shelf.proxy.spoil(Fault("GET root", status(200, content)))
    shelf.run("images", code=5)


def test_more_tags_than_a_page(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        shelf.publish(number)
    monkeypatch.setattr(catalog, "_PAGE", 2)
    assert shelf.tags() == {fixed(0), fixed(1), fixed(2), MOVING}


def test_a_repository_that_does_not_exist(shelf: Shelf) -> None:
    assert "does not exist" in shelf.run("images", code=5)["message"]


# Back


def test_two_rollbacks_go_back_two_steps(shelf: Shelf) -> None:
    for number in range(3):
        shelf.publish(number)
    dry = shelf.run("rollback", MOVING, "--dry-run")
    assert (dry["after"], dry["moved"]) == (shelf.made[1].digest, False)
    assert shelf.named() == shelf.made[2].digest
    for number in (1, 0):
        done = shelf.run("rollback", MOVING)
        assert done["after"] == shelf.named() == shelf.made[number].digest
        assert done["verdict"] == PASSED
    assert "no verified image before" in shelf.run("rollback", MOVING, code=12)["message"]
    # Each move is recorded, and none of them counts as a check of the image.
    newest = records.of(shelf.repository, shelf.made[0].digest, MOVING)[0]
    assert newest.tags[MOVING] == records.TagMove(shelf.made[1].digest, shelf.made[0].digest)
    assert newest.verdict.startswith(f"rolled back from {shelf.made[1].digest}")
    # Forward again, by digest; and from there back to what was before.
    shelf.run("rollback", MOVING, "--to", shelf.made[2].digest)
    assert shelf.named() == shelf.made[2].digest
    assert shelf.run("rollback", MOVING, "--dry-run")["after"] == shelf.made[1].digest


def test_a_verdict_with_failures_is_none(shelf: Shelf) -> None:
    shelf.publish(0, "8 of 9 checks passed, 1 failed")
    shelf.publish(1)
    first = shelf.made[0].digest
    assert "no record" in shelf.run("rollback", MOVING, "--to", first, code=12)["message"]
    assert not shelf.run("images")[1]["verified"]


@pytest.mark.parametrize("label", ["release", "arch", "variant"])
def test_a_tag_goes_to_no_image_of_another_kind(shelf: Shelf, label: str, tmp_path: Path) -> None:
    shelf.publish(0)
    other = images.make(tmp_path, 77, **LABELS | {f"io.fp4forge.{label}": "0.9"})
    images.seed(shelf.proxy.upstream, shelf.name, other)
    tagging.give(shelf.repository, other.digest, ("other",), lambda _: None, "other", PASSED)
    said = shelf.run("rollback", MOVING, "--to", other.digest, code=14)["message"]
    assert "is for 1.0 sm121 awq" in said and shelf.named() == shelf.made[0].digest


def test_a_record_of_an_impossible_time_hides_nothing(shelf: Shelf) -> None:
    shelf.publish(0)
    record = records.of(shelf.repository, shelf.made[0].digest)[0]
    late = msgspec.structs.replace(record, time="0001-01-01T00:00:00+23:59")
    content = msgspec.json.encode(late)
    referrers.attach(shelf.repository, shelf.made[0].digest, records.KIND, content, late.time)
    where = ("--registry", shelf.proxy.address, "--repo", shelf.name)
    done = shelf.command("images", *where)
    assert done.code == 0 and MOVING in done.out


def test_what_is_not_verified_is_passed_over(shelf: Shelf) -> None:
    shelf.publish(0)
    shelf.publish(1, "")  # no verdict
    shelf.publish(2)
    shelf.publish(3)
    catalog.delete(shelf.repository, shelf.made[2].digest)
    done = shelf.run("rollback", MOVING)
    assert done["after"] == shelf.named() == shelf.made[0].digest
    assert done["passed_over"] == {
        shelf.made[2].digest: "not in the registry any more",
        shelf.made[1].digest: "no record says that its checks passed",
    }


def test_what_is_never_moved_to(shelf: Shelf) -> None:
    shelf.publish(0, "")
    shelf.publish(1)
    before = shelf.named()
    unverified = shelf.run("rollback", MOVING, "--to", shelf.made[0].digest, code=12)
    assert "no record" in unverified["message"]
    # Another image's record says nothing of this one, nor does one of this image that was made in
    # another repository and copied with it.
    digest = shelf.made[0].digest
    copied = records.of(shelf.repository, shelf.made[1].digest)[0]
    elsewhere = msgspec.structs.replace(copied, digest=digest, repository="another/place")
    for record in (copied, elsewhere):
        content = msgspec.json.encode(record)
        referrers.attach(shelf.repository, digest, records.KIND, content, record.time)
        shelf.run("rollback", MOVING, "--to", digest, code=12)
    assert (
        "has no sha256"
        in shelf.run("rollback", MOVING, "--to", "sha256:" + "0" * 64, code=5)["message"]
    )
    assert "already" in shelf.run("rollback", MOVING, "--to", before or "", code=2)["message"]
    for word in ("sha256:1", "stable"):
        said = shelf.run("rollback", MOVING, "--to", word, code=2)["message"]
        assert "is not a digest" in said
    assert "immutable" in shelf.run("rollback", fixed(1), code=2)["message"]
    assert "has no 1.0-nothing" in shelf.run("rollback", "1.0-nothing", code=5)["message"]
    assert shelf.named() == before and shelf.named(fixed(1)) == before


def test_another_platforms_image_is_not_taken(shelf: Shelf, tmp_path: Path) -> None:
    foreign = images.make(tmp_path, 99, **LABELS | {"io.fp4forge.strategy": "source"})
    shelf.publish(0)
    images.seed(shelf.proxy.upstream, shelf.name, foreign)
    tag = "1.0-sm121-awq-0000000000ff"
    tagging.give(shelf.repository, foreign.digest, (tag,), lambda _: None, tag, PASSED)
    assert "strategy" in shelf.run("rollback", MOVING, "--to", foreign.digest, code=14)["message"]
    assert shelf.named() == shelf.made[0].digest


def test_a_tag_goes_to_no_image_that_lost_a_layer(shelf: Shelf) -> None:
    shelf.publish(0)
    shelf.publish(1)
    layout = shelf.made[0].layout
    (layer,) = layout.layers(shelf.made[0].digest)
    gone = api.ask("DELETE", shelf.repository, f"blobs/{layer.digest}", {})
    assert gone.status == 202
    assert "does not keep blob" in shelf.run("rollback", MOVING, code=5)["message"]
    assert shelf.named() == shelf.made[1].digest


def test_a_tag_that_the_registry_does_not_move(shelf: Shelf) -> None:
    shelf.publish(0)
    shelf.publish(1)
    shelf.proxy.spoil(Fault("PUT tag", status(403)))
    done = shelf.run("rollback", MOVING, code=5)
    assert f"{MOVING} now names {shelf.made[1].digest}" in done["message"]


# Away


@pytest.fixture
def lock(shelf: Shelf, tmp_path: Path) -> Callable[[int], Path]:
    """The lock of a run with an image of the shelf."""

    def write(number: int) -> Path:
        image = f"{shelf.repository}@{shelf.made[number].digest}"
        model = tmp_path / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        server = settings.server(model, image, settings.ServerWishes(version="0.20.2"))
        made = runlock.make(server, "run", "text", lambda _: None)
        folder = tmp_path / "locks"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.json").write_text(runlock.text_of(made))
        return folder

    return write


def test_old_images_go_and_named_ones_stay(
    shelf: Shelf, lock: Callable[[int], Path], made: list[images.Image]
) -> None:
    for number in range(5):
        shelf.publish(number)
    tagging.give(shelf.repository, made[1].digest, ("stable",), lambda _: None)
    locks = ("--locks", str(lock(2)))
    everything = shelf.tags()
    dry = shelf.run("prune", "--keep", "1", *locks, "--dry-run")
    assert shelf.tags() == everything and not dry["removed"]
    done = shelf.run("prune", "--keep", "1", *locks)
    assert done["images"] == dry["images"]
    kept = {entry["digest"]: entry["kept"] for entry in done["images"]}
    assert kept[made[4].digest] == f"{MOVING} names it"
    assert kept[made[1].digest] == "stable names it"
    assert kept[made[2].digest].endswith("2.json names it")
    assert [kept[made[n].digest] for n in (0, 3)] == ["", ""]
    assert shelf.tags() == everything - {fixed(0), fixed(3)}
    for number in (0, 3):  # with its parts and its records
        digest = made[number].digest
        parts = made[number].layout.document(digest).manifests or []
        for name in (digest, referrers.tag(digest), *(part.digest for part in parts)):
            assert registry.manifest(shelf.repository, name) is None
    for number in (1, 2, 4):  # whole, and still with a past
        assert registry.layer_sizes(shelf.repository, made[number].digest)
        assert records.of(shelf.repository, made[number].digest)
    assert shelf.run("prune", "--keep", "1", *locks)["images"] == [
        entry for entry in done["images"] if entry["kept"]
    ]


def test_parts_of_an_index_that_stays_stay(shelf: Shelf, made: list[images.Image]) -> None:
    """An image of one platform goes; the index of several that names its parts does not."""
    for number in range(3):
        shelf.publish(number)
    parts = set(made[0].layout.document(made[0].digest).image_digests)
    parts |= made[1].layout.document(made[1].digest).image_digests
    both = registry_tags.combine(shelf.repository, [made[0].digest, made[1].digest], parts)
    tagging.give(shelf.repository, both, ("1.0-sm121-awq-wheel-bootstrap",), lambda _: None)
    done = shelf.run("prune", "--keep", "1")
    assert sum(not entry["kept"] for entry in done["images"]) == 2
    assert registry.images_of(shelf.repository, both) == parts
    assert len(registry.layer_sizes(shelf.repository, both)) == 2


def test_what_is_said_to_lie_beside_an_old_image_stays_if_it_is_kept(
    shelf: Shelf, made: list[images.Image]
) -> None:
    """Who can write to a registry can name a kept image like the signature of another."""
    for number in range(3):
        shelf.publish(number)
    stays = made[1].digest
    tagging.give(shelf.repository, stays, ("stable",), lambda _: None)
    tag = f"{referrers.tag(made[0].digest)}.sig"
    images.seed(shelf.proxy.upstream, shelf.name, made[1], tag)
    done = shelf.run("prune", "--keep", "1")
    assert {e["digest"]: e["kept"] for e in done["images"]}[made[0].digest] == ""
    assert shelf.named("stable") == stays
    assert registry.layer_sizes(shelf.repository, stays)


def test_signatures_go_with_their_image(shelf: Shelf, made: list[images.Image]) -> None:
    for number in range(3):
        shelf.publish(number)
    (part,) = made[0].layout.document(made[0].digest).image_digests
    names = [cosign.signature_tag(made[0].digest), cosign.attestation_tag(part)]
    for name, image in zip(names, made[3:], strict=False):
        images.seed(shelf.proxy.upstream, shelf.name, image, name)
    shelf.run("prune", "--keep", "1")
    assert all(registry.manifest(shelf.repository, name) is None for name in names)


def test_what_has_no_record_stays(shelf: Shelf, made: list[images.Image]) -> None:
    shelf.publish(4)
    for number in range(2):
        images.seed(shelf.proxy.upstream, shelf.name, made[number], fixed(number))
    done = shelf.run("prune", "--keep", "1")
    assert [entry["kept"] for entry in done["images"]][1:] == ["no record says how old it is"] * 2


def test_an_image_that_lost_a_part_hides_no_other(shelf: Shelf, made: list[images.Image]) -> None:
    for number in range(3):
        shelf.publish(number)
    (part,) = made[0].layout.document(made[0].digest).image_digests
    catalog.delete(shelf.repository, part)
    found = shelf.run("images")
    assert [bool(entry["problem"]) for entry in found] == [False, False, True]
    done = shelf.run("prune", "--keep", "1")
    assert [bool(entry["kept"]) for entry in done["images"]] == [True, False, True]
    assert "cannot be read" in done["images"][2]["kept"]


def test_a_registry_that_deletes_nothing(shelf: Shelf) -> None:
    for number in range(3):
        shelf.publish(number)
    shelf.proxy.spoil(Fault("DELETE digest", status(405)))
    done = shelf.run("prune", "--keep", "1", code=5)
    assert "405" in done["message"] and "delete: {enabled: true}" in done["remedy"]
    assert shelf.tags() == {fixed(0), fixed(1), fixed(2), MOVING}


def test_a_spoilt_lock_stops_it(shelf: Shelf, lock: Callable[[int], Path]) -> None:
    for number in range(3):
        shelf.publish(number)
    folder = lock(0)
    (folder / "1.json").write_text("{")
    shelf.run("prune", "--keep", "1", "--locks", str(folder), code=31)
    shelf.run("prune", "--keep", "1", "--locks", str(folder / "none"), code=2)
    assert len(shelf.tags()) == 4
