"""The package index: which files a project has, with hashes, sizes and days of upload."""

from __future__ import annotations

import os
import re

from msgspec import Struct, field

from fp4forge.core import http, reading
from fp4forge.core.errors import ArtefactError
from fp4forge.core.limits import INDEX_BYTES, INDEX_SECONDS, REGISTRY_REDIRECTS
from fp4forge.core.platform import PLATFORMS


def url() -> str:
    """The simple index that pip would use: from the environment, else pip's own default."""
    from pip._internal.models.index import PyPI  # the repository names no registry's host

    chosen = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL")
    return (chosen or str(PyPI.simple_url)).rstrip("/") + "/"


class _Hashes(Struct, frozen=True):
    sha256: str = ""


class IndexFile(Struct, frozen=True):
    """One file of a project on the index (PEP 691, PEP 700)."""

    filename: str
    url: str
    hashes: _Hashes = _Hashes()
    size: int = 0  # bytes; 0 if the index does not say
    upload_time: str = field(default="", name="upload-time")  # ISO 8601, UTC


class _Project(Struct, frozen=True):
    files: list[IndexFile]


def listing(project: str) -> list[IndexFile]:
    """The index's files of a project, as PEP 691 JSON.

    Raises:
        ArtefactError: the index does not answer.
    """
    limits = http.HttpLimits(INDEX_SECONDS, INDEX_BYTES, redirects=REGISTRY_REDIRECTS)
    try:
        accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
        place = http.address(project + "/", url()).geturl()
        answer = http.ask("GET", place, limits, headers=accept)
        why = answer.cut or ("" if answer.status == 200 else f"status {answer.status}")
    except http.NoHttpAnswer as error:
        why = str(error)
    if why:
        raise ArtefactError(
            f"the package index does not list {project}: {why}",
            remedy="check the network and the index settings (UV_DEFAULT_INDEX, PIP_INDEX_URL)",
        )
    return reading.json(answer.content, _Project, "the package index", ArtefactError).files


def wheel_size(project: str, version: str, platform: str) -> int:
    """Bytes of a version's largest wheel for a platform; 0 if the index lists none.

    Raises:
        ArtefactError: the index does not answer.
    """
    machine = PLATFORMS[platform].machine
    name = project.replace("-", "_").replace(".", "_").lower()
    return max(
        (
            entry.size
            for entry in listing(project)
            if re.sub(r"[-.]", "_", entry.filename.lower()).startswith(
                f"{name}_{re.sub(r'[-.]', '_', version)}_"
            )
            and entry.filename.endswith((f"{machine}.whl", "any.whl"))
        ),
        default=0,
    )


def newest() -> str:
    """The newest release of vLLM that the index has; pre-releases do not count.

    Raises:
        ArtefactError: the index does not answer.
    """
    from packaging.version import Version

    name = re.compile(r"vllm-([0-9]{1,6}(?:\.[0-9]{1,6})*)\.tar\.gz")
    found = [Version(m[1]) for e in listing("vllm") if (m := name.fullmatch(e.filename))]
    if not found:
        raise ArtefactError("the package index has no vLLM", rule="a file vllm-VERSION.tar.gz")
    return str(max(found))
