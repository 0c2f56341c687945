"""Tags: their order, what the failure of one leaves behind, and who else may write them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fp4forge.core.errors import ForgeError, RegistryError, TagError
from fp4forge.oci import registry
from fp4forge.oci.layout import INDEX
from fp4forge.publish import platform_index, tagging, verified
from fp4forge.publish.destination import Destination
from tests.e2e.faults import wire
from tests.e2e.faults.commands import Command
from tests.e2e.faults.images import Image, named, seed
from tests.e2e.faults.registry import (
    Exchange,
    Fault,
    Proxy,
    after_forwarding,
    not_stored,
    on_wire,
    status,
)

NAMES = ("0.20.2-sm121-awq-0123456789ab", "0.20.2-sm121-awq-wheel", "mine")
REFUSALS: dict[str, Callable[[Exchange], None]] = {
    "500": status(500),
    "403": status(403),
    "resets": on_wire(wire.reset),
    "hangs": on_wire(wire.then_hang()),
    "not-moved": not_stored,
}


def give(proxy: Proxy, repository: str, image: Image) -> None:
    tagging.give(
        f"{proxy.address}/{repository}", image.digest, NAMES, lambda _: None, fixed=NAMES[0]
    )


def now(proxy: Proxy, repository: str) -> list[str | None]:
    return [named(proxy.upstream, repository, name) for name in NAMES]


@pytest.fixture
def published(limits: None, proxy: Proxy, repository: str, image: Image, other: Image) -> str:
    """An image without a tag; the moving tags name an older one."""
    seed(proxy.upstream, repository, image)
    seed(proxy.upstream, repository, other, *NAMES[1:])
    return repository


@pytest.mark.parametrize(("refused", "how"), list(itertools.product((1, 2, 3), REFUSALS)))
def test_tags_move_in_their_order_until_one_is_refused(
    proxy: Proxy,
    published: str,
    image: Image,
    other: Image,
    patient: Callable[[], None],
    refused: int,
    how: str,
) -> None:
    before = now(proxy, published)
    assert before == [None, other.digest, other.digest]
    if how != "hangs":
        patient()
    proxy.spoil(Fault("PUT tag", REFUSALS[how], first=refused))
    with pytest.raises(RegistryError) as caught:
        give(proxy, published, image)
    proxy.heal()
    after = now(proxy, published)
    assert after == [image.digest] * (refused - 1) + before[refused - 1 :]
    said = re.findall(r":([^:/\s]+) now names (\S+)", caught.value.message)
    assert said == [(n, d or "nothing") for n, d in zip(NAMES, after, strict=True)]
    patient()
    give(proxy, published, image)
    assert now(proxy, published) == [image.digest] * 3


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_tag_that_moved_though_the_answer_was_lost_is_reported_as_moved(
    proxy: Proxy, published: str, image: Image, other: Image, lost: int
) -> None:
    proxy.spoil(Fault("PUT tag", after_forwarding(wire.reset), first=lost, last=lost))
    with pytest.raises(RegistryError) as caught:
        give(proxy, published, image)
    moved = f"{NAMES[lost - 1]} now names {image.digest}"
    assert moved in caught.value.message
    assert now(proxy, published)[:lost] == [image.digest] * lost
    assert now(proxy, published)[lost:] == [other.digest] * (3 - lost)


def test_a_full_disk_at_the_third_tag_says_what_the_others_name(
    proxy: Proxy, published: str, image: Image, other: Image
) -> None:
    proxy.spoil(Fault("PUT tag", status(507), first=3))
    with pytest.raises(ForgeError) as caught:
        give(proxy, published, image)
    assert caught.value.exit_code == 13
    assert f"{NAMES[0]} now names {image.digest}" in caught.value.message
    assert now(proxy, published) == [image.digest, image.digest, other.digest]


def test_a_registry_that_dies_meanwhile_leaves_a_message(
    proxy: Proxy, published: str, image: Image
) -> None:
    proxy.spoil(Fault("* *", on_wire(wire.reset), first=6))
    with pytest.raises(RegistryError, match="unknown: the registry does not answer"):
        give(proxy, published, image)


def by_another(published: str, other: Image, tag: str) -> Callable[[Exchange], None]:
    """Another publisher writes a tag after this request, before its answer arrives."""

    def run(x: Exchange) -> None:
        reply = x.forward()
        seed(x.proxy.upstream, published, other, tag)
        x.reply(reply)

    return run


def test_an_immutable_tag_taken_before_it_is_written_stays(
    proxy: Proxy, published: str, image: Image, other: Image
) -> None:
    proxy.spoil(Fault("GET digest", by_another(published, other, NAMES[0]), first=1, last=1))
    with pytest.raises(TagError, match="already names another image"):
        give(proxy, published, image)
    assert now(proxy, published) == [other.digest] * 3


@pytest.mark.parametrize("tag", [0, 1, 2])
def test_a_tag_that_another_publisher_takes_at_the_same_moment_is_noticed(
    proxy: Proxy, published: str, image: Image, other: Image, tag: int
) -> None:
    """What no registry can prevent: the other one writes between our write and our reading."""
    proxy.spoil(
        Fault("PUT tag", by_another(published, other, NAMES[tag]), first=tag + 1, last=tag + 1)
    )
    with pytest.raises(RegistryError) as caught:
        give(proxy, published, image)
    assert f"{NAMES[tag]} names {other.digest}" in caught.value.message


def test_the_first_tag_is_read_again_after_the_last(
    proxy: Proxy, published: str, image: Image, other: Image
) -> None:
    proxy.spoil(Fault("PUT tag", by_another(published, other, NAMES[0]), first=3))
    with pytest.raises(RegistryError, match=f"{NAMES[0]} names {other.digest}"):
        give(proxy, published, image)


def test_a_bundle_takes_no_tag_that_another_publisher_took_while_it_was_pushed(
    command: Command, proxy: Proxy, repository: str, image: Image, other: Image, tmp_path: Path
) -> None:
    proxy.spoil(Fault("GET tag", by_another(repository, other, "1"), first=1, last=1))
    done = command(
        "unbundle",
        str(image.bundle),
        "-o",
        str(tmp_path / "site"),
        "--to",
        f"{proxy.address}/{repository}",
    )
    assert done.code == 14, done.err
    assert f":1 now names {other.digest}" in done.err
    assert named(proxy.upstream, repository, "1") == other.digest


def test_an_index_of_several_platforms_is_not_taken_over_from_somebody_else(
    proxy: Proxy, published: str, image: Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another publisher's index of the same images can carry any provenance of them."""
    monkeypatch.setattr(verified, "STATE", tmp_path)
    repository = f"{proxy.address}/{published}"
    plan = {"platform": "linux/amd64", "id": "0", "release": "0.20.2"}
    plan |= {"arch": "sm121", "variant": "awq"}
    digests = {"linux/amd64": image.digest}

    def publish() -> platform_index.PublishedIndex:
        where = Destination(repository, True)
        return platform_index.publish([plan], digests, NAMES[1], where, lambda _: None)

    ours = publish()
    assert publish() == ours
    (part,) = image.layout.document(image.digest).images
    forged = json.loads(image.layout.path(image.digest).read_bytes())
    forged["manifests"].append(
        {
            "mediaType": part.mediaType,
            "digest": part.digest,
            "size": part.size,
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {"vnd.docker.reference.digest": part.digest},
        }
    )
    registry.put(repository, ours.tags[0], json.dumps(forged).encode(), INDEX)
    with pytest.raises(TagError, match="not published here"):
        publish()
    assert named(proxy.upstream, published, NAMES[1]) == ours.digest
