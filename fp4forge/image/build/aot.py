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
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from fp4forge.image.build import install, jobs

HERE = Path("/fp4forge")
CACHE = Path("/root/.cache/aot")


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
        for name in ("f16_dtype", "f8_dtype", "fa2_head_dim", "fa3_head_dim",
                     "use_sliding_window", "use_logits_soft_cap"):  # fmt: skip
            config[name + "_"] = config.pop(name)
        # For 12.1a alone FlashInfer's list lacks the quantiser for the family, which its lookup
        # takes on every SM12x (get_fp4_quantization_module); so it comes after the generators.
        found += aot.gen_all_modules(**config)
    return list({spec.name: spec for spec in found}.values())


def main() -> None:
    """Command line of the build stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    instructions = json.loads((HERE / "aot.json").read_text())
    start = time.monotonic()
    locks = b"".join((HERE / "locks" / f"{g}.txt").read_bytes() for g in ("cuda", "python"))
    key = hashlib.sha256(locks + json.dumps(instructions).encode()).hexdigest()[:16]
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = instructions["archs"]
    os.environ["FLASHINFER_WORKSPACE_BASE"] = str(CACHE / key)
    os.environ["FLASHINFER_LOGGING_LEVEL"] = "error"
    modules = specs(instructions)
    for spec in modules:
        spec.write_ninja()
    build = modules[0].build_dir.parent
    ninja = build / "all.ninja"
    ninja.write_text("".join(f"subninja {spec.ninja_path}\n" for spec in modules))
    try:
        jobs.run(
            ["-C", str(build), "-f", str(ninja)],
            dict(os.environ),
            jobs.settings().get("FP4FORGE_JOBS"),
        )
    except jobs.Failed as reason:
        print(f"fp4forge: aot: {reason}", file=sys.stderr)
        raise SystemExit(1) from None
    site = args.out / "usr/local/lib" / install.PYTHON / "dist-packages"
    sizes = {}
    for spec in modules:
        library = site / "flashinfer/data/aot" / spec.name / f"{spec.name}.so"
        library.parent.mkdir(parents=True)
        shutil.copyfile(spec.jit_library_path, library)
        sizes[spec.name] = library.stat().st_size
    record = args.out / "opt/fp4forge/aot.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(instructions | {"bytes": sizes}, indent=1) + "\n")
    install.settle_times(args.out, int(os.environ["SOURCE_DATE_EPOCH"]))
    for name, size in sizes.items():
        print(f"fp4forge: {name} {size / 1e6:.1f} MB", flush=True)
    print(f"fp4forge: {len(sizes)} modules, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
