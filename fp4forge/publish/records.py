"""A record of each publish, kept in the registry beside the image: who moved which tag, from what.

A wrong move can be seen with ``build.py history`` and undone: the record has the digest before it.
Whoever can write to the registry can add a record; a signed one (``cosign verify`` of its artifact)
is known to be the publisher's. A record names its repository: copied to another one with its image,
it says nothing there.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from msgspec import Struct, json

import fp4forge
from fp4forge.core import reading
from fp4forge.core.errors import RegistryError, SignatureError
from fp4forge.core.image_names import DIGEST
from fp4forge.oci import cosign, referrers
from fp4forge.oci.cosign import Signer, Trust
from fp4forge.oci.reference import parse
from fp4forge.oci.referrers import AttachedDocument

KIND = "application/vnd.fp4forge.publish.v1+json"
# What pipeline.py writes after the checks passed: now (checks.check.summary), before on the same
# machine, or for each image of an index.
_PASSED = re.compile(
    r"(?!.*\bfailed\b)(?:[1-9][0-9]* of [0-9]+ checks passed|verified before|an index of verified )"
)
_FOLLOWED = 100  # earlier images of a tag


class TagMove(Struct, frozen=True):
    """What a tag named before a publish and after it; empty if it named nothing."""

    before: str
    after: str


class PublishRecord(Struct, frozen=True):
    """One publish; the tags are in the order in which they were moved."""

    time: str  # ISO 8601, UTC
    digest: str
    verdict: str
    tags: dict[str, TagMove]
    by: str
    repository: str = ""  # without the registry's host, which has more than one name


def passed(kept: list[PublishRecord], repository: str, digest: str) -> PublishRecord | None:
    """The newest record that says that an image's checks passed; None if none does.

    Args:
        kept: records, the newest first.
        repository: of the image; a record that was copied from another one does not count.
        digest: of the image; another's record says nothing of it.
    """
    path = parse(repository).path
    return next(
        (
            record
            for record in kept
            if (record.digest, record.repository) == (digest, path)
            and _PASSED.match(record.verdict)
        ),
        None,
    )


def write(
    repository: str, digest: str, verdict: str, tags: dict[str, TagMove], by: Signer | None = None
) -> None:
    """Keeps the record of a publish that moved a tag, signed if there is a signer.

    Raises:
        RegistryError: the registry does not take it.
        SignatureError: it is kept, and cannot be signed.
    """
    if all(move.before == move.after for move in tags.values()):
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    by_us, path = f"fp4forge {fp4forge.__version__}", parse(repository).path
    record = PublishRecord(now, digest, verdict, tags, by_us, path)
    own = referrers.attach(repository, digest, KIND, json.encode(record), now)
    if by:
        cosign.sign(repository, [own], by)


def of(
    repository: str, digest: str, tag: str = "", trust: Trust | None = None
) -> list[PublishRecord]:
    """The records of an image, the newest first; with a tag, those of the images before it too.

    With ``trust``, a record counts only if it is signed so and is of the image that it lies beside.

    Raises:
        RegistryError: the registry does not answer, or a record is not one.
    """
    found: list[PublishRecord] = []
    seen: set[str] = set()
    ahead = [digest]
    while ahead and len(seen) < _FOLLOWED:
        current = ahead.pop(0)
        seen.add(current)
        where = f"a record of {current[:19]}"
        for kept in _trusted(repository, referrers.kept(repository, current, KIND), trust):
            record = reading.json(kept.content, PublishRecord, where, RegistryError)
            if trust and record.digest != current:
                continue
            found.append(record)
            before = record.tags[tag].before if tag in record.tags else ""
            # Anyone who can write to the registry can write a record: only a digest is asked for.
            if re.fullmatch(DIGEST, before) and before not in seen and before not in ahead:
                ahead.append(before)
    return sorted(found, key=lambda record: record.time, reverse=True)


def _trusted(
    repository: str, kept: list[AttachedDocument], trust: Trust | None
) -> list[AttachedDocument]:
    if trust is None or not kept:
        return kept
    try:
        cosign.check(repository, [document.digest for document in kept], trust)
    except SignatureError:
        return [document for document in kept if _signed(repository, document.digest, trust)]
    return kept


def _signed(repository: str, digest: str, trust: Trust) -> bool:
    try:
        cosign.check(repository, [digest], trust)
    except SignatureError:
        return False
    return True
