"""What a repository holds: its tags, what an image says of itself, and its removal.

OCI distribution specification 1.1, "Content discovery" and "Content management".
"""

from __future__ import annotations

import re
from urllib.parse import quote

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import RegistryError
from fp4forge.core.image_names import TAG
from fp4forge.core.limits import TAG_PAGES
from fp4forge.oci import api

_PAGE = 1000  # tags of one answer
_TAG = re.compile(TAG)
# Not images: what is kept beside one where a registry has no referrers API (the specification's
# tag schema), and cosign's own tags.
_BESIDE = re.compile(r"sha256-[0-9a-f]{64}(\.(sig|att|sbom))?")


class _Tags(Struct, frozen=True):
    tags: list[str] | None = None


def every_tag(repository: str) -> list[str]:
    """All tags of a repository, with those that are kept beside images.

    Raises:
        RegistryError: the registry does not answer, or has no such repository.
    """
    found: list[str] = []
    for _ in range(TAG_PAGES):
        last = f"&last={quote(found[-1])}" if found else ""
        answer = api.ask("GET", repository, f"tags/list?n={_PAGE}{last}", {})
        if answer.status == 404:
            raise RegistryError(
                f"{repository} does not exist",
                rule="a repository that something was pushed to",
                remedy="check --registry and --repo",
            )
        if answer.status != 200:
            raise api.refused(repository, "list tags", answer)
        where = f"the tags of {repository}"
        page = reading.json(answer.content, _Tags, where, RegistryError).tags or []
        new = [tag for tag in page if _TAG.fullmatch(tag)]
        found += new
        if not new or "link" not in answer.headers:
            return list(dict.fromkeys(found))
    raise RegistryError(f"{repository} has more than {TAG_PAGES * _PAGE:,} tags")


def is_image(tag: str) -> bool:
    """Whether a tag names an image, and not what is kept beside one."""
    return not _BESIDE.fullmatch(tag)


def delete(repository: str, digest: str) -> None:
    """Deletes a manifest and every tag that names it; one that is already gone is not an error.

    Raises:
        RegistryError: the registry does not delete, refuses, or does not answer.
    """
    answer = api.ask("DELETE", repository, f"manifests/{digest}", {})
    if answer.status == 405:
        raise RegistryError(
            f"the registry of {repository} deletes nothing (status 405)",
            rule="DELETE of a manifest (OCI distribution specification, optional)",
            remedy="allow it there: 'storage: {delete: {enabled: true}}' in docker-registry's"
            " configuration, as scripts/registry.sh writes it",
        )
    if answer.status not in (200, 202, 404):
        raise api.refused(repository, f"delete {digest[:19]}", answer)
