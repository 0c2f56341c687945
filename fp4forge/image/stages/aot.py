"""Compiles FlashInfer's modules ahead of time; runs in a build stage, no GPU needed.

FlashInfer's own generators describe the modules; ninja runs here, with progress and within the
memory that there is. Objects stay in a cache mount: an interrupted compile goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from fp4forge.image.stages import install, jobs

HERE = Path("/fp4forge")
CACHE = Path("/root/.cache/aot")
_INCLUDED = ("flashinfer-python", "apache-tvm-ffi", "torch")  # and the toolchain: all of NVIDIA's


def key(archs: str, versions: dict[str, str]) -> str:
    """Names the build folder by what decides its objects.

    Not by the choice of modules, which have a folder each, nor by other packages: what is compiled
    once serves every choice, and a new transformers compiles nothing.

    Args:
        archs: FLASHINFER_CUDA_ARCH_LIST.
        versions: of the installed packages by name.
    """
    chosen = sorted(
        (name, version)
        for name, version in versions.items()
        if name in _INCLUDED or name.startswith("nvidia-")
    )
    return hashlib.sha256(json.dumps([archs, chosen]).encode()).hexdigest()[:16]


def installed() -> dict[str, str]:
    """Versions of the packages in this stage, by normalised name (PEP 503)."""
    found = metadata.distributions()
    return {re.sub(r"[-_.]+", "-", d.name).lower(): d.version for d in found}


def specs(instructions: dict[str, Any]) -> list[Any]:
    """FlashInfer's descriptions of the modules, for the architectures in the environment."""
    found = []
    for generator in instructions["generators"]:
        module, _, function = generator.rpartition(".")
        found.append(getattr(importlib.import_module(f"flashinfer.jit.{module}"), function)())
    if instructions["choice"] == "all":
        aot = importlib.import_module("flashinfer.aot")
        config = aot.get_default_config()
        config["sm_capabilities"] = aot.detect_sm_capabilities()
        for name in (
            "f16_dtype",
            "f8_dtype",
            "fa2_head_dim",
            "fa3_head_dim",
            "use_sliding_window",
            "use_logits_soft_cap",
        ):
            config[name + "_"] = config.pop(name)
        # For 12.1a alone FlashInfer's list lacks the quantiser for the family, which its lookup
        # takes on every SM12x (get_fp4_quantization_module); so it comes after the generators.
        found += aot.gen_all_modules(**config)
    return list({spec.name: spec for spec in found}.values())


def compiled(instructions: dict[str, Any]) -> dict[str, Path]:
    """Compiles the modules, or what is left of them; their libraries by name.

    Raises:
        jobs.Failed: an object cannot be compiled; its command and last lines are in the message.
    """
    folder = jobs.folder_of(CACHE, key(instructions["archs"], installed()))
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = instructions["archs"]
    os.environ["FLASHINFER_WORKSPACE_BASE"] = str(folder)
    os.environ["FLASHINFER_LOGGING_LEVEL"] = "error"
    modules = specs(instructions)
    for spec in modules:
        spec.write_ninja()
    build = modules[0].build_dir.parent
    ninja = build / "all.ninja"
    ninja.write_text("".join(f"subninja {spec.ninja_path}\n" for spec in modules))
    jobs.run(
        ["-C", str(build), "-f", str(ninja)],
        dict(os.environ),
        jobs.settings().get("FP4FORGE_JOBS"),
        lambda: jobs.timings(build),
    )
    return {spec.name: spec.jit_library_path for spec in modules}


def put(libraries: dict[str, Path], instructions: dict[str, Any], out: Path) -> dict[str, int]:
    """Lays the modules where FlashInfer looks for them under out, with a record; their bytes."""
    ahead = out / "usr/local/lib" / install.PYTHON / "dist-packages/flashinfer/data/aot"
    for name, library in libraries.items():
        (ahead / name).mkdir(parents=True)
        shutil.copyfile(library, ahead / name / f"{name}.so")
    sizes = {name: library.stat().st_size for name, library in libraries.items()}
    record = out / "opt/fp4forge/aot.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(instructions | {"bytes": sizes}, indent=1) + "\n")
    install.settle_times(out, int(os.environ["SOURCE_DATE_EPOCH"]))
    return sizes


def main() -> None:
    """Command line of the build stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    instructions = json.loads((HERE / "aot.json").read_text())
    with jobs.alone_on_engine(CACHE):
        start = time.monotonic()
        try:
            libraries = compiled(instructions)
        except jobs.Failed as reason:
            print(f"fp4forge: aot: {reason}", file=sys.stderr)
            raise SystemExit(1) from None
        sizes = put(libraries, instructions, args.out)
    for name, size in sizes.items():
        print(f"fp4forge: {name} {size / 1e6:.1f} MB", flush=True)
    print(f"fp4forge: {len(sizes)} modules, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
