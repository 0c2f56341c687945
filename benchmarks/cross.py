"""vLLM's stable extension cross-compiled for arm64: the proof of `--cross`, and what it costs.

Three plans for sm121 on x86-64: native, crossed, and arm64 with the compilers under emulation. The
same objects are compiled with each (stage.py). Crossed the gate is also passed and two whole
extensions of core are linked, whose ELF headers and kernels are read.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import stage
from benchmarks.recompile import REQUEST
from fp4forge.checks import ledgers
from fp4forge.core.errors import BinaryError
from fp4forge.core.platform import AMD64
from fp4forge.image.stages.jobs import short

STABLE = "CMakeFiles/_C_stable_libtorch.dir/csrc/libtorch_stable"
# Small ones: one that nvcc compiles, one of the host compiler alone.
TIMED = (f"{STABLE}/permute_cols.cu.o", f"{STABLE}/torch_bindings.cpp.o")
LINKED = ("_C_stable_libtorch", "cumem_allocator")
WAYS = {
    "native": replace(REQUEST, platform=AMD64, cross=False),
    "cross": replace(REQUEST, cross=True),
    "emulated": replace(REQUEST, cross=False),
}
TARGET = "${BASE} AS target-tools"


def cross() -> dict[str, Any]:
    """Seconds of each object native, crossed and emulated; what the linked extensions are."""
    objects: dict[str, dict[str, float]] = {}
    extensions: dict[str, Any] = {}
    for way, request in WAYS.items():
        with tempfile.TemporaryDirectory() as name:
            found = stage.compile_objects(
                request,
                TIMED,
                Path(name),
                linked=LINKED if way == "cross" else (),
                edit=emulate if way == "emulated" else str,
                jobs=1,
            )
            extensions |= {path.name: facts(path) for path in Path(name).glob("*.so")}
        for source in map(short, TIMED):
            objects.setdefault(source, {})[f"{way}_s"] = found["seconds"][source]
    sums = {way: sum(o[f"{way}_s"] for o in objects.values()) for way in WAYS}
    return {
        "objects": objects,
        **{f"{way}_s": took for way, took in sums.items()},
        "ratio_native": sums["cross"] / sums["native"],
        "ratio_emulated": sums["cross"] / sums["emulated"],
        "extensions": extensions,
    }


def emulate(text: str) -> str:
    """A Dockerfile whose compilers are the target's, and so run under emulation here.

    Every other stage runs on the build's platform, which for a native plan is the target's too.
    """
    start, end = text.index("FROM --platform=$BUILDPLATFORM"), text.index("FROM tools AS cuda")
    tools = text[start:end].replace("--platform=$BUILDPLATFORM ${BUILD_BASE} AS tools", TARGET)
    assert TARGET in tools and "FROM tools AS compilers" in text
    return text.replace("FROM tools AS compilers", f"{tools}\nFROM target-tools AS compilers")


def facts(extension: Path) -> dict[str, Any]:
    """Size, processor, needed libraries and kernels of a shared object."""
    said = subprocess.run(
        ["readelf", "-hd", str(extension)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    kernels: dict[str, int] = {}
    try:
        found = ledgers.read(str(extension), lambda _: None).as_json(details=False)["files"]
        for cubin in (cubin for file in found for cubin in file["cubins"]):
            kernels[cubin["arch"]] = kernels.get(cubin["arch"], 0) + cubin["kernels"]
    except BinaryError:
        pass  # the allocator has no device code
    return {
        "bytes": extension.stat().st_size,
        "machine": next(line.split(":")[1].strip() for line in said if "Machine:" in line),
        "needed": [line.split("[")[1].rstrip("]") for line in said if "(NEEDED)" in line],
        "kernels": kernels,
    }
