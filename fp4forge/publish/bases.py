"""Gives the engine a base image: pulled from a hub, or made here with debootstrap."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from fp4forge.core.errors import BaseImageError, ToolError
from fp4forge.core.limits import LOAD_SECONDS, REGISTRY_SECONDS
from fp4forge.core.platform import PLATFORMS
from fp4forge.core.text import shown
from fp4forge.inputs.bases import CLEAN, EPOCH, Base, names, table
from fp4forge.kernels.base import Progress
from fp4forge.oci import process


def present(base: Base, platform: str) -> bool:
    """Whether the engine has the base already."""
    line = ["docker", "image", "inspect", base.reference(platform)]
    if shutil.which("docker") is None:
        return False
    return process.run(line, kind=BaseImageError).returncode == 0


def ensure(base: Base, platform: str, report: Progress) -> str:
    """Makes sure that the engine or its registry has the base; returns its reference.

    Raises:
        BaseImageError: neither the engine nor the hub has it, or debootstrap failed.
        ToolError: debootstrap is not installed.
    """
    reference = base.reference(platform)
    if present(base, platform):
        return reference
    if base.suite:
        _bootstrap(base, platform, reference, report)
        return reference
    try:
        line = ["docker", "buildx", "imagetools", "inspect", "--raw", reference]
        probe = process.run(line, REGISTRY_SECONDS, BaseImageError)
        reason = shown(probe.stderr.strip().rpartition("\n")[2], 300)
        if probe.returncode == 0:
            return reference
    except BaseImageError as error:
        reason = error.message
    local = [name for name in names() if table()[name].suite]
    raise BaseImageError(
        f"the base image {reference} cannot be had: {reason}",
        rule="a base comes from a registry that answers, or is made on this machine",
        remedy=f"--base {local[0]} (debootstrap, needs only Debian's packages),"
        " or 'docker pull' it where a mirror is configured",
    )


def _mirror() -> str:
    """The mirror this machine's apt uses, without credentials; empty for debootstrap's default."""
    line = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    targets = process.run(line, kind=BaseImageError)
    for uri in targets.stdout.split():
        if re.fullmatch(r"https?://[^@\s]+/debian/?", uri):
            return uri
    return ""


def _bootstrap(base: Base, platform: str, reference: str, report: Progress) -> None:
    if shutil.which("debootstrap") is None:
        raise ToolError("debootstrap is not installed", remedy="run make setup")
    if os.geteuid() != 0:
        raise BaseImageError(
            "debootstrap needs root", remedy="run as root, or use --base " + names()[0]
        )
    with tempfile.TemporaryDirectory(prefix="fp4forge-base-") as folder:
        root = Path(folder) / "root"
        command = ["debootstrap", "--variant=minbase", f"--arch={PLATFORMS[platform].debian}"]
        command += [base.suite, str(root), *filter(None, [_mirror()])]
        last = ""
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"SOURCE_DATEEPOCH": EPOCH},  # read by passwd's tools
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.strip()
                report(f"debootstrap {last}")
        if process.returncode != 0:
            raise BaseImageError(
                f"debootstrap {base.suite} for {platform} failed: {shown(last, 300)}",
                rule="Debian's package mirror must be reachable",
            )
        for pattern in CLEAN:
            for path in root.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        import_folder(root, platform, reference)


def import_folder(root: Path, platform: str, reference: str) -> None:
    """Gives the engine a folder as an image of one layer.

    ``docker import`` would put the present time into the image's history, and so into that of every
    image on top: the same inputs would give another digest on each machine. The format is that of
    ``docker save`` (image specification v1.2).

    Args:
        root: the image's "/"; layer and configuration are written beside it.

    Raises:
        BaseImageError: it cannot be packed, or the engine does not take it.
    """
    layer = root.with_name("layer.tar")
    order = ["--sort=name", "--numeric-owner", "--clamp-mtime", f"--mtime=@{EPOCH}"]
    line = ["tar", *order, "-C", str(root), "-cf", str(layer), "."]
    packed = process.run(line, LOAD_SECONDS, BaseImageError)
    if packed.returncode != 0:
        raise BaseImageError(
            f"the base cannot be packed into {layer}: {shown(packed.stderr, 300)}",
            rule="it needs half a gigabyte there",
            remedy="make room, or name another folder with TMPDIR",
        )
    with layer.open("rb") as file:
        diff_id = hashlib.file_digest(file, "sha256").hexdigest()
    created = datetime.fromtimestamp(int(EPOCH), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    system, architecture = platform.split("/")
    config = {
        "architecture": architecture, "os": system, "created": created,
        "config": {"Cmd": ["bash"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "history": [{"created": created, "comment": "debootstrap"}],
    }  # fmt: skip
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": [layer.name]}]
    parts = {"config.json": config, "manifest.json": manifest}
    for name, content in parts.items():
        root.with_name(name).write_text(json.dumps(content))
    files = [*parts, layer.name]
    with subprocess.Popen(
        ["tar", "-C", str(root.parent), "-c", *files], stdout=subprocess.PIPE
    ) as archive:
        loaded = subprocess.run(
            ["docker", "load", "--quiet"], stdin=archive.stdout, capture_output=True
        )
    if loaded.returncode != 0:
        said = shown(loaded.stderr.decode(errors="replace"), 300)
        raise BaseImageError(f"docker load failed: {said}")
