"""Applies a patch series with zero fuzz and proves each step by hashes; standard library only.

Used in the build stage, by ``build.py patch check`` and by the tests. Exit code 7 and one
message on stderr when a file is not the one that the patch was made for, a hunk does not apply,
or the result is not the recorded one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


class Refused(Exception):
    """A patch cannot be applied as recorded."""


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def gnu_patch(diff: Path, tree: Path) -> subprocess.CompletedProcess[str]:
    """Runs GNU patch on tree, in place, with zero fuzz; whether it applied is its exit code."""
    return subprocess.run(
        [
            "patch",
            "-p1",
            "--fuzz=0",
            "--forward",
            "--batch",
            "--no-backup-if-mismatch",
            "--reject-file=-",
            "--directory",
            str(tree),
            "--input",
            str(diff.resolve()),
        ],
        capture_output=True,
        text=True,
    )


def apply_one(patch: dict[str, Any], diff: Path, tree: Path) -> None:
    """Applies one diff to tree, in place.

    Raises:
        Refused: naming the file, and the hunk if a hunk fails.
    """
    name = patch["id"]
    if sha256(diff) != patch["sha256"]:
        raise Refused(f"patch {name}: {diff.name} is not the recorded diff (SHA-256 differs)")
    for file in patch["files"]:
        path = tree / file["path"]
        if not path.is_file():
            raise Refused(f"patch {name}: {file['path']} does not exist in the installed package")
        if sha256(path) != file["before"]:
            raise Refused(
                f"patch {name}: {file['path']} is not the file that the patch was made for"
                f" (SHA-256 {sha256(path)[:12]}, recorded {file['before'][:12]})"
            )
    done = gnu_patch(diff, tree)
    if done.returncode != 0:
        raise Refused(f"patch {name}: {failed_hunks(done.stdout)}")
    for file in patch["files"]:
        if sha256(tree / file["path"]) != file["after"]:
            raise Refused(
                f"patch {name}: {file['path']} has SHA-256 {sha256(tree / file['path'])[:12]}"
                f" afterwards, recorded {file['after'][:12]}"
            )


def failed_hunks(output: str) -> str:
    """The file and the hunks that GNU patch could not apply, from its output."""
    file, failed = "", []
    for line in output.splitlines():
        if match := re.match(r"patching file '?([^']+)'?", line):
            file = match[1]
        if match := re.match(r"Hunk #(\d+) (?:FAILED|ignored|skipped) at (\d+)", line):
            failed.append(f"{file} hunk {match[1]} (line {match[2]})")
    return "does not apply: " + (", ".join(failed) or output.strip().replace("\n", " | "))


def apply_series(
    series: dict[str, Any], diffs: Path, installed: Path, out: Path
) -> dict[str, dict[str, str]]:
    """Copies the files that the series touches from installed to out and patches them there.

    Where out is installed, they are patched in place.

    Returns:
        For each file its SHA-256 before the first and after the last patch.

    Raises:
        Refused: see apply_one.
    """
    files: dict[str, dict[str, str]] = {}
    for patch in series["patches"]:
        for file in patch["files"]:
            here = out == installed
            if not here and file["path"] not in files and (installed / file["path"]).is_file():
                (out / file["path"]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(installed / file["path"], out / file["path"])
            files.setdefault(file["path"], {"before": file["before"]})["after"] = file["after"]
        apply_one(patch, diffs / patch["file"], out)
    return files


def main() -> None:
    """Command line of the build stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=Path, required=True)
    parser.add_argument("--installed", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--layers", type=Path, help="also copy the result here, by folder")
    args = parser.parse_args()
    series = json.loads(args.series.read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        files = apply_series(series, args.series.parent, args.installed, args.out)
    except Refused as refusal:
        print(f"fp4forge: {refusal}", file=sys.stderr)
        raise SystemExit(7) from None
    for path in sorted(args.out.rglob("*.py")):
        py_compile.compile(
            str(path),
            dfile="/usr/local/lib/" + path.as_posix().split("/usr/local/lib/", 1)[-1],
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
        )
    args.record.parent.mkdir(parents=True, exist_ok=True)
    record = {"package": series["package"], "version": series["version"]}
    args.record.write_text(
        json.dumps({**record, "files": files, "patches": series["patches"]}, indent=1) + "\n"
    )
    if args.layers:
        split(args.out, args.layers, files)
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    for root in (args.record.parents[2], *([args.layers] if args.layers else [])):
        for folder, folders, names in os.walk(root):
            for name in names + folders:
                os.utime(Path(folder) / name, (epoch, epoch), follow_symlinks=False)


def split(out: Path, layers: Path, files: dict[str, dict[str, str]]) -> None:
    """Copies patched files and their bytecode into one root for each folder of the package.

    Each becomes a layer of its own, so that an edit is pushed with its folder alone; the name is
    that of ``fp4forge.image.render.Variant.layers``.
    """
    site = Path(*out.parts[out.parts.index("usr") :])
    for name in files:
        path = Path(name)
        target = layers / path.parent.as_posix().replace("/", "-") / site / path.parent
        (target / "__pycache__").mkdir(parents=True, exist_ok=True)
        shutil.copy(out / path, target)
        for compiled in (out / path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            shutil.copy(compiled, target / "__pycache__")


if __name__ == "__main__":
    main()
