"""Base images: one from a hub, or one made here with debootstrap."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fp4forge import registry
from fp4forge.console import Report
from fp4forge.errors import BaseImageError, ForgeError, ToolError, UsageError
from fp4forge.paths import RELEASES

DEBIAN_ARCH = {"linux/amd64": "amd64", "linux/arm64": "arm64"}


@dataclass(frozen=True)
class Base:
    """A base image and the Python that its distribution brings."""

    name: str
    python: str
    image: str = ""  # reference on a hub, with its digest where a lock has it
    suite: str = ""  # debootstrap suite, for a base made here

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name)

    def reference(self, platform: str) -> str:
        """What FROM names for a platform."""
        if self.suite:
            arch = DEBIAN_ARCH[platform]
            return f"fp4forge.local/bootstrap:{self.suite}-{arch}-{_recipe(self.suite)}"
        return self.image


def _recipe(suite: str) -> str:
    """Short hash of how a base is made: a changed recipe gives another base."""
    return hashlib.sha256(f"{suite} minbase {_CLEAN} {_EPOCH} loaded".encode()).hexdigest()[:8]


@cache
def _table() -> dict[str, Any]:
    import yaml

    text = (RELEASES / "bases.yaml").read_text()
    table: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)["bases"]
    return table


def names() -> tuple[str, ...]:
    """Names that ``--base`` takes."""
    return tuple(_table())


def load(name: str) -> Base:
    """The base that ``--base`` names.

    Raises:
        UsageError: there is no such base.
    """
    if name not in _table():
        raise UsageError(
            f"--base {name!r} does not exist",
            rule="one of " + ", ".join(names()),
            remedy="add it to releases/bases.yaml",
        )
    entry = _table()[name]
    image = entry.get("image", "")
    if entry.get("digest"):
        image += "@" + entry["digest"]
    return Base(name, entry["python"], image, entry.get("suite", ""))


def pin() -> dict[str, str]:
    """Writes the digest of every hub base whose registry answers into releases/bases.yaml.

    Returns:
        For each hub base what came of it; a digest that cannot be read is left as it is, never
        invented.
    """
    path = RELEASES / "bases.yaml"
    said: dict[str, str] = {}
    for name, entry in _table().items():
        if not entry.get("image"):
            continue
        repository, _, tag = entry["image"].rpartition(":")
        try:
            found = registry.resolve(repository, tag)
        except (ForgeError, subprocess.TimeoutExpired, FileNotFoundError) as error:
            said[name] = f"not pinned: {getattr(error, 'message', error)}"
            continue
        if found is None:
            said[name] = f"not pinned: the registry has no {entry['image']}"
            continue
        digest = found[0]
        pattern = rf'(?m)(^  {re.escape(name)}:\n(?:    .*\n)*?    digest: )".*"'
        path.write_text(re.sub(pattern, rf'\1"{digest}"', path.read_text()))
        said[name] = digest
    return said


# No file of a base is newer (2026-01-01, UTC): the same packages give the same layer.
_EPOCH = "1767225600"

# Files that differ from run to run and that no image needs.
_CLEAN = (
    "var/cache/apt/archives/*.deb",
    "var/cache/apt/*.bin",
    "var/lib/apt/lists/*_*",
    "var/log/*.log",
    "var/log/apt/*",
    "var/cache/ldconfig/aux-cache",
    "etc/machine-id",
    "dev/*",
)


def present(base: Base, platform: str) -> bool:
    """Whether the engine has the base already."""
    line = ["docker", "image", "inspect", base.reference(platform)]
    if shutil.which("docker") is None:
        return False
    return subprocess.run(line, capture_output=True).returncode == 0


def ensure(base: Base, platform: str, report: Report) -> str:
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
        probe = subprocess.run(
            ["docker", "buildx", "imagetools", "inspect", "--raw", reference],
            capture_output=True,
            text=True,
            timeout=60,
        )
        reason = probe.stderr.strip().splitlines()[-1] if probe.stderr.strip() else ""
        if probe.returncode == 0:
            return reference
    except subprocess.TimeoutExpired:
        reason = "no answer within 60 s"
    local = [name for name in names() if _table()[name].get("suite")]
    raise BaseImageError(
        f"the base image {reference} cannot be had: {reason}",
        rule="a base comes from a registry that answers, or is made on this machine",
        remedy=f"--base {local[0]} (debootstrap, needs only Debian's packages),"
        " or 'docker pull' it where a mirror is configured",
    )


def _mirror() -> str:
    """The mirror this machine's apt uses, without credentials; empty for debootstrap's default."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
    )
    for uri in targets.stdout.split():
        if re.fullmatch(r"https?://[^@\s]+/debian/?", uri):
            return uri
    return ""


def _bootstrap(base: Base, platform: str, reference: str, report: Report) -> None:
    if shutil.which("debootstrap") is None:
        raise ToolError("debootstrap is not installed", remedy="run make setup")
    if os.geteuid() != 0:
        raise BaseImageError(
            "debootstrap needs root", remedy="run as root, or use --base " + names()[0]
        )
    with tempfile.TemporaryDirectory(prefix="fp4forge-base-") as folder:
        root = Path(folder) / "root"
        command = ["debootstrap", "--variant=minbase", f"--arch={DEBIAN_ARCH[platform]}"]
        command += [base.suite, str(root), *filter(None, [_mirror()])]
        last = ""
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"SOURCE_DATE_EPOCH": _EPOCH},  # read by passwd's tools
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.strip()
                report(f"debootstrap {last}")
        if process.returncode != 0:
            raise BaseImageError(
                f"debootstrap {base.suite} for {platform} failed: {last}",
                rule="Debian's package mirror must be reachable",
            )
        for pattern in _CLEAN:
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
    order = ["--sort=name", "--numeric-owner", "--clamp-mtime", f"--mtime=@{_EPOCH}"]
    line = ["tar", *order, "-C", str(root), "-cf", str(layer), "."]
    packed = subprocess.run(line, capture_output=True, text=True)
    if packed.returncode != 0:
        raise BaseImageError(
            f"the base cannot be packed into {layer}: {packed.stderr.strip()}",
            rule="it needs half a gigabyte there",
            remedy="make room, or name another folder with TMPDIR",
        )
    with layer.open("rb") as file:
        diff_id = hashlib.file_digest(file, "sha256").hexdigest()
    created = datetime.fromtimestamp(int(_EPOCH), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
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
            ["docker", "load", "--quiet"], stdin=archive.stdout, capture_output=True, text=True
        )
    if loaded.returncode != 0:
        raise BaseImageError(f"docker load failed: {loaded.stderr.strip()}")
