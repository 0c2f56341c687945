"""Compile caches for a warm first start: packed on one machine, seeded on another.

Standard library only: the image's own Python runs it, or any other on a machine with a GPU.
After a server's first start and answer, ``collect`` packs what torch.compile, Triton, FlashInfer
and DeepGEMM compiled; before another server's first start, ``seed`` copies it into the caches::

    python3 warm.py collect CACHES LAYER --model MODEL
    python3 warm.py seed    CACHES LAYER --model MODEL

CACHES is the folder of caches (``~/.cache``), MODEL the model's folder as vLLM is given it, LAYER a
new folder for two files: ``cache.tar`` and ``key.json``. The key is GPU, driver, software, the
model's configuration and the cache folders; ``seed`` copies nothing if one of them differs. The
folders are part of it because Triton and ninja record absolute paths. Servers must write their
caches there, and the same variables are read here::

    export VLLM_CACHE_ROOT=CACHES/vllm TRITON_CACHE_DIR=CACHES/triton
    export FLASHINFER_WORKSPACE_BASE=...   # if CACHES is not ~/.cache; its .cache/flashinfer counts

Exit codes: 0 done; 65 nothing to pack, or an unsound layer; 69 no GPU; 74 a file or folder cannot
be read or written; 78 the key differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

PLAN = Path("/opt/fp4forge/plan.json")
FORMAT = 1
# What is compared, and how it is called; `key` says where each comes from.
FIELDS = {
    "gpu": "GPU",
    "capability": "compute capability",
    "driver": "driver",
    "software": "software",
    "config": "SHA-256 of the model's config.json",
    "quantisation": "SHA-256 of the model's hf_quant_config.json",
    "caches": "cache folders",
}
# Folders of compiled results, as named by vLLM (envs.py, compilation/backends.py,
# utils/deep_gemm.py, warmup/flashinfer_autotune_cache.py), FlashInfer (jit/env.py,
# autotune_cache.py) and Triton. Models, downloads and assets are in others.
RESULTS = re.compile(
    r"(vllm/(torch_compile_cache|deep_gemm|flashinfer_autotune_cache|modelinfos)"
    r"|triton|inductor|humming"
    r"|flashinfer/(autotune|[^/]+/[^/]+/(cached_ops|generated|autotune)))/.+"
)
# vLLM writes its environment into cache_key_factors.json, some releases the API's key included.
LEFT_OUT = re.compile(r"cache_key_factors\.json|.*\.(lock|log)|tmp\.pid_.*|\.fp4forge-.*")
FILES = 200_000
BYTES = 8 << 30
KEY_BYTES = 65536
SPARE_BYTES = 1 << 30  # of disk, left to the server
SMI_SECONDS = 10
TEMPORARY = ".fp4forge-"
ABANDONED_SECONDS = 3600  # what is temporary and older was left by a killed run

UNSOUND = 65  # EX_DATAERR of sysexits.h
NO_GPU = 69  # EX_UNAVAILABLE
NO_ACCESS = 74  # EX_IOERR
DIFFERS = 78  # EX_CONFIG


class CannotWarm(Exception):
    """Why nothing was packed or seeded, as one line; ends the program with an exit code."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


def folders(caches: Path) -> dict[str, Path]:
    """Where each program keeps what it compiled, by the first part of a name in the archive."""
    base = os.environ.get("FLASHINFER_WORKSPACE_BASE")
    chosen = {
        # vLLM alone takes ~ for the home folder (envs.py).
        "vllm": Path(os.environ.get("VLLM_CACHE_ROOT") or caches / "vllm").expanduser(),
        "triton": os.environ.get("TRITON_CACHE_DIR") or caches / "triton",
        "inductor": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or caches / "torchinductor",
        "flashinfer": Path(base, ".cache/flashinfer") if base else caches / "flashinfer",
        "humming": os.environ.get("HUMMING_CACHE_DIR") or caches / "humming",
    }
    return {name: Path(folder).absolute() for name, folder in chosen.items()}


def key(model: str) -> dict[str, Any]:
    """What decides whether compiled results fit this machine, software and model.

    Raises:
        CannotWarm: no GPU is visible, or the model's configuration cannot be read.
    """
    line = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(line, capture_output=True, timeout=SMI_SECONDS, check=False)
        text = done.stdout.decode(errors="replace") if done.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    rows = [row.rsplit(", ", 2) for row in text.splitlines()]
    if not rows or any(len(row) != 3 for row in rows):
        raise CannotWarm(
            NO_GPU,
            "nvidia-smi reports no GPU: compiled results belong to one GPU and driver. Run this"
            " where the server runs, and see that nvidia-smi works there",
        )
    names, capabilities, drivers = (sorted(set(column)) for column in zip(*rows, strict=True))
    return {
        "gpu": ", ".join(names),
        "capability": ", ".join(capabilities),
        "driver": ", ".join(drivers),
        "software": software(),
        "config": digest(Path(model, "config.json")),
        "quantisation": digest(Path(model, "hf_quant_config.json"), needed=False),
    }


def software() -> str:
    """The image's plan; outside an image the installed versions of what compiles."""
    if PLAN.is_file():
        plan = json.loads(PLAN.read_bytes())
        return f"release {plan['release']}, plan {plan['id']}"
    wanted = ("vllm", "torch", "triton", "flashinfer-python")
    found = {
        str(d.metadata["Name"]).lower(): d.version
        for name in wanted
        for d in distributions(name=name)
    }
    if not found:
        raise CannotWarm(
            UNSOUND, "this Python has no vLLM: run this program with the Python that serves"
        )
    return ", ".join(f"{name} {found[name]}" for name in wanted if name in found)


def digest(path: Path, needed: bool = True) -> str:
    """The SHA-256 of a file; empty if it need not be there and is not."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CannotWarm(NO_ACCESS, f"{path} is not a file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        if needed:
            raise CannotWarm(
                NO_ACCESS, f"{path} does not exist: name the model's folder on this machine"
            ) from None
        return ""


def results(name: str, folder: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """The files that were compiled, by name in the archive; links and other things are left."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        inside = f"{name}/{entry.name}"
        if LEFT_OUT.fullmatch(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from results(inside, Path(entry))
        elif entry.is_file(follow_symlinks=False) and RESULTS.fullmatch(inside):
            yield inside, Path(entry), entry.stat(follow_symlinks=False)


def collect(caches: Path, layer: Path, model: str) -> str:
    """Packs the compiled results below ``caches`` into the new folder ``layer``.

    The same caches give the same bytes. Times are kept, in whole seconds: FlashInfer has ninja
    look at its modules at each start, and ninja compiles again if a source is newer than its
    result, or than the time in ninja's log.

    Returns:
        What was packed, as a line.

    Raises:
        CannotWarm: no GPU, nothing to pack, or too much.
    """
    if (
        layer.is_symlink()
        or (layer.exists() and not layer.is_dir())
        or (layer.is_dir() and any(layer.iterdir()))
    ):
        raise CannotWarm(NO_ACCESS, f"{layer} exists already: name a new folder, or an empty one")
    made = key(model)
    where = folders(caches)
    found = [entry for name, folder in where.items() for entry in results(name, folder)]
    size = sum(status.st_size for _, _, status in found)
    if not found:
        raise CannotWarm(
            UNSOUND,
            f"no compiled results below {', '.join(map(str, where.values()))}: start the server"
            " with these cache folders and let it answer once",
        )
    if len(found) > FILES or size > BYTES:
        raise CannotWarm(
            UNSOUND,
            f"{len(found):,} files with {size / 1e9:.1f} GB are too many: at most {FILES:,} files"
            f" with {BYTES / 1e9:.1f} GB are packed. Start with empty cache folders",
        )
    parts = sorted({name.partition("/")[0] for name, _, _ in found})
    parent = layer.absolute().parent
    remove_abandoned(parent)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=parent) as scratch:
        folder = Path(scratch, "layer")
        folder.mkdir()
        archive = folder / "cache.tar"
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            for name, path, status in found:
                member = tarfile.TarInfo(name)
                member.size = status.st_size
                member.mtime = int(status.st_mtime)
                member.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
                with path.open("rb") as file:
                    tar.addfile(member, file)
        made |= {
            "format": FORMAT,
            "caches": {part: str(where[part]) for part in parts},
            "model": model,
            "archive": digest(archive),
        }
        (folder / "key.json").write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
        folder.rename(layer)  # refused if it has files
    return f"{len(found):,} files with {size / 1e6:,.0f} MB of compiled results are in {layer}"


def remove_abandoned(folder: Path) -> None:
    """Removes what killed runs left in a folder."""
    for entry in os.scandir(folder):
        if not entry.name.startswith(TEMPORARY):
            continue
        with contextlib.suppress(OSError):  # another run has removed it meanwhile
            if entry.stat(follow_symlinks=False).st_mtime > time.time() - ABANDONED_SECONDS:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                Path(entry).unlink()


def read_key(layer: Path) -> dict[str, Any]:
    """A layer's key: strings, and the cache folders by the first part of a name.

    Raises:
        CannotWarm: it is damaged.
    """
    try:
        # Without blocking: a pipe without a writer would be waited for.
        handle = os.open(layer / "key.json", os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ValueError
            found = json.loads(file.read(KEY_BYTES + 1)[:KEY_BYTES])
        wanted = {name: found[name] for name in (*FIELDS, "model", "archive")}
        texts = [value for name, value in wanted.items() if name != "caches"]
        texts += [*wanted["caches"], *wanted["caches"].values()]
        if found["format"] != FORMAT or not all(isinstance(text, str) for text in texts):
            raise ValueError
        if not wanted["caches"] or any(".." in text.split("/") for text in texts):
            raise ValueError
        return wanted
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError):
        raise CannotWarm(
            UNSOUND, f"{layer / 'key.json'} is damaged, or of another format"
        ) from None


def members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """An archive's files, after a look at each: plain files with names of compiled results.

    Raises:
        CannotWarm: something else is in it.
    """
    found: dict[str, tarfile.TarInfo] = {}
    size = 0
    for member in tar:
        size += member.size
        parts = member.name.split("/")
        plain = member.type == tarfile.REGTYPE and "\0" not in member.name
        plain = plain and member.size >= 0 and not member.issparse()
        named = RESULTS.fullmatch(member.name) and not {"", ".", ".."} & set(parts)
        if not plain or not named or any(LEFT_OUT.fullmatch(part) for part in parts):
            raise CannotWarm(
                UNSOUND, f"the archive has {member.name[:200]!r}, which is not a compiled result"
            )
        if member.name in found or len(found) == FILES or size > BYTES:
            raise CannotWarm(UNSOUND, "the archive has a name twice, or too many files")
        found[member.name] = member
    return list(found.values())


def seed(caches: Path, layer: Path, model: str) -> str:
    """Copies into the caches what they lack, if the layer's key is this machine's.

    Each file appears whole or not at all, so servers that start at the same time may both seed.

    Returns:
        What was copied, as a line.

    Raises:
        CannotWarm: the key differs, or the layer is damaged.
    """
    wanted = read_key(layer)
    where = folders(caches)
    here = key(model)
    here["caches"] = {part: str(where.get(part)) for part in wanted["caches"]}
    for name, words in FIELDS.items():
        if here[name] != wanted[name]:
            theirs, ours = (str(value)[:300] for value in (wanted[name], here[name]))
            raise CannotWarm(
                DIFFERS,
                f"the {words} of these results: {theirs or 'none'}; here: {ours or 'none'}."
                " `build.py warm` on this machine makes an image with its own",
            )
    archive = layer / "cache.tar"
    if digest(archive) != wanted["archive"]:
        raise CannotWarm(UNSOUND, f"{archive} is damaged: it does not match its SHA-256 in the key")
    copied = size = 0
    with tarfile.open(archive, "r:") as tar:
        lacking = [m for m in members(tar) if not os.path.lexists(place(where, m.name))]
        needed = sum(member.size for member in lacking) + SPARE_BYTES
        for root in {where[member.name.partition("/")[0]] for member in lacking}:
            root.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(root).free < needed:
                raise CannotWarm(NO_ACCESS, f"{root} has less than {needed / 1e9:.1f} GB free")
        for member in lacking:
            if put(tar, member, where):
                copied, size = copied + 1, size + member.size
    note = ""
    if wanted["model"] != model:
        before = wanted["model"][:300]
        note = f". torch.compile runs all the same: vLLM hashes the model's folder, {before!r} then"
    return f"{copied:,} files with {size / 1e6:,.0f} MB of compiled results copied{note}"


def place(where: dict[str, Path], name: str) -> Path:
    """Where a file of the archive belongs."""
    part, _, inside = name.partition("/")
    return where[part] / inside


def put(tar: tarfile.TarFile, member: tarfile.TarInfo, where: dict[str, Path]) -> bool:
    """Writes one file, unless another program has written it meanwhile."""
    path, root = place(where, member.name), where[member.name.partition("/")[0]]
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise CannotWarm(NO_ACCESS, f"{path.parent} leads out of {root}")
    source = tar.extractfile(member)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if source:
                shutil.copyfileobj(source, file, 1 << 20)
            os.fchmod(handle, 0o755 if member.mode & stat.S_IXUSR else 0o644)
        os.utime(name, (member.mtime, member.mtime))
        os.link(name, path)  # unlike a rename, it never takes another file's place
    except FileExistsError:
        return False
    finally:
        Path(name).unlink()
    return True


def main() -> int:
    """Collects or seeds, with one line on standard error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("collect", "seed"))
    parser.add_argument("caches", type=Path, help="the folder of caches, such as ~/.cache")
    parser.add_argument("layer", type=Path, help="the folder of cache.tar and key.json")
    parser.add_argument("--model", required=True, help="the model's folder, as vLLM is given it")
    chosen = parser.parse_args()
    action = collect if chosen.action == "collect" else seed
    code = 0
    try:
        line = action(chosen.caches, chosen.layer, chosen.model)
    except CannotWarm as error:
        code, line = error.code, str(error)
    except (OSError, tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        code, line = NO_ACCESS, str(error)
    if code:
        outcome = "nothing packed" if chosen.action == "collect" else "caches not seeded"
        line = f"{outcome}: {line}"
    sys.stderr.write("fp4forge: " + "".join(c if c.isprintable() else "?" for c in line) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
