"""Compile caches as one more layer of a verified image, under a tag of their own.

The new image is the verified one's manifest and configuration with one layer and one label added;
its layers are not fetched, for the repository has them. What the layer holds is judged by the
program that will seed it (``image/runtime/opt/fp4forge/warm.py``).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import tarfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from fp4forge.checks import credentials
from fp4forge.core import reading, scratch
from fp4forge.core.errors import ArtefactError, PlatformError, RegistryError, UsageError
from fp4forge.core.files import sha256
from fp4forge.core.paths import STATE
from fp4forge.core.text import shown
from fp4forge.image.runtime.opt.fp4forge import warm
from fp4forge.kernels.base import Progress
from fp4forge.oci import acquire, copying, registry
from fp4forge.oci.cosign import Signer
from fp4forge.oci.layout import INDEX, OciLayout, image_index
from fp4forge.plan import tags
from fp4forge.publish import signing, tagging, verified
from fp4forge.serve.settings import CACHE_DIR

LABEL = "io.fp4forge.warm"  # SHA-256 of the layer's archive
FOLDER = f"{acquire.FOLDER}/warm"
PROGRAM = f"{acquire.FOLDER}/warm.py"
FILES = ("cache.tar", "key.json")
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

_NAMES = ("release", "arch", "variant", "plan")
_WORD = re.compile(r"[A-Za-z0-9_.]{1,40}")


class _Settings(Struct, frozen=True):
    Labels: dict[str, str] | None = None


class _Layers(Struct, frozen=True):
    diff_ids: list[str]


class _Shape(Struct, frozen=True):
    """An image's configuration, as far as something is added to it."""

    rootfs: _Layers
    config: _Settings | None = None
    history: list[dict[str, Any]] | None = None

    @property
    def labels(self) -> dict[str, str]:
        return (self.config and self.config.Labels) or {}


@dataclass(frozen=True)
class ColdImage:
    """A verified image of one platform, to which a layer is added."""

    repository: str
    index: str  # the digest that the user's reference names
    manifest: dict[str, Any]
    config: dict[str, Any]

    @property
    def labels(self) -> dict[str, str]:
        """Of its configuration."""
        labels: dict[str, str] = self.config["config"]["Labels"]
        return labels

    @property
    def platform(self) -> str:
        """Such as ``linux/arm64``."""
        return f"{self.config.get('os')}/{self.config.get('architecture')}"

    @property
    def names(self) -> tuple[str, ...]:
        """Release, GPU, variant and plan, as in its tags."""
        return tuple(self.labels[f"io.fp4forge.{name}"] for name in _NAMES)

    @property
    def software(self) -> str:
        """What ``warm.py`` in it finds as its software."""
        release, _, _, plan = self.names
        return f"release {release}, plan {plan}"


@dataclass(frozen=True)
class WarmImage:
    """What was published; sizes in bytes."""

    image: str  # REPOSITORY@DIGEST
    digest: str
    tag: str
    cold: str  # the image without the layer, by digest
    layer_bytes: int
    key: dict[str, Any]


def cold_images(image: str) -> list[ColdImage]:
    """The images, one for each platform, that a reference names.

    Args:
        image: in a registry, by tag or digest.

    Raises:
        UsageError: it is not this project's, or has a warm layer already.
        RegistryError: the registry does not answer, or does not have it.
    """
    repository, index = signing.locate(image)
    named = registry.existing(repository, index)
    several = named.data.manifests is not None
    parts = [registry.existing(repository, entry.digest) for entry in named.data.images]
    return [_cold_image(image, repository, index, p) for p in (parts if several else [named])]


def _cold_image(image: str, repository: str, index: str, found: registry.Manifest) -> ColdImage:
    where = f"manifest {found.digest[:19]}"
    manifest = reading.json(found.content, dict[str, Any], where, RegistryError)
    digest = registry.config_of(repository, found.data).digest
    content = registry.blob(repository, digest, "a configuration")
    where = f"configuration {digest[:19]}"
    config = reading.json(content, dict[str, Any], where, RegistryError)
    labels = reading.json(content, _Shape, where, RegistryError).labels
    if not all(_WORD.fullmatch(labels.get(f"io.fp4forge.{name}", "")) for name in _NAMES):
        raise UsageError(
            f"{image} is not an image of this project", rule="it has the labels of a plan"
        )
    if LABEL in labels:
        raise UsageError(
            f"{image} has a warm layer already",
            rule="one layer of compile caches on a verified image",
            remedy="name the image that it was made from",
        )
    return ColdImage(repository, index, manifest, config)


def on(platform: str, images: list[ColdImage]) -> ColdImage:
    """The image of a platform.

    Raises:
        PlatformError: none is for it.
    """
    found = {cold.platform: cold for cold in images}
    if platform not in found:
        raise PlatformError(
            f"the image is for {', '.join(sorted(found))}, not for {platform}",
            rule="compile caches are collected on the image's platform",
        )
    return found[platform]


def compiled_with(key: dict[str, Any], images: list[ColdImage]) -> ColdImage:
    """The image that compiled the results of a key.

    Raises:
        ArtefactError: none of them did.
    """
    for cold in images:
        if cold.software == key["software"]:
            return cold
    raise ArtefactError(
        f"these compile caches are of {shown(key['software'], 200)}",
        rule="the image is " + ", or ".join(cold.software for cold in images),
        remedy="collect in a container of this image",
    )


def read(folder: Path) -> dict[str, Any]:
    """The key of collected caches, after every file of the archive was looked at.

    Raises:
        ArtefactError: they are damaged, have what is not a compiled result, look like they hold a
            credential, or were in folders that no server of these images has.
    """
    try:
        key = warm.read_key(folder)
        archive = folder / "cache.tar"
        if warm.digest(archive) != key["archive"]:
            raise ArtefactError(
                f"{archive} does not match the SHA-256 in its key",
                remedy="collect the caches once more",
            )
        with tarfile.open(archive, "r:") as tar:
            for member in warm.members(tar):
                content = tar.extractfile(member)
                assert content is not None
                for found in credentials.in_file(member.name, content):
                    raise ArtefactError(
                        f"the compile caches have {found.what}: {found.path}",
                        rule="no credential goes into an image",
                        remedy="replace that credential, and collect with empty caches",
                    )
    except warm.CannotWarm as error:
        raise ArtefactError(str(error), rule=f"the two files of {PROGRAM} collect") from None
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        raise ArtefactError(f"{shown(folder, 300)} cannot be read: {shown(error, 200)}") from None
    if not all(path.startswith(f"{CACHE_DIR}/") for path in key["caches"].values()):
        raise ArtefactError(
            f"these compile caches were in {shown(', '.join(key['caches'].values()), 300)}",
            rule=f"a server's are below {CACHE_DIR}, and results have their folder's path in them",
            remedy="collect in a container of this image",
        )
    return key


def tag(cold: ColdImage, digest: str) -> str:
    """The tag of a warm image, by its manifest's digest."""
    release, arch, variant, plan = cold.names
    return tags.warm(release, arch, variant, plan, digest)


def publish(cold: ColdImage, collected: Path, signer: Signer | None, report: Progress) -> WarmImage:
    """Pushes the image with its layer by digest, reads it back, and only then names it.

    Args:
        cold: the verified image.
        collected: folder with the two files; copied before they are looked at.
        signer: who signs index and manifest; None leaves them unsigned.
        report: called with progress.

    Raises:
        ArtefactError: the collected files do not belong into this image.
        TagError: the tag names another image.
        RegistryError: the registry does not answer, refuses, or keeps other bytes.
    """
    STATE.mkdir(parents=True, exist_ok=True)
    with scratch.folder(STATE, ".warm.") as place:
        files = place / "files"
        files.mkdir()
        for name in FILES:
            report(f"reading {name}")
            source = reading.opened(collected / name, ArtefactError)
            with source, (files / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        key = read(files)
        compiled_with(key, [cold])
        layout = OciLayout(place / "layout")
        (layout.folder / "blobs/sha256").mkdir(parents=True)
        (layout.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        report("packing the layer")
        layer, diff_id = _pack(files, layout)
        made = with_layer(cold, layer, diff_id, key["archive"])
        image, index = _store(layout, cold, made)
        layout.name_only(index)
        copying.push(layout.folder, cold.repository, index, report)
    _check_added(cold, index, image, layer["digest"])
    if signer:
        signing.sign(cold.repository, index, signer, report, {})
    name = tag(cold, image)
    with tagging.turn(cold.repository):
        tagging.give(
            cold.repository,
            index,
            (name,),
            report,
            fixed=name,
            verdict=f"{cold.index} and a layer of compile caches",
            by=signer,
        )
    if verified.here(cold.repository, cold.index):
        verified.record(cold.repository, index)
    return WarmImage(
        image=f"{cold.repository}@{index}",
        digest=index,
        tag=name,
        cold=f"{cold.repository}@{cold.index}",
        layer_bytes=layer["size"],
        key=key,
    )


def with_layer(
    cold: ColdImage, layer: dict[str, Any], diff_id: str, archive: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and configuration of a verified image with one more layer and one more label.

    Args:
        cold: the verified image.
        layer: its descriptor.
        diff_id: digest of the layer before it is compressed.
        archive: SHA-256 of the archive in it, for the label.
    """
    config = deepcopy(cold.config)
    config["config"]["Labels"][LABEL] = archive
    config["rootfs"]["diff_ids"].append(diff_id)
    if config.get("history"):
        config["history"].append({"created": "1970-01-01T00:00:00Z", "created_by": "build.py warm"})
    manifest = deepcopy(cold.manifest)
    manifest.setdefault("mediaType", _MANIFEST)
    manifest["layers"].append(layer)
    return manifest, config


def without_layer(
    manifest: dict[str, Any], config: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The reverse: the layers below, and the configuration, of an image with a warm layer."""
    config = deepcopy(config)
    config["config"]["Labels"].pop(LABEL)
    config["rootfs"]["diff_ids"].pop()
    if config.get("history"):
        config["history"].pop()
    return manifest["layers"][:-1], config


def _pack(files: Path, layout: OciLayout) -> tuple[dict[str, Any], str]:
    """Writes the layer into a layout: its descriptor, and the digest before compression."""
    partial = layout.folder / "layer"
    with partial.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        plain = _Hashing(packed)
        with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            folder = tarfile.TarInfo(FOLDER.lstrip("/"))
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
            for name in FILES:
                member = tarfile.TarInfo(f"{FOLDER.lstrip('/')}/{name}")
                member.size, member.mode = (files / name).stat().st_size, 0o644
                with (files / name).open("rb") as file:
                    tar.addfile(member, file)
    return _keep(layout, partial, _LAYER), f"sha256:{plain.hash.hexdigest()}"


class _Hashing:
    """Writes through, and hashes."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        return self.file.write(content)


def _keep(layout: OciLayout, path: Path, media_type: str) -> dict[str, Any]:
    """Moves a file among a layout's blobs; its descriptor."""
    digest = "sha256:" + sha256(path)
    path.rename(layout.path(digest))
    size = layout.path(digest).stat().st_size
    return {"mediaType": media_type, "digest": digest, "size": size}


def _store(
    layout: OciLayout, cold: ColdImage, made: tuple[dict[str, Any], dict[str, Any]]
) -> tuple[str, str]:
    """Writes configuration, manifest and index into a layout; digests of the last two."""

    def blob(value: dict[str, Any], media_type: str) -> dict[str, Any]:
        path = layout.folder / "partial"
        path.write_text(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
        return _keep(layout, path, media_type)

    manifest, config = made
    kind = cold.manifest["config"].get("mediaType", "application/vnd.oci.image.config.v1+json")
    manifest["config"] = {**cold.manifest["config"], **blob(config, kind)}
    image = blob(manifest, manifest["mediaType"])
    parts = ("os", "architecture", "variant")
    entry = {**image, "platform": {name: config[name] for name in parts if config.get(name)}}
    return image["digest"], blob(image_index([entry]), INDEX)["digest"]


def _check_added(cold: ColdImage, index: str, image: str, layer: str) -> None:
    """Reads the pushed image back: the verified image's layers and configuration, and one layer.

    Raises:
        RegistryError: something else differs, or a blob is missing.
    """
    repository = cold.repository
    registry.check_whole(repository, index)
    found = registry.existing(repository, image)
    manifest = reading.json(found.content, dict[str, Any], "the new manifest", RegistryError)
    content = registry.blob(repository, manifest["config"]["digest"], "the new configuration")
    config = reading.json(content, dict[str, Any], "the new configuration", RegistryError)
    same = without_layer(manifest, config) == (cold.manifest["layers"], cold.config)
    if not same or manifest["layers"][-1]["digest"] != layer:
        raise RegistryError(
            f"{repository}@{index[:19]} differs from {cold.index[:19]} in more than its last layer",
            rule="a warm image is the verified one, one layer and one label",
            remedy="no tag was moved; please report it",
        )
