"""Downloads a checkpoint from a Hugging Face hub: resumable, every file's hash looked at."""

from __future__ import annotations

import fnmatch
import re
import shutil
from pathlib import Path, PurePosixPath

from fp4forge.core import files, reading
from fp4forge.core.errors import ArtefactError, CheckpointError, DiskError, UsageError
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
# Other formats of the same weights, which no server here reads.
IGNORED = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5"]


def is_name(text: str) -> bool:
    """Whether a text can be a repository's name on a hub."""
    return bool(_NAME.fullmatch(text))


def fetch(repository: str, folder: Path, revision: str, report: Progress) -> str:
    """Downloads a repository into a folder; what is there already is kept.

    Args:
        repository: OWNER/NAME; the hub is HF_ENDPOINT's, the token HF_TOKEN's.
        folder: where to.
        revision: branch, tag or commit.
        report: called with progress.

    Returns:
        The commit that was downloaded.

    Raises:
        UsageError: not a repository's name.
        CheckpointError: the hub does not have it, refuses, or went away; running again resumes.
        DiskError: the folder's disk does not hold it; nothing was downloaded.
        ArtefactError: a file is not the one that the hub recorded; it was removed.
    """
    if not is_name(repository):
        raise UsageError(
            f"{shown(repository, 200)!r} is not a repository", rule="OWNER/NAME on the hub"
        )
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        commit = str(info.sha)
        size = sum(entry.size or 0 for entry in info.siblings or [])
        report(f"{repository} at {commit[:12]}: {size / 1e9:.1f} GB")
        _check_space(folder, {entry.rfilename: entry.size or 0 for entry in info.siblings or []})
        snapshot_download(repository, revision=commit, local_dir=folder, ignore_patterns=IGNORED)
    except DiskError:
        raise
    except Exception as error:  # besides its own, it lets its HTTP library's errors through
        said = shown(error, 200) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise CheckpointError(
                f"{repository}: {said}",
                rule="the hub's certificate must be one that this machine trusts",
                remedy="behind a proxy with its own certificate: SSL_CERT_FILE=/path/ca.pem;"
                " running again does not help",
            ) from None
        raise CheckpointError(
            f"{repository}: {said}",
            rule="HF_ENDPOINT names the hub, HF_TOKEN opens gated repositories",
            remedy="running again resumes where it stopped",
        ) from None
    for entry in info.siblings or []:
        name = PurePosixPath(entry.rfilename)
        if name.is_absolute() or ".." in name.parts:
            raise ArtefactError(
                f"{repository} names a file {shown(entry.rfilename, 200)!r}",
                rule="files of a repository lie in its folder",
                remedy="do not use it",
            )
        file = folder / name
        if entry.lfs is None or not file.is_file():
            continue
        report(f"SHA-256 of {entry.rfilename}")
        found = files.sha256(file)
        if found != entry.lfs.sha256:
            file.unlink()
            raise ArtefactError(
                f"{file.name}: SHA-256 {found[:12]}, the hub recorded {entry.lfs.sha256[:12]}",
                remedy="it was removed; running again fetches it anew",
            )
    return commit


def _check_space(folder: Path, sizes: dict[str, int]) -> None:
    """Refuses a download that the disk does not hold, but for what is there already."""
    missing = sum(
        size
        for name, size in sizes.items()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in IGNORED)
        and not (reading.is_file(folder / name) and (folder / name).stat().st_size == size)
    )
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if missing > free:
        raise DiskError(
            f"{place} has {free / 1e9:.1f} GB free",
            rule=f"{missing / 1e9:.1f} GB are to be downloaded",
            remedy="free some, or give another folder",
        )
