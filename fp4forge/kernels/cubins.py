"""Reads the device code of one ELF file: cubins, PTX, kernels, and their FP4 instructions.

Tools: cuobjdump and nvdisasm from PyPI, pinned; they read compressed fatbins and stripped objects.
What an architecture really is stands in a cubin's note ``.note.nv.tkinfo``, as ``-arch sm_120f``:
``cuobjdump --list-elf`` prints sm_120 for it (measured with 13.2). CUDA 12 writes no note for
older architectures; there the name that cuobjdump gives, with its ``a``, is right.

Instructions (CUDA Binary Utilities, instruction sets of compute capability 10.x and 12.x; seen in
vLLM 0.19.1's and 0.20.2's wheels): OMMA is SM12x's FP4 tensor-core instruction, UTCOMMA SM10x's;
F2FP with E2M1 converts to FP4; QMMA and UTCQMMA are FP8's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fp4forge.kernels import elf, groups
from fp4forge.kernels.base import BinaryError, Progress, ToolError

# Another number when what is read changes: cached results of older code are void.
_READER = 3

_SECONDS = 3600  # for one call of a tool; the largest extension takes minutes

_NOTE = re.compile(rb"-arch\s+(sm_[0-9]+[af]?)\b")
# What counts of nvdisasm's lines: a kernel's section begins, or an instruction may be one of these.
_LINE = re.compile(
    r"\.section\s+\.text\.([^\s,]+)|//-+ \.text\.(\S+) -+|((?:F2FP|U?[A-Z]*MMA)\.?[A-Z0-9.]*)"
)
_MMA = re.compile(r"\b(?:OMMA\.[A-Z0-9.]*E2M1|UTCOMMA\b)")
_CVT = re.compile(r"\bF2FP\.[A-Z0-9.]*E2M1")
_FP8 = re.compile(r"\b(?:QMMA\.[A-Z0-9.]*E[45]M[32]|UTCQMMA\b)")
_ENTRY = re.compile(rb"\.entry\s+([\w$]+)")


@dataclass(frozen=True)
class Kernel:
    """One kernel of a cubin with its counts of instructions (0 where not disassembled)."""

    name: str  # mangled
    fp4_mma: int = 0
    fp4_cvt: int = 0
    fp8_mma: int = 0


@dataclass(frozen=True)
class Cubin:
    """One cubin: architecture with suffix, kind (bare, exact, family), kernels and counts."""

    arch: str
    kind: str
    kernels: tuple[Kernel, ...]
    disassembled: bool  # as far as groups.to_read says

    @property
    def target(self) -> str:
        """The architecture as an arch list names it, such as ``12.0f``."""
        digits = self.arch.removeprefix("sm_")
        suffix = digits[-1] if digits[-1] in "af" else ""
        digits = digits.rstrip("af")
        return f"{digits[:-1]}.{digits[-1]}{suffix}"

    def as_json(self) -> dict[str, Any]:
        """The cubin as the ledger prints it."""
        totals = {
            name: sum(getattr(kernel, name) for kernel in self.kernels)
            for name in ("fp4_mma", "fp4_cvt", "fp8_mma")
        }
        return {
            "arch": self.arch,
            "kind": self.kind,
            "disassembled": self.disassembled,
            **totals,
            "kernels": [asdict(kernel) for kernel in self.kernels],
        }


@dataclass(frozen=True)
class Ptx:
    """One PTX entry, which a newer GPU's driver compiles when it is loaded."""

    arch: str
    kernels: tuple[str, ...]

    @property
    def target(self) -> str:
        """The architecture as an arch list names it, such as ``8.0+PTX``."""
        digits = self.arch.removeprefix("sm_").removeprefix("compute_")
        return f"{digits[:-1]}.{digits[-1]}+PTX"


@dataclass(frozen=True)
class DeviceCode:
    """All device code of one file."""

    sha256: str
    cubins: tuple[Cubin, ...]
    ptx: tuple[Ptx, ...]


def tool(name: str) -> str:
    """Path of a CUDA binary utility from PyPI.

    Raises:
        ToolError: its package is not installed.
    """
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "cu13" / "bin" / name
        if path.exists():
            return str(path)
    raise ToolError(f"{name} is not installed", remedy="run make setup")


def has_device_code(path: Path) -> bool:
    """Whether a file is an ELF object with an ``.nv_fatbin`` section; cheap, for scans."""
    if not elf.is_elf(path):
        return False
    try:
        return elf.read(path).device_code
    except BinaryError:
        return False


def _check(path: Path) -> None:
    if not path.is_file():
        raise BinaryError(f"{path} is not a file")
    size = path.stat().st_size
    if size == 0:
        raise BinaryError(f"{path} is empty", rule="an ELF object with CUDA device code")
    if not elf.is_elf(path):
        raise BinaryError(f"{path} is not an ELF file", rule="a shared object, object or cubin")
    found = elf.read(path)
    if found.end > size:
        raise BinaryError(
            f"{path} is truncated: its sections end at {found.end} bytes, the file at {size}"
        )
    if not found.device_code:
        raise BinaryError(
            f"{path} has no CUDA device code", rule="an ELF object with a section .nv_fatbin"
        )


def read(path: Path, cache: Path, report: Progress) -> DeviceCode:
    """Reads one file, or its cached result; a damaged result is reported and made anew.

    Args:
        path: an ELF object.
        cache: folder of earlier results, by the SHA-256 of the file; made if it is missing.
        report: called with progress.

    Raises:
        BinaryError: the file is empty, truncated, no ELF, has no device code, or its fatbin is
            corrupt.
        ToolError: cuobjdump or nvdisasm is missing.
    """
    _check(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kept = cache / f"{digest}.{_READER}.json"
    if kept.is_file():
        try:
            return _load(json.loads(kept.read_bytes()), digest)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            report(f"{kept} is damaged: {path.name} is read again")
    report(path.name)
    code = DeviceCode(digest, *_extract(path, report))
    if not code.cubins and not code.ptx:
        raise BinaryError(
            f"{path}: cuobjdump finds neither cubins nor PTX in its .nv_fatbin",
            rule="an intact fatbin",
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Of this process: another one may read the same file.
    partial = kept.with_suffix(f".{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(asdict(code)))
        partial.replace(kept)
    finally:
        partial.unlink(missing_ok=True)
    return code


def _load(data: dict[str, Any], digest: str) -> DeviceCode:
    if data["sha256"] != digest:
        raise ValueError("the result of another file")
    return DeviceCode(
        digest,
        tuple(
            Cubin(c["arch"], c["kind"], tuple(Kernel(**k) for k in c["kernels"]), c["disassembled"])
            for c in data["cubins"]
        ),
        tuple(Ptx(p["arch"], tuple(p["kernels"])) for p in data["ptx"]),
    )


def _extract(path: Path, report: Progress) -> tuple[tuple[Cubin, ...], tuple[Ptx, ...]]:
    with (
        tempfile.TemporaryDirectory(prefix="fp4forge-ledger-") as name,
        ThreadPoolExecutor(3) as pool,
    ):
        dumped = _dump(path, Path(name))
        ptx = tuple(_ptx(file) for file in dumped if file.suffix == ".ptx")
        # The largest first: nvdisasm's time goes with size, and the last one is waited for.
        files = [file for file in dumped if file.suffix == ".cubin"]
        files.sort(key=lambda file: -file.stat().st_size)
        cubins = {}
        read = pool.map(lambda file: _cubin(file, path.name), files)
        for number, (file, cubin) in enumerate(zip(files, read, strict=True), 1):
            cubins[file.name] = cubin
            report(f"{path.name}: cubin {number} of {len(files)}")
        return tuple(cubins[name] for name in sorted(cubins)), ptx


def _run(line: list[str], folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            line, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        name = Path(line[0]).name
        raise BinaryError(f"{path}: {name} did not finish within {_SECONDS} s") from None


def _dump(path: Path, folder: Path) -> list[Path]:
    """All cubins and PTX, which cuobjdump extracts in one pass."""
    line = [tool("cuobjdump"), "--extract-elf", "all", "--extract-ptx", "all"]
    done = _run([*line, str(path.resolve())], folder, path)
    said = (done.stdout + done.stderr).strip()
    if done.returncode != 0 and "does not contain device code" not in said:
        last = said.splitlines()[-1] if said else "it printed nothing"
        raise BinaryError(
            f"{path}: cuobjdump cannot read its device code: {last}",
            rule="an intact fatbin",
        )
    return sorted(folder.iterdir())


def _cubin(path: Path, file: str) -> Cubin:
    content = path.read_bytes()
    named = re.search(r"\.(sm_[0-9]+[af]?)\.cubin$", path.name)
    note = _NOTE.search(content)
    if not note and not named:
        raise BinaryError(f"{path.name}: cubin without an architecture")
    arch = note[1].decode() if note else named[1]  # type: ignore[index]
    names = tuple(
        section.name.removeprefix(".text.")
        for section in elf.read(path).sections
        if section.name.startswith(".text.")
    )
    kind = {"a": "exact", "f": "family"}.get(arch[-1], "bare")
    # FP4 instructions exist only in Blackwell's exact and family targets (ptxas refuses others).
    able = kind != "bare" and int(arch.removeprefix("sm_").rstrip("af")) >= 100
    wanted = groups.to_read(file, names) if able else ()
    if not wanted:
        return Cubin(arch, kind, tuple(Kernel(n) for n in names), False)
    return Cubin(arch, kind, tuple(_count(path, names, wanted)), True)


def _count(path: Path, names: tuple[str, ...], wanted: tuple[str, ...]) -> Iterator[Kernel]:
    # Without data flow and by function: the same instructions in a quarter less time.
    options = ["--print-code", "--no-dataflow", "--separate-functions"]
    symbols = elf.functions(path)
    if set(wanted) < set(names) and set(wanted) <= symbols.keys():
        options += ["--cuda-function-index", ",".join(str(symbols[name]) for name in wanted)]
    done = _run([tool("nvdisasm"), *options, str(path)], path.parent, path)
    if done.returncode != 0:
        raise BinaryError(f"{path.name}: nvdisasm: {done.stderr.strip()[:200]}")
    counts = {name: [0, 0, 0] for name in names}
    current = [0, 0, 0]
    for match in _LINE.finditer(done.stdout):
        if section := match[1] or match[2]:
            current = counts.setdefault(section.strip('"'), [0, 0, 0])
        else:
            for place, pattern in enumerate((_MMA, _CVT, _FP8)):
                current[place] += bool(pattern.search(match[3]))
    for name, found in counts.items():
        yield Kernel(name, *found)


def _ptx(path: Path) -> Ptx:
    named = re.search(r"\.((?:sm|compute)_[0-9]+[af]?)\.ptx$", path.name)
    names = tuple(m.decode() for m in _ENTRY.findall(path.read_bytes()))
    return Ptx(named[1] if named else "compute_0", names)
