"""Moves a tag back to an image that it named before, or to a given one: only if its checks passed.

Records say what a tag named and when (``records``). The images that a tag has named, in the order
in which it first named each, are its past; the one before the present image is the target. So
two rollbacks go back two steps, and ``--to`` goes anywhere, forward too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fp4forge.core.errors import RegistryError, TagError, UsageError, VerifyError
from fp4forge.core.image_names import DIGEST
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress
from fp4forge.oci import reference, registry, registry_tags
from fp4forge.oci.cosign import Trust
from fp4forge.plan import tags
from fp4forge.publish import listing, records, tagging


@dataclass(frozen=True)
class Rollback:
    """A move: digests, the verdict of the target's checks, and what was passed over and why."""

    tag: str
    before: str
    after: str
    verdict: str
    verified: str  # when, ISO 8601
    passed_over: dict[str, str]


def choose(repository: str, tag: str, to: str | None, trust: Trust | None = None) -> Rollback:
    """The image that a tag is to name; moves nothing.

    Args:
        repository: where.
        tag: one that moves.
        to: a digest; None for the verified image before the present one.
        trust: who must have signed the records that count; None: anyone's count.

    Raises:
        UsageError: the tag is immutable, or ``to`` is not a digest, or what the tag names already.
        RegistryError: the tag or the image does not exist, or the registry does not answer.
        VerifyError: no record here says that the image's checks passed, or there is none before.
    """
    reference.parse(f"{repository}:{tag}", "TAG")
    if tags.is_immutable(tag):
        raise UsageError(
            f"{tag} is an immutable tag",
            rule="it names one image for ever",
            remedy="give a tag that moves; build.py images lists them",
        )
    current = listing.find(repository, tag).digest
    by = f" signed by {trust}" if trust else ""
    if to is not None:
        if not re.fullmatch(DIGEST, to):
            raise UsageError(
                f"--to {shown(to, 100)!r} is not a digest",
                rule="sha256: and 64 hexadecimal digits",
                remedy="build.py images lists them",
            )
        named = to
        if named == current:
            raise UsageError(f"{tag} names {named[:19]} already", rule="--to another image")
        listing.find(repository, named)
        record = _passed(repository, named, trust)
        if record is None:
            raise VerifyError(
                f"no record{by} in {repository} says that the checks of {named} passed",
                rule="a moving tag only names an image whose checks passed here",
                remedy="publish it again (--push), or give another --to (build.py images)",
            )
        return Rollback(tag, current, named, record.verdict, record.time, {})
    over: dict[str, str] = {}
    for digest in _images_before(repository, tag, current, trust):
        if registry.manifest(repository, digest) is None:
            over[digest] = "not in the registry any more"
            continue
        record = _passed(repository, digest, trust)
        if record is not None:
            return Rollback(tag, current, digest, record.verdict, record.time, over)
        over[digest] = f"no record{by} says that its checks passed"
    why = "".join(f"\n  {digest}: {reason}" for digest, reason in over.items())
    raise VerifyError(
        f"{repository}:{tag} named no verified image before {current[:19]}{why}",
        rule="records in the registry say what a tag named (build.py history)",
        remedy="--to DIGEST; build.py images lists what is there",
    )


def _passed(repository: str, digest: str, trust: Trust | None) -> records.PublishRecord | None:
    return records.passed(records.of(repository, digest, trust=trust), repository, digest)


def move(repository: str, chosen: Rollback, report: Progress) -> str:
    """Moves the tag, reads it back, and keeps a record of it.

    Returns:
        Why no record is kept; empty if one is.

    Raises:
        TagError: the target is of another platform, strategy or base.
        RegistryError: the registry refuses, lacks a part of the target, or somebody moved the tag
            meanwhile.
    """
    registry.check_whole(repository, chosen.after)
    with tagging.turn(repository):
        now = listing.find(repository, chosen.tag).digest
        if now != chosen.before:
            raise RegistryError(
                f"{repository}:{chosen.tag} now names {now[:19]}",
                rule=f"it named {chosen.before[:19]} when the target was chosen",
                remedy="somebody else published; look at build.py history, and run again",
            )
        labels = registry.image_labels(repository, chosen.after)
        registry_tags.check_takes_nothing_away(repository, chosen.tag, labels)
        _check_kind(repository, chosen, labels)
        verdict = f"rolled back from {chosen.before}: {shown(chosen.verdict, 200)}"
        return tagging.give(repository, chosen.after, (chosen.tag,), report, verdict=verdict)


def _images_before(repository: str, tag: str, current: str, trust: Trust | None) -> list[str]:
    """The images that a tag named before it first named the present one, the newest first."""
    first: dict[str, str] = {}
    for record in reversed(records.of(repository, current, tag, trust=trust)):
        if tag in record.tags:
            first.setdefault(record.tags[tag].before, "")  # from before the records
            first.setdefault(record.tags[tag].after, record.time)
    first = {name: time for name, time in first.items() if re.fullmatch(DIGEST, name)}
    since = first.pop(current, "~")
    return sorted((d for d in first if first[d] < since), key=first.__getitem__, reverse=True)


def _check_kind(repository: str, chosen: Rollback, labels: list[dict[str, str]]) -> None:
    """Refuses an image of another kind for a tag that a plan made: its name says the kind.

    Raises:
        TagError: release, GPU or variant differ.
    """
    kinds = [_target_kind(entry) for entry in registry.image_labels(repository, chosen.before)]
    own = {kind for kind in kinds if chosen.tag.startswith("-".join(kind) + "-")}
    found = {_target_kind(entry) for entry in labels}
    if own and found != own:
        raise TagError(
            f"{repository}:{chosen.tag} is for {' '.join(min(own))};"
            f" {chosen.after[:19]} is for {' '.join(min(found, default=('', '', 'nothing')))}",
            rule="the tag's name says release, GPU and variant, and so do the image's labels",
            remedy="--to an image of that kind (build.py images)",
        )


def _target_kind(labels: dict[str, str]) -> tuple[str, str, str]:
    release, arch, variant = (
        labels.get(f"io.fp4forge.{name}", "") for name in ("release", "arch", "variant")
    )
    return release, arch, variant
