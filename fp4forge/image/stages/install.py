"""Installs one locked layer of packages; runs in a build stage, with the standard library only.

The result under --out is reproducible: the same lock gives the same bytes and times, so that a
rebuilt layer has the digest it had before and nobody pulls it twice.
"""

from __future__ import annotations

import argparse
import email.parser
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

UV_PLATFORM = {"linux/amd64": "x86_64-manylinux_2_39", "linux/arm64": "aarch64-manylinux_2_39"}
# e_machine (ELF specification, and the kernel's elf-em.h).
MACHINES = {"linux/amd64": 62, "linux/arm64": 183}
EM_CUDA = 190
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


def install(source: list[str], platform: str, prefix: Path) -> Path:
    """Unpacks wheels under prefix; nothing of them is run, so any platform will do."""
    command = ["uv", "pip", "install", "--prefix", str(prefix), "--python", sys.executable]
    command += ["--python-platform", UV_PLATFORM[platform], "--no-deps", "--link-mode", "copy"]
    command += ["--no-build", *source]
    subprocess.run(command, check=True)
    # Debian's and Ubuntu's Python look in dist-packages; RECORD's relative paths stay right.
    site = prefix / "lib" / PYTHON / "dist-packages"
    (site.parent / "site-packages").rename(site)
    return site


def matcher(glob: str) -> re.Pattern[str]:
    """A pattern for a glob in which * stays inside a folder and ** crosses folders."""
    parts = re.split(r"(\*\*/?|\*)", glob)
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return re.compile("".join(translated.get(part, re.escape(part)) for part in parts))


def foreign(path: Path, machine: int) -> bool:
    """Whether a file is ELF for another processor (``e_machine`` of its header)."""
    if path.is_symlink():
        return False
    with path.open("rb") as file:
        head = file.read(20)
    return head[:4] == b"\x7fELF" and head[18] + 256 * head[19] not in (machine, EM_CUDA)


def other_cuda(site: Path, name: str, major: str) -> bool:
    """Whether a file is for another CUDA, and the same is there for this one.

    Packages that serve several keep them in folders or files such as ``cu12`` and ``x.cu12.so``.
    """
    if ".dist-info/" in name:  # what is installed stays installed
        return False
    for match in re.finditer(r"(?<![a-z0-9])cu1[0-9](?![a-z0-9])", name):
        if match[0] != f"cu{major}":
            whole = re.split(r"/", name[match.end() :], maxsplit=1)[0]  # the rest of that part
            twin = f"{name[: match.start()]}cu{major}{whole}"
            if (site / twin).exists():
                return True
    return False


def leave_out(
    site: Path, rules: list[dict[str, str]], platform: str, cuda: str
) -> list[dict[str, object]]:
    """Deletes what the rules name; returns each deleted file with its size and rule.

    Args:
        site: the installed packages.
        rules: entries of the release's leave_out, each with a glob or a rule's name.
        platform: of the image.
        cuda: major version of the image's CUDA.
    """
    patterns = {rule["glob"]: matcher(rule["glob"]) for rule in rules if rule["glob"]}

    def applies(rule: dict[str, str], path: Path, name: str) -> bool:
        if rule["glob"]:
            return patterns[rule["glob"]].fullmatch(name) is not None
        if rule["rule"] == "foreign-processor":
            return foreign(path, MACHINES[platform])
        return other_cuda(site, name, cuda)

    gone: list[dict[str, object]] = []
    for path in sorted(site.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(site).as_posix()
        rule = next((rule for rule in rules if applies(rule, path, name)), None)
        if rule:
            by = rule["glob"] or rule["rule"]
            gone.append({"path": name, "bytes": path.lstat().st_size, "rule": by})
    for entry in gone:  # not before: twins are looked for
        (site / str(entry["path"])).unlink()
    for folder in sorted((p for p in site.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    return gone


def complete_cuda(site: Path, prefix: Path) -> None:
    """Gives the CUDA of PyPI's wheels the names that nvcc's users look for.

    The wheels carry libcudart.so.13 but no libcudart.so and no lib64; /usr/local/cuda is where
    FlashInfer and CMake look first.
    """
    cuda = site / "nvidia" / "cu13"
    lib = cuda / "lib"
    if not (cuda / "bin" / "nvcc").exists():
        return
    for library in sorted(lib.glob("lib*.so.*")):
        plain = lib / (library.name.split(".so.")[0] + ".so")
        if not plain.exists():
            plain.symlink_to(library.name)
    (cuda / "lib64").symlink_to("lib")
    (prefix / "cuda").symlink_to(cuda.relative_to(prefix))


def compile_bytecode(site: Path) -> None:
    """Compiles all modules with checked hashes: valid for any file time, void for edited files."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "compileall",
            "-q",
            "-j",
            "0",
            "--invalidation-mode",
            "checked-hash",
            "-s",
            str(site.parents[4]),
            "-p",
            "/",
            str(site),
        ],
        # Some packages ship templates and code for other Python versions that cannot compile.
        stdout=subprocess.DEVNULL,
        check=False,
    )


def startup_files(site: Path, out: Path) -> str:
    """The files that Python runs when it starts, as sha256sum lists them; out becomes "/".

    The entrypoint refuses others: they can replace any module.
    """
    found = [*site.glob("*.pth"), *site.glob("sitecustomize.py"), *site.glob("usercustomize.py")]
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  /{path.relative_to(out)}\n"
        for path in sorted(found)
    )


def licences(site: Path) -> str:
    """A page of the packages and the terms that each states in its metadata (core metadata 2.4)."""
    rows = []
    for file in site.glob("*.dist-info/METADATA"):
        found = email.parser.HeaderParser().parsestr(file.read_text("utf-8", "replace"))
        stated = (found["License"] or "").strip()
        classified = [
            text.rpartition(" :: ")[2]
            for text in found.get_all("Classifier") or []
            if text.startswith("License ::")
        ]
        short = stated if "\n" not in stated else ""
        terms = found["License-Expression"] or short or ", ".join(sorted(classified))
        folder = file.parent.relative_to(site)
        rows.append(
            f"| {found['Name']} | {found['Version']} | {terms or 'its licence file'} | {folder} |\n"
        )
    head = (
        "| package | version | licence | licence files under dist-packages |\n|---|---|---|---|\n"
    )
    return head + "".join(sorted(rows, key=str.lower))


def settle_times(out: Path, epoch: int) -> None:
    """Sets every time under out to the release's epoch."""
    for folder, folders, files in os.walk(out):
        for name in files + folders:
            os.utime(Path(folder) / name, (epoch, epoch), follow_symlinks=False)
    os.utime(out, (epoch, epoch))


def main() -> None:
    """Command line of the build stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lock", type=Path)
    source.add_argument("--wheels", type=Path, help="folder with the wheel compiled before")
    parser.add_argument("--platform", required=True, choices=UV_PLATFORM)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    prefix = args.out / "usr" / "local"
    chosen = ["--require-hashes", "-r", str(args.lock)] if args.lock else []
    chosen += [str(wheel) for wheel in args.wheels.glob("*.whl")] if args.wheels else []
    site = install(chosen, args.platform, prefix)
    wanted = json.loads(Path("/fp4forge/leave-out.json").read_text())
    gone = leave_out(site, wanted["rules"], args.platform, wanted["cuda"])
    complete_cuda(site, prefix)
    compile_bytecode(site)
    name = args.lock.stem if args.lock else "vllm"
    records = {
        Path("left-out", f"{name}.json"): json.dumps(gone, indent=1) + "\n",
        Path("startup", name): startup_files(site, args.out),
        Path("licences", f"{name}.md"): licences(site),
    }
    for path, content in records.items():
        record = args.out / "opt" / "fp4forge" / path
        record.parent.mkdir(parents=True)
        record.write_text(content)
    settle_times(args.out, int(os.environ["SOURCE_DATE_EPOCH"]))


if __name__ == "__main__":
    main()
