"""The ledger: which kernels a target holds, for which GPUs they run, and how.

A target is a shared object, a wheel, a folder, a container or an image. Verdicts are read off the
binaries: FP4 by its instructions, architectures by the cubins' notes.
"""

from __future__ import annotations

import errno
import functools
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fp4forge import cubins, tar
from fp4forge.archs import serves
from fp4forge.console import Report
from fp4forge.cubins import DeviceCode, Kernel
from fp4forge.errors import BinaryError, DiskError, RegistryError, UsageError
from fp4forge.gpu import GPUS

# Marlin's first two template arguments are the types of activations and weights.
_MARLIN = re.compile(r"6MarlinILl(\d+)ELl(\d+)E")

# Kernel groups of the verdict; Marlin counts where it takes FP4 weights with 16-bit activations.
# Names tell only which group a kernel with the instructions is of.
GROUPS = ("nvfp4_gemm", "nvfp4_grouped_gemm", "nvfp4_quantise", "fp8_gemm", "marlin", "moe_marlin",
          "flashinfer_gemm", "flashinfer_quantise")  # fmt: skip
REQUIRED = ("nvfp4_gemm", "nvfp4_quantise")
_WORDS = {"exact": "native", "family": "family", "ptx": "ptx", "none": "missing"}
_RANK = ("native", "family", "ptx", "missing")
RUNS = _RANK[:2]  # verdicts of a GPU that has code of its own, compiled already


@dataclass(frozen=True)
class File:
    """One extension and its device code; the path is relative to the target."""

    path: str
    code: DeviceCode

    def groups_of(self, kernel: Kernel) -> set[str]:
        """The groups that one of its kernels counts for.

        FlashInfer's modules have groups of their own: those of vLLM's NVFP4 linear layers. What
        else it has (MoE, attention, all-reduce; with FP4 instructions too) counts for none.
        """
        path = PurePosixPath(self.path)
        if not {"flashinfer", "flashinfer_jit_cache"} & set(path.parts):
            return set(groups_of(kernel))
        if kernel.fp4_mma and path.name.startswith("fp4_gemm_"):
            return {"flashinfer_gemm"}
        if kernel.fp4_cvt and path.name.startswith("fp4_quantization_"):
            return {"flashinfer_quantise"}
        return set()

    def as_json(self) -> dict[str, Any]:
        """The file as the ledger prints it."""
        return {
            "path": self.path,
            "sha256": self.code.sha256,
            "cubins": [cubin.as_json() for cubin in self.code.cubins],
            "ptx": [{"arch": p.arch, "kernels": len(p.kernels)} for p in self.code.ptx],
        }


@dataclass(frozen=True)
class Ledger:
    """All files of a target and what each GPU gets."""

    target: str
    files: tuple[File, ...]

    @functools.cached_property
    def gpus(self) -> dict[str, dict[str, Any]]:
        """For each GPU every group's verdict (native, family, ptx, missing), and ``ok``."""
        best = {name: dict.fromkeys(GROUPS, "missing") for name in GPUS}
        for target, groups in self._groups():
            for gpu in GPUS.values():
                word = _WORDS[serves(target, gpu)]
                for group in groups:
                    if _RANK.index(word) < _RANK.index(best[gpu.name][group]):
                        best[gpu.name][group] = word
        return {
            name: {**found, "ok": all(found[g] in RUNS for g in REQUIRED)}
            for name, found in best.items()
        }

    def targets(self) -> dict[str, list[str]]:
        """For each group the architectures that hold it, such as ``12.0f`` or ``8.0+PTX``."""
        found: dict[str, set[str]] = {group: set() for group in GROUPS}
        for target, groups in self._groups():
            for group in groups:
                found[group].add(target)
        return {group: sorted(targets) for group, targets in found.items()}

    def _groups(self) -> Iterator[tuple[str, set[str]]]:
        for file in self.files:
            for cubin in file.code.cubins:
                yield cubin.target, {g for k in cubin.kernels for g in file.groups_of(k)}
            for ptx in file.code.ptx:
                yield ptx.target, {g for n in ptx.kernels for g in file.groups_of(Kernel(n))}

    def as_json(self, details: bool = True) -> dict[str, Any]:
        """The documented JSON; without details no kernels, for keeping in an image."""
        files = [file.as_json() for file in self.files]
        if not details:
            for file in files:
                for cubin in file["cubins"]:
                    cubin["kernels"] = len(cubin["kernels"])
        return {"target": self.target, "files": files, "groups": self.targets(),
                "gpus": self.gpus}  # fmt: skip


def groups_of(kernel: Kernel) -> Iterator[str]:
    """The groups that a kernel counts for."""
    if kernel.fp4_mma:
        grouped = "GroupProblemShape" in kernel.name
        yield "nvfp4_grouped_gemm" if grouped else "nvfp4_gemm"
    if kernel.fp4_cvt:
        yield "nvfp4_quantise"
    if kernel.fp8_mma and "float_e4m3" in kernel.name and "GroupProblemShape" not in kernel.name:
        yield "fp8_gemm"
    if match := _MARLIN.search(kernel.name):
        activation, weight = (_scalar(int(number)) for number in match.groups())
        if weight == (2, 1) and activation in ((5, 10), (8, 7)):
            yield "moe_marlin" if "marlin_moe" in kernel.name else "marlin"


def _scalar(number: int) -> tuple[int, int]:
    """Exponent and mantissa bits of a vllm::ScalarType id (csrc/core/scalar_type.hpp)."""
    return number & 0xFF, number >> 8 & 0xFF


def read(target: str, report: Report) -> Ledger:
    """Reads whatever a target names.

    Raises:
        BinaryError: the file, wheel or folder cannot be read or holds no device code.
        UsageError: nothing of that name exists here.
        DiskError: there is no room to unpack it.
    """
    try:
        return _read(target, report)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskError(
            f"{target} cannot be unpacked: {tempfile.gettempdir()} is full",
            rule="the extensions of an image take about 1 GB there",
            remedy="free some, or set TMPDIR to a larger disk",
        ) from None


def _read(target: str, report: Report) -> Ledger:
    path = Path(target)
    if path.is_dir():
        return _folder(target, path, report)
    if path.suffix == ".whl":
        return _wheel(target, path, report)
    if path.exists() or ("/" in target and path.suffix in (".so", ".o", ".cubin")):
        return Ledger(target, (File(path.name, cubins.read(path, report)),))
    with _from_engine(target, report) as folder:
        return _folder(target, folder, report)


def packages(folders: list[Path], report: Report) -> Ledger:
    """The ledger of installed packages; paths start with the package's name.

    Raises:
        BinaryError: one of them has no device code, or cannot be read.
    """
    files = [
        File(f"{folder.name}/{file.path}", file.code)
        for folder in folders
        for file in _folder(str(folder), folder, report).files
    ]
    return Ledger(", ".join(folder.name for folder in folders), tuple(files))


def _folder(target: str, root: Path, report: Report) -> Ledger:
    found = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink() and re.search(r"\.(so|o|cubin)\b", path.name)
    ]
    binaries = [path for path in found if cubins.has_device_code(path)]
    files = tuple(
        File(
            path.relative_to(root).as_posix(),
            cubins.read(path, _numbered(report, f"file {number} of {len(binaries)}")),
        )
        for number, path in enumerate(binaries, 1)
    )
    if not files:
        raise BinaryError(
            f"{target} has no file with CUDA device code",
            rule="ELF objects with a section .nv_fatbin",
        )
    return Ledger(target, files)


def _numbered(report: Report, which: str) -> Report:
    return lambda text: report(f"{which}, {text}")


def _wheel(target: str, path: Path, report: Report) -> Ledger:
    try:
        with tempfile.TemporaryDirectory(prefix="fp4forge-wheel-") as folder:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    name = PurePosixPath(entry.filename)
                    if name.is_absolute() or ".." in name.parts:
                        raise BinaryError(
                            f"{target}: entry {entry.filename!r} leaves the wheel",
                            rule="paths in a wheel are relative and without ..",
                            remedy="do not install it",
                        )
                    if name.suffix == ".so":
                        report(f"unpacking {name.name}")
                        archive.extract(entry, folder)
            return _folder(target, Path(folder), report)
    except (zipfile.BadZipFile, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise BinaryError(f"{target} is no readable wheel: {error}") from None


# Where images keep vLLM: distributions' Python, virtual environments, conda.
_PREFIXES = ("/usr/local/lib", "/usr/lib", "/opt/venv/lib", "/opt/conda/lib", "/app/.venv/lib",
             "/workspace/.venv/lib", "/root/.venv/lib")  # fmt: skip
_PARTS = ("vllm", "flashinfer/data/aot", "flashinfer_jit_cache")


@contextmanager
def _from_engine(target: str, report: Report) -> Iterator[Path]:
    """A folder with the extensions of a container, or of an image that is not started."""
    from docker.errors import APIError, ImageNotFound, NotFound

    from fp4forge import engine

    client = engine.connect()
    made = None
    try:
        try:
            container = client.containers.get(target)
        except (NotFound, APIError):
            try:
                client.images.get(target)
            except ImageNotFound:
                report(f"pulling {target}")
                try:
                    engine.pull(client, target, None, report)
                except RegistryError as error:
                    raise UsageError(
                        f"{target!r} is no file, folder, container or image here",
                        rule="a .so, .whl, folder, container name, or an image that can be pulled",
                        remedy=error.message[:160],
                    ) from None
            made = container = client.containers.create(
                target, command=["none"], network_mode="none", labels={engine.ROLE: "ledger"}
            )
        with tempfile.TemporaryDirectory(prefix="fp4forge-image-") as name:
            sites = [s for s in _sites(container) if _unpack(container, s, Path(name), report)]
            if not sites:
                raise BinaryError(
                    f"{target} has no vLLM in any Python that is known here",
                    rule="vllm under dist-packages or site-packages of " + ", ".join(_PREFIXES),
                )
            yield Path(name)
    finally:
        if made is not None:
            made.remove(force=True)


def _sites(container: Any) -> Iterator[str]:
    for prefix in _PREFIXES:
        for minor in range(9, 16):
            for kind in ("dist-packages", "site-packages"):
                yield f"{prefix}/python3.{minor}/{kind}"


def _unpack(container: Any, site: str, folder: Path, report: Report) -> bool:
    """Unpacks the shared objects of a container's packages; False where vLLM is not there."""
    from docker.errors import APIError

    for part in _PARTS:
        try:
            stream, _ = container.get_archive(f"{site}/{part}", chunk_size=4 << 20)
        except APIError:
            if part == "vllm":
                return False
            continue
        report(f"reading {site}/{part}")
        _copy(stream, folder / PurePosixPath(part).parent)
    return True


def _copy(stream: Iterator[bytes], folder: Path) -> None:
    """Writes the shared objects of a tar, as the engine streams it, under a folder.

    The stream is read to its end whatever happens: until then the engine keeps the container
    locked, and every later command in it would wait (moby's containerArchivePath).
    """
    from fp4forge import engine

    try:
        with tarfile.open(fileobj=engine.as_file(stream), mode="r|", bufsize=1 << 20) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or ".so" not in name.name:
                    continue
                if name.is_absolute() or ".." in name.parts:
                    raise BinaryError(f"entry {member.name!r} leaves the archive")
                tar.write(archive, member, folder)
    finally:
        for _ in stream:
            pass


# Which of vLLM's CMake groups compiles the kernels of a verdict's group, by SM family.
_COMPILED_BY = {
    "nvfp4_gemm": ("nvfp4_sm10x", "nvfp4_sm12x"),
    "nvfp4_quantise": ("nvfp4_sm10x", "nvfp4_sm12x"),
    "fp8_gemm": ("fp8_scaled_mm_sm10x", "fp8_scaled_mm_sm12x"),
    "marlin": ("marlin_sm75", "marlin_sm80", "marlin_bf16"),
    "moe_marlin": ("moe_marlin_sm75", "moe_marlin_sm80"),
}


def expected(groups: dict[str, list[str]], fp8_family: bool = False) -> dict[str, list[str]]:
    """What a ledger's ``targets`` must be, from the predicted targets of vLLM's CMake groups.

    FP8 for SM12x counts no target but 12.0, which alone ``enable_sm120_only`` lets through;
    with ``fp8_family`` (the patch fp8-sm12x-family) it counts them all.
    """
    found = {}
    for group, names in _COMPILED_BY.items():
        targets = {t for name in names for t in groups.get(name, ())}
        if group == "fp8_gemm" and not fp8_family:
            targets = {t for t in targets if t.rstrip("af") != "12.1"}
        found[group] = sorted(targets)
    return found


def differences(predicted: dict[str, list[str]], found: dict[str, list[str]]) -> list[str]:
    """Groups in which prediction and ledger differ, a line each with both columns.

    A target with +PTX is compiled as SASS for the same architecture too; that is no difference.
    """
    lines = []
    for group, targets in predicted.items():
        with_sass = set(targets) | {t.removesuffix("+PTX") for t in targets}
        have = set(found.get(group, ()))
        if not set(targets) <= have <= with_sass:
            lines.append(
                f"{group}: predicted {' '.join(targets) or 'nothing'},"
                f" found {' '.join(sorted(have)) or 'nothing'}"
            )
    return lines


def lost(ledger: Ledger, required: tuple[str, ...]) -> dict[str, str]:
    """Required GPUs that lack a required group, with what they lack."""
    return {
        name: ", ".join(g for g in REQUIRED if ledger.gpus[name][g] not in RUNS)
        for name in required
        if not ledger.gpus[name]["ok"]
    }
