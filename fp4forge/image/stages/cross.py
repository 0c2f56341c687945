"""The target's side of a cross compile; plan/cross_toolchain.py says what crosses.

The target's packages are mounted under /target, a folder for each layer of the image. CUDA's are
laid out beside the build platform's own, as NVIDIA's cross packages do it: nvcc finds them by
--target-directory, CMake's FindCUDA and FindCUDAToolkit by the processor's name.
"""

from __future__ import annotations

from pathlib import Path

TARGET = Path("/target")
CUDA = Path("/usr/local/cuda")


def lay_out(cross: dict[str, str]) -> None:
    """Links CUDA's ``targets/<cuda>``, where the driver's stub is, into the mounts."""
    place, mounted = CUDA / "targets" / cross["cuda"], TARGET / "cuda/usr/local/cuda"
    links = {place / "include": mounted / "include", place / "lib64": Path("lib")}
    links |= {place / "lib" / path.name: path for path in mounted.glob("lib/*.so*")}
    for link, where in links.items():
        link.unlink(missing_ok=True)
        link.symlink_to(where)


def flags(cross: dict[str, str], file: Path) -> list[str]:
    """CMake's flags; writes its toolchain file."""
    compiler = cross["triplet"]
    # With "=": sccache 0.15.0 takes a word of its own for an input file, and caches nothing.
    file.write_text(
        f"set(CMAKE_SYSTEM_NAME Linux)\n"
        f"set(CMAKE_SYSTEM_PROCESSOR {cross['processor']})\n"
        f"set(CMAKE_C_COMPILER {compiler}-gcc)\n"
        f"set(CMAKE_CXX_COMPILER {compiler}-g++)\n"
        f"set(CMAKE_CUDA_HOST_COMPILER {compiler}-g++)\n"
        f'set(CMAKE_CUDA_FLAGS_INIT "--target-directory={cross["cuda"]}")\n'
        f"set(CUDAToolkit_ROOT {CUDA})\n"
    )
    torch = next(TARGET.glob("torch/usr/local/lib/python3*/dist-packages/torch"))
    return [
        f"-DCMAKE_TOOLCHAIN_FILE={file}",
        # Named one by one: CMake's search would find the build platform's first.
        f"-DTorch_DIR={torch}/share/cmake/Torch",
        f"-DCaffe2_DIR={torch}/share/cmake/Caffe2",
        f"-DTORCH_LIBRARY={torch}/lib/libtorch.so",
    ]
