"""The record of each publish, which the registry keeps beside the image."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fp4forge.core.errors import RegistryError
from fp4forge.publish import records, tagging
from tests.e2e.faults.commands import Command
from tests.e2e.faults.images import Image, seed
from tests.e2e.faults.registry import Fault, Proxy, status

FIXED, MOVING = "1.0-sm121-awq-0123456789ab", "1.0-sm121-awq-wheel"


def give(proxy: Proxy, repository: str, image: Image, *names: str) -> str:
    return tagging.give(
        f"{proxy.address}/{repository}",
        image.digest,
        names,
        lambda _: None,
        fixed=FIXED if FIXED in names else "",
        verdict="9 of 9 checks passed",
    )


def kept(proxy: Proxy, repository: str, image: Image, tag: str = "") -> list[records.PublishRecord]:
    return records.of(f"{proxy.address}/{repository}", image.digest, tag)


@pytest.fixture
def both(
    limits: None,
    proxy: Proxy,
    repository: str,
    image: Image,
    other: Image,
    patient: Callable[[], None],
) -> str:
    """Two images without a tag."""
    patient()
    seed(proxy.upstream, repository, image)
    seed(proxy.upstream, repository, other)
    return repository


def test_a_move_can_be_seen_and_undone(
    proxy: Proxy, both: str, image: Image, other: Image, command: Command
) -> None:
    assert give(proxy, both, other, MOVING) == ""
    assert give(proxy, both, image, FIXED, MOVING) == ""
    newest, first = kept(proxy, both, image, MOVING)
    assert (newest.digest, newest.verdict) == (image.digest, "9 of 9 checks passed")
    assert list(newest.tags) == [FIXED, MOVING]
    assert newest.tags[FIXED] == records.TagMove("", image.digest)
    assert newest.tags[MOVING] == records.TagMove(other.digest, image.digest)
    assert first.tags == {MOVING: records.TagMove("", other.digest)}
    # Undone: the tag goes back to what the record says, and that is recorded too.
    assert give(proxy, both, other, MOVING) == ""
    assert [r.tags[MOVING].after for r in kept(proxy, both, other, MOVING)] == [
        other.digest,
        image.digest,
        other.digest,
    ]
    done = command("history", f"{proxy.address}/{both}:{MOVING}", "--json")
    assert done.code == 0, done.err
    assert [entry["digest"] for entry in json.loads(done.out)] == [
        other.digest,
        image.digest,
        other.digest,
    ]


def test_no_move_is_no_record(proxy: Proxy, both: str, image: Image) -> None:
    give(proxy, both, image, MOVING)
    give(proxy, both, image, MOVING)
    assert len(kept(proxy, both, image)) == 1


def test_a_publish_that_fails_half_way_is_recorded(proxy: Proxy, both: str, image: Image) -> None:
    proxy.spoil(Fault("PUT tag", status(403), first=2, last=2))
    with pytest.raises(RegistryError):
        give(proxy, both, image, FIXED, MOVING)
    proxy.heal()
    (record,) = kept(proxy, both, image)
    assert record.verdict.endswith("then failed")
    assert record.tags == {
        FIXED: records.TagMove("", image.digest),
        MOVING: records.TagMove("", ""),
    }


def test_a_registry_that_takes_no_record_still_gets_its_tags(
    proxy: Proxy, both: str, image: Image
) -> None:
    proxy.spoil(Fault("POST upload", status(405)))
    assert "405" in give(proxy, both, image, MOVING)
    proxy.heal()
    assert kept(proxy, both, image) == []
