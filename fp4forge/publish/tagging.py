"""Gives tags to a published image: one publisher at a time, in a fixed order, each read back.

The order is immutable, moving, then the user's own: whatever fails, every tag that was moved names
an image whose checks passed, and the immutable one is there to go back to.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import time
from collections.abc import Iterator

from fp4forge.core.errors import ForgeError, RegistryError
from fp4forge.core.limits import TURN_SECONDS
from fp4forge.kernels.base import Progress
from fp4forge.oci import registry, registry_tags
from fp4forge.oci.cosign import Signer
from fp4forge.publish import records


@contextlib.contextmanager
def turn(repository: str) -> Iterator[None]:
    """Waits until no other publisher on this machine looks up or moves tags of a repository.

    A registry cannot compare and set a tag, so two publishers could both find it free. The lock is
    a name in Linux's abstract socket namespace (unix(7)): checkouts and users share it, and the
    kernel gives it back however its owner ends. Publishers on other machines do not see it.

    Raises:
        RegistryError: another publisher keeps its turn for TURN_SECONDS.
    """
    name = "\0fp4forge-tags-" + hashlib.sha256(repository.encode()).hexdigest()[:32]
    until = time.monotonic() + TURN_SECONDS
    with socket.socket(socket.AF_UNIX) as held:
        while True:
            try:
                held.bind(name)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            if time.monotonic() > until:
                raise RegistryError(
                    f"another publisher on this machine is moving tags of {repository}",
                    rule=f"one at a time, each within {TURN_SECONDS} s",
                    remedy="wait for it, and run again",
                )
            time.sleep(0.05)
        yield


def check_further(repository: str, digest: str, further: tuple[str, ...]) -> None:
    """Whether the user's own tags may move to an image.

    Raises:
        TagError: one names an image of another platform, strategy or base.
    """
    labels = registry.image_labels(repository, digest) if further else []
    for name in further:
        registry_tags.check_takes_nothing_away(repository, name, labels)


def give(
    repository: str,
    digest: str,
    names: tuple[str, ...],
    report: Progress,
    fixed: str = "",
    verdict: str = "",
    by: Signer | None = None,
) -> str:
    """Makes tags name a digest, in their order; at the end all of them are read once more.

    A record of it is kept in the registry (``records``), whether it succeeds or not.

    Args:
        repository: where; the digest is there already, checked.
        digest: what the tags are to name.
        names: the tags in their order.
        report: called with each name.
        fixed: the one among them that is never moved away from another image.
        verdict: of the image's checks, for the record.
        by: who signs the record, if it is to be signed.

    Returns:
        Why no record, or no signed one, is kept; empty if one is, or if no tag moved.

    Raises:
        TagError: the fixed one names another image.
        RegistryError: the registry refuses one, or one names something else afterwards.
        ForgeError: in each case the message has what each tag names now.
    """
    before = _tagged_digests(repository, names)
    try:
        for name in names:
            report(name)
            registry_tags.tag(repository, digest, name, fixed=name == fixed)
        for name in names:  # the first may have been moved while the last one was written
            registry_tags.check_names(repository, name, digest)
    except BaseException as error:
        state = _tags_state(repository, names)
        error.add_note(state)
        if isinstance(error, ForgeError):
            error.message += "\n" + state
            error.rule = error.rule or "tags are moved in this order: " + ", ".join(names)
        with contextlib.suppress(ForgeError):
            _keep_record(repository, digest, f"{verdict}; then failed", before, names, by)
        raise
    return _keep_record(repository, digest, verdict, before, names, by)


def _tagged_digests(repository: str, names: tuple[str, ...]) -> dict[str, str]:
    """What each tag names now; empty for nothing."""
    found = {name: registry.manifest(repository, name) for name in names}
    return {name: manifest.digest if manifest else "" for name, manifest in found.items()}


def _keep_record(
    repository: str,
    digest: str,
    verdict: str,
    before: dict[str, str],
    names: tuple[str, ...],
    by: Signer | None,
) -> str:
    try:
        after = _tagged_digests(repository, names)
        moves = {name: records.TagMove(before[name], after[name]) for name in names}
        records.write(repository, digest, verdict, moves, by)
    except ForgeError as error:
        return error.message
    return ""


def _tags_state(repository: str, names: tuple[str, ...]) -> str:
    """What each tag names now, a line each."""
    lines = []
    for name in names:
        try:
            found = registry.manifest(repository, name)
            now = found.digest if found else "nothing"
        except ForgeError:
            now = "unknown: the registry does not answer"
        lines.append(f"{repository}:{name} now names {now}")
    return "\n".join(lines)
