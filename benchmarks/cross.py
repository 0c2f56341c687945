"""vLLM's stable extension cross-compiled for arm64: the proof of `--cross`, and what it costs.

Three plans for sm121 on x86-64: native, crossed, and arm64 with the compilers under emulation. A
stage in their gate's place compiles the same objects with each, cleaned before and with nothing
taken from the compiler's cache. Crossed it also passes the gate and links two whole extensions of
core, whose ELF headers and kernels are read.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.recompile import REQUEST
from fp4forge import base as bases
from fp4forge import builder, gpu, ledger, plan
from fp4forge.errors import BinaryError

STABLE = "CMakeFiles/_C_stable_libtorch.dir/csrc/libtorch_stable"
# Small ones: one that nvcc compiles, one of the host compiler alone.
TIMED = (f"{STABLE}/permute_cols.cu.o", f"{STABLE}/torch_bindings.cpp.o")
LINKED = ("_C_stable_libtorch", "cumem_allocator")
WAYS = {
    "native": replace(REQUEST, platform=gpu.AMD64, cross=False),
    "cross": replace(REQUEST, cross=True),
    "emulated": replace(REQUEST, cross=False),
}
TARGET = "${BASE} AS target-tools"
# In the place of the gate's RUN, whose mounts it has.
PROGRAM = """
import json, pathlib, shutil, subprocess
from fp4forge.image.build import jobs
from fp4forge.image.build.compile import Compile
c = Compile()
c.prepare()
subprocess.run(["ninja", "-C", str(c.build), "-t", "clean", *{timed}], check=True)
c.ninja({timed})
seconds = jobs.timings(c.build)
if {linked}:
    c.gate()
    c.ninja({linked})
out = pathlib.Path("/proof")
out.mkdir()
for path in c.build.glob("*.so"):
    shutil.copy(path, out)
(out / "objects.json").write_text(json.dumps(seconds))
"""


def cross() -> dict[str, Any]:
    """Seconds of each object native, crossed and emulated; what the linked extensions are."""
    os.environ["SCCACHE_RECACHE"] = "1"
    objects: dict[str, dict[str, float]] = {}
    extensions: dict[str, Any] = {}
    for way in WAYS:
        with tempfile.TemporaryDirectory() as name:
            proof(way, Path(name))
            seconds = json.loads(Path(name, "objects.json").read_text())
            extensions |= {path.name: facts(path) for path in Path(name).glob("*.so")}
        for target in TIMED:
            source = target.removesuffix(".o").partition(".dir/")[2]
            objects.setdefault(source, {})[f"{way}_s"] = seconds[source]
    del os.environ["SCCACHE_RECACHE"]  # other benchmarks of this process live on the cache
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


def proof(way: str, folder: Path) -> None:
    """Runs the program in the compile stage of one way's plan; its files land in the folder."""
    prepared, files = plan.identify(plan.resolve(WAYS[way]))
    text = files["Dockerfile"].decode()
    text = emulate(text) if way == "emulated" else text
    start, end = text.index("FROM toolchain AS gate"), text.index("FROM gate AS compile")
    copies, _, run = text[start:end].partition("\nRUN ")
    mounts = run.partition("PYTHONPATH")[0]
    linked = LINKED if way == "cross" else ()
    code = PROGRAM.format(timed=list(TIMED), linked=list(linked))
    text += copies.replace(" AS gate", " AS proof")
    text += f"\nCOPY proof.py /\nRUN {mounts} PYTHONPATH=/fp4forge python3 /proof.py\n"
    text += "FROM scratch AS proof-files\nCOPY --from=proof /proof /\n"
    files |= {"Dockerfile": text.encode(), "proof.py": code.encode()}
    # Crossed, no stage is arm64's.
    needed = gpu.AMD64 if prepared.cross else prepared.platform
    for platform in dict.fromkeys((gpu.AMD64, needed)):
        bases.ensure(bases.load(prepared.base), platform, print)
    context = plan.stage(prepared, files)
    output, options = f"type=local,dest={folder}", builder.Options(jobs=1)
    line = builder.command(prepared, context, [output], options, target="proof-files")
    builder.build(line, print, options)


def facts(extension: Path) -> dict[str, Any]:
    """Size, processor, needed libraries and kernels of a shared object."""
    said = subprocess.run(
        ["readelf", "-hd", str(extension)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    kernels: dict[str, int] = {}
    try:
        found = ledger.read(str(extension), lambda _: None).as_json(details=False)["files"]
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
