"""Gives the engine a base image: pulled from a hub, or made here with mmdebstrap."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from fp4forge.core import files
from fp4forge.core.errors import BaseImageError, ToolError, UsageError
from fp4forge.core.limits import COPY_SILENCE_SECONDS
from fp4forge.core.platform import PLATFORMS
from fp4forge.core.text import shown
from fp4forge.inputs.bases import (
    EPOCH,
    KEYRINGS,
    MOUNT_POINT,
    Base,
    bootstrap_line,
    names,
    table,
)
from fp4forge.kernels.base import Progress
from fp4forge.oci import copying, engine, process


def ensure(base: Base, platform: str, report: Progress) -> str:
    """Makes sure that the engine or its registry has the base; returns its reference.

    Raises:
        BaseImageError: neither the engine nor the hub has it, or mmdebstrap failed.
        ToolError: mmdebstrap is not installed.
    """
    reference = base.reference(platform)
    if engine.present(reference):
        return reference
    if base.suite:
        _bootstrap_base(base, platform, reference, report)
        return reference
    reason = copying.missing(reference)
    if not reason:
        return reference
    local = [name for name in names() if table()[name].suite]
    raise BaseImageError(
        f"the base image {reference} cannot be obtained: {reason}",
        rule="a base comes from a registry that answers, or is made on this machine",
        remedy=f"--base {local[0]} (mmdebstrap, needs only Debian's packages),"
        " or 'docker pull' it from a configured mirror",
    )


def _debian_mirror() -> str:
    """The Debian mirror to use: FP4FORGE_DEBIAN_MIRROR, or that of this machine's apt.

    One with a password in it is not taken: it would stay in the image.

    Raises:
        UsageError: FP4FORGE_DEBIAN_MIRROR is not an address.
        BaseImageError: apt has no such mirror.
    """
    address = r"https?://[A-Za-z0-9.:\[\]_~%/-]+"
    given = os.environ.get("FP4FORGE_DEBIAN_MIRROR", "")
    if given:
        if not re.fullmatch(address, given):
            raise UsageError(
                f"FP4FORGE_DEBIAN_MIRROR is {shown(given, 80)!r}",
                rule="http:// or https://, without a user or password",
            )
        return given.rstrip("/")
    lists = process.run(["apt-get", "update", "--print-uris"], kind=BaseImageError).stdout
    found = re.search(rf"^'({address}/debian)/+dists/", lists, re.M)
    if not found:
        raise BaseImageError(
            "apt's sources on this machine have no Debian mirror",
            rule="a base is made from one whose address ends in /debian",
            remedy="name one with FP4FORGE_DEBIAN_MIRROR=ADDRESS, or use --base " + names()[0],
        )
    return found[1]


def _bootstrap_base(base: Base, platform: str, reference: str, report: Progress) -> None:
    if shutil.which("mmdebstrap") is None:
        raise ToolError("mmdebstrap is not installed", remedy="run make setup")
    if os.geteuid() != 0:
        raise BaseImageError(
            "mmdebstrap needs root here",
            rule="it makes the files of root and of system users",
            remedy="run as root, or use --base " + names()[0],
        )
    keyring = KEYRINGS / base.keyring
    if not keyring.is_file():
        raise ToolError(
            f"{keyring} is missing",
            rule=f"it signs the packages of {base.suite}",
            remedy="run make setup",
        )
    errors: list[str] = []

    def each(line: str) -> None:
        report(f"mmdebstrap {line.strip()}")
        if line.startswith("E: ") and len(errors) < 3:
            errors.append(line[3:].strip())

    with tempfile.TemporaryDirectory(prefix="fp4forge-base-") as name:
        layer = Path(name) / "layer.tar"
        line = bootstrap_line(base, PLATFORMS[platform].debian, layer, _debian_mirror())
        code = process.follow(line, each, COPY_SILENCE_SECONDS, BaseImageError)
        if code != 0:
            raise BaseImageError(
                f"mmdebstrap {base.suite} for {platform} failed: " + shown("; ".join(errors), 500),
                rule=f"Debian's mirror must be reachable, and signed by a key of {keyring.name}",
                remedy="check the mirror in apt's sources, and the disk",
            )
        _add_mount_point(layer)
        import_layer(layer, platform, reference)


def _add_mount_point(layer: Path) -> None:
    """Adds the folder that mmdebstrap leaves out together with the devices in it."""
    folder = tarfile.TarInfo(f"./{MOUNT_POINT}/")
    folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, int(EPOCH)
    with tarfile.open(layer, "a") as archive:
        archive.addfile(folder)


def import_layer(layer: Path, platform: str, reference: str) -> None:
    """Gives the engine a layer as an image.

    ``docker import`` would put the present time into the image's history, and so into that of every
    image on top: the same inputs would give another digest on each machine. The format is that of
    ``docker save`` (image specification v1.2).

    Args:
        layer: uncompressed archive of the image's "/"; the image is written beside it.
        platform: os/architecture.
        reference: the image's name in the engine.

    Raises:
        BaseImageError: the engine does not take it.
    """
    diff_id = files.sha256(layer)
    created = datetime.fromtimestamp(int(EPOCH), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    system, architecture = platform.split("/")
    config = {
        "architecture": architecture,
        "os": system,
        "created": created,
        "config": {"Cmd": ["bash"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "history": [{"created": created, "comment": "mmdebstrap"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": [layer.name]}]
    image = layer.with_name("image.tar")
    with tarfile.open(image, "w") as archive:
        for name, content in (("config.json", config), ("manifest.json", manifest)):
            path = layer.with_name(name)
            path.write_text(json.dumps(content))
            archive.add(path, name)
        archive.add(layer, layer.name)
    engine.load(image, BaseImageError)
