"""Fetches pinned artefacts (sdists, wheels) from the package index and checks their SHA-256."""

from __future__ import annotations

import re
import tarfile
import time
from pathlib import Path

from fp4forge.core import files, http, paths, scratch
from fp4forge.core.errors import ArtefactError
from fp4forge.core.limits import FETCH_SECONDS, FETCHED_BYTES, INDEX_SECONDS
from fp4forge.inputs import release
from fp4forge.inputs.release import Artefact
from fp4forge.maintain import index


def sdist(vllm: str) -> Artefact:
    """vLLM's sdist of any version, with the hash that the index gives; to read, not to build.

    Raises:
        ArtefactError: the index has no such version.
    """
    if vllm in release.names():
        return release.load(vllm).sdist
    name = f"vllm-{vllm}.tar.gz"
    for entry in index.listing("vllm"):
        if entry.filename == name:
            return Artefact(name, entry.hashes.sha256)
    raise ArtefactError(f"the package index has no vLLM {vllm}", rule=f"a file {name}")


def fetch(artefact: Artefact) -> Path:
    """A pinned file, from the cache under ``.build/sources`` or from the index.

    Raises:
        ArtefactError: the index does not list the file, does not answer, or the bytes have
            another SHA-256 than the pinned one; nothing is kept then.
    """
    path = paths.STATE / "sources" / artefact.file
    if path.is_file() and files.sha256(path) == artefact.sha256:
        return path
    import requests
    import urllib3

    project = re.split(r"-[0-9]", artefact.file)[0].replace("_", "-")
    urls = {entry.filename: entry.url for entry in index.listing(project)}
    if artefact.file not in urls:
        raise ArtefactError(f"the package index does not list {artefact.file}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch.folder(path.parent, ".fetch.") as folder:
        partial = folder / artefact.file
        until = time.monotonic() + FETCH_SECONDS
        try:
            place = http.address(urls[artefact.file], f"{index.url()}{project}/").geturl()
            with requests.get(place, stream=True, timeout=INDEX_SECONDS) as answer:
                answer.raise_for_status()
                with partial.open("wb") as file:
                    # read1 returns what has arrived: a byte now and then must not last for ever.
                    while chunk := answer.raw.read1(1 << 20):
                        file.write(chunk)
                        if time.monotonic() > until:
                            raise ArtefactError(
                                f"{artefact.file} does not arrive",
                                rule=f"a file of the index within {FETCH_SECONDS} s",
                            )
                        if file.tell() > FETCHED_BYTES:
                            raise ArtefactError(
                                f"{artefact.file} is too large",
                                rule=f"at most {FETCHED_BYTES:,} bytes are fetched",
                            )
        except http.NoHttpAnswer as error:
            raise ArtefactError(f"the package index: {error}") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise ArtefactError(
                f"{artefact.file} cannot be fetched: {type(error).__name__}",
                remedy="check the network; running again starts over with this file",
            ) from None
        found = files.sha256(partial)
        if found != artefact.sha256:
            raise ArtefactError(
                f"{artefact.file} has SHA-256 {found[:16]}…, pinned is {artefact.sha256[:16]}…",
                rule="an artefact is used only with the pinned hash",
                remedy="do not install it; find out why the index changed",
            )
        partial.replace(path)
    return path


def source_tree(vllm: str) -> Path:
    """The unpacked sdist of a vLLM version.

    Raises:
        ArtefactError: it cannot be obtained, or is not the pinned one.
    """
    return tree_of(sdist(vllm))


def tree_of(artefact: Artefact) -> Path:
    """The unpacked sdist that an artefact pins.

    Raises:
        ArtefactError: it cannot be obtained, or is not the pinned one.
    """
    folder = paths.STATE / "sources" / artefact.file.removesuffix(".tar.gz")
    if not folder.is_dir():
        with (
            scratch.folder(fetch(artefact).parent, ".unpack.") as partial,
            tarfile.open(fetch(artefact)) as archive,
        ):
            archive.extractall(partial)  # noqa: S202 - its SHA-256 is the pinned one
            (partial / folder.name).rename(folder)
    return folder
