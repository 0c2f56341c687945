"""Compiles vLLM's wheel from its sdist; runs in a build stage, with the standard library only.

CUTLASS's headers come from PyPI's nvidia-cutlass (VLLM_CUTLASS_SRC_DIR, vLLM's CMakeLists.txt);
sccache wraps nvcc and the host compiler, its store is a cache mount.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path


def cutlass() -> str:
    """Folder of CUTLASS's sources in the installed nvidia-cutlass package."""
    spec = importlib.util.find_spec("cutlass_library")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("fp4forge: nvidia-cutlass is not installed in the compile stage")
    return str(Path(next(iter(spec.submodule_search_locations))) / "source")


def main() -> None:
    """Command line of the build stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdist", type=Path, required=True)
    parser.add_argument("--arch-list", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    archive = next(args.sdist.glob("vllm-*.tar.gz"))
    with tarfile.open(archive) as file:
        file.extractall(args.sdist)  # noqa: S202 - pip checked its hash
    tree = args.sdist / archive.name.removesuffix(".tar.gz")
    environment = os.environ | {
        "TORCH_CUDA_ARCH_LIST": args.arch_list,
        "MAX_JOBS": str(args.jobs),
        "VLLM_CUTLASS_SRC_DIR": cutlass(),
        "SETUPTOOLS_SCM_PRETEND_VERSION": archive.name.split("-")[1].removesuffix(".tar.gz"),
    }
    line = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v"]
    subprocess.run([*line, "--wheel-dir", str(args.out), str(tree)], check=True, env=environment)


if __name__ == "__main__":
    main()
