"""Loads vLLM's extensions inside the image, without a GPU; prints what they say of FP4.

    python3 extensions.py FOLDER

Every symbol is resolved, as where Python imports them. They name the driver's library, which comes
with a GPU: without one, a library takes its place whose functions say so. The output is a
JSON object: for each compute capability, as vLLM writes it, whether CUTLASS's FP4 GEMM is there.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE, cuda.h
CAPABILITIES = (90, 100, 103, 120, 121)


def driver(extensions: list[Path], folder: str) -> str:
    """The driver's library, or one in folder that has the functions which the extensions call."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        listed = ["nm", "-D", "--undefined-only", *map(str, extensions)]
        said = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
        names = set(re.findall(r" U (cu[A-Z]\w*)$", said, re.M))
        source = "".join(f'extern "C" int {name}() {{ return {NO_DEVICE}; }}\n' for name in names)
        line = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-Wl,-soname,libcuda.so.1"]
        made = f"{folder}/libcuda.so.1"
        subprocess.run([*line, "-o", made], input=source, check=True, text=True)
        return made
    return "libcuda.so.1"


def main() -> None:
    """Command line."""
    extensions = sorted(Path(sys.argv[1], "vllm").rglob("*.abi3.so"))
    with tempfile.TemporaryDirectory() as folder:
        ctypes.CDLL(driver(extensions, folder))
        for path in extensions:
            ctypes.CDLL(str(path))
    supports = torch.ops._C.cutlass_scaled_mm_supports_fp4
    print(json.dumps({c: bool(supports(c)) for c in CAPABILITIES}))


if __name__ == "__main__":
    main()
