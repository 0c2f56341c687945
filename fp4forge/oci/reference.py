"""An image reference: registry and path, tag, digest (OCI distribution specification 1.1)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fp4forge.core.errors import UsageError
from fp4forge.core.image_names import DIGEST, TAG

_PATH = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
_HOST = re.compile(r"[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*(?::[0-9]{1,5})?")
_TAG, _DIGEST = re.compile(TAG), re.compile(DIGEST)
_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+)(:[0-9]+)?")


@dataclass(frozen=True)
class ImageReference:
    """``REPOSITORY[:TAG][@DIGEST]``; the repository includes the registry's host, if it has one."""

    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def host(self) -> str:
        """The registry's host and port; empty for a name without one."""
        first, slash, _ = self.repository.partition("/")
        return first if slash and (first == "localhost" or re.search("[.:]", first)) else ""

    @property
    def path(self) -> str:
        """The repository without the registry's host."""
        return self.repository.removeprefix(f"{self.host}/") if self.host else self.repository

    @property
    def loopback(self) -> bool:
        """Whether the registry listens on loopback, which usually speaks plain HTTP."""
        return bool(_LOOPBACK.fullmatch(self.host))


def _reference_shown(text: str) -> str:
    """What was given, without a user's password before the host."""
    return re.sub(r"[^/@]*:[^@]*@(?!sha256:)", "...@", text)


def parse(text: str, flag: str = "IMAGE") -> ImageReference:
    """A reference after validation.

    Args:
        text: what the user gave.
        flag: the option or argument, for the message.

    Raises:
        UsageError: it does not have the form that the specification allows.
    """
    name, at, digest = text.partition("@")
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        head, tag = name, ""
    host, slash, path = head.partition("/")
    has_host = bool(slash) and (host == "localhost" or bool(re.search("[.:]", host)))
    valid = (
        _PATH.fullmatch(path if has_host else head)
        and (not has_host or _HOST.fullmatch(host))
        and (not colon or "/" in name.rpartition(":")[2] or _TAG.fullmatch(tag))
        and (not at or _DIGEST.fullmatch(digest))
    )
    if not valid:
        raise UsageError(
            f"{flag} {_reference_shown(text)!r} is not an image reference",
            rule="[HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST], names in lower case",
        )
    return ImageReference(head, tag, digest)


def listed(names: Iterable[str] | None) -> list[ImageReference]:
    """The references of an engine's list (``RepoTags``, ``RepoDigests``), without ``<none>``.

    Args:
        names: the list; engines give null for an empty one.
    """
    found = []
    for name in names or ():
        with contextlib.suppress(UsageError):
            found.append(parse(name))
    return found


def bare(text: str, flag: str) -> str:
    """``HOST/NAME``, a repository to push to, after validation.

    Raises:
        UsageError: it has no slash, or it has a tag or a digest.
    """
    found = parse(text, flag)
    if "/" not in found.repository or found.tag or found.digest:
        raise UsageError(
            f"{flag} {_reference_shown(text)!r} is not a repository of a registry",
            rule="HOST[:PORT]/NAME, without a tag or a digest",
        )
    return found.repository


def repository(registry: str | None, repo: str) -> str:
    """``registry/repo`` after validation.

    Raises:
        UsageError: either does not have the form that the specification allows.
    """
    if not _PATH.fullmatch(repo):
        raise UsageError(
            f"--repo {repo!r} is not a repository name",
            rule="lower-case letters, digits and . _ - / as the OCI distribution spec has it",
        )
    if registry is None:
        return repo
    host, slash, path = registry.partition("/")
    if not _HOST.fullmatch(host) or (slash and not _PATH.fullmatch(path)):
        raise UsageError(
            f"--registry {_reference_shown(registry)!r} is not a registry",
            rule="HOST, HOST:PORT or HOST/PATH; passwords are docker login's",
        )
    return f"{registry}/{repo}"
