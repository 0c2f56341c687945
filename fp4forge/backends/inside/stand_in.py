"""A CPU that answers vLLM as a GPU of some compute capability would.

What only a GPU has is replaced here and nowhere else: the driver's library (by the toolkit's stub),
the platform (vLLM's own for CUDA, with a made-up device), streams, and memory (PyTorch's meta
device, which allocates nothing).
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_MEMORY = 96 << 30  # bytes
_PROCESSORS = 48  # streaming multiprocessors


class OnMeta(TorchFunctionMode):  # type: ignore[misc] # torch is not here
    """Tensors that would lie on the GPU lie nowhere."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls func with the meta device in place of CUDA's."""
        given = dict(kwargs or {})
        place = given.get("device")
        if place is not None and (type(place) is int or str(place).startswith("cuda")):
            given["device"] = "meta"
        moved = ["meta" if isinstance(a, torch.device) and a.type == "cuda" else a for a in args]
        return func(*moved, **given)


class Stream:
    """A stream, event or driver on which nothing runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class _Versionless(ctypes.CDLL):
    """A library that does not say which CUDA its driver supports.

    The stub says 0, for which CuTe DSL refuses to be imported; without an answer it takes the CUDA
    of its own package (nvidia_cutlass_dsl/dsl_packages/cutlass/_mlir/_mlir_libs/__init__.py).
    """

    def __getattr__(self, name: str) -> Any:
        if name == "cuDriverGetVersion":
            raise AttributeError(name)
        return super().__getattr__(name)


def driver() -> None:
    """Loads the stub of the driver's library, which vLLM's extensions link.

    Raises:
        RuntimeError: the image has no stub.
    """
    wheels = importlib.util.find_spec("nvidia")
    roots = list(wheels.submodule_search_locations or ()) if wheels else []
    for root in [*roots, "/usr/local/cuda"]:
        for pattern in ("cu*/lib/stubs/libcuda.so", "lib*/stubs/libcuda.so"):
            for stub in sorted(Path(root).glob(pattern)):
                ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)
                ctypes.CDLL = _Versionless  # type: ignore[misc]
                return
    raise RuntimeError("the image has no stubs/libcuda.so, so vLLM's extensions cannot be loaded")


def gpu(capability: tuple[int, int]) -> Any:
    """Makes a GPU of that compute capability vLLM's platform; returns the platform's class.

    Call it once in a process, and before vLLM is imported any further: modules ask the platform
    when they are imported.
    """
    _torch(capability)
    _triton(capability)
    import vllm.platforms
    from vllm.platforms import cuda
    from vllm.platforms.interface import DeviceCapability

    answers = {
        "get_device_capability": DeviceCapability(*capability),
        "get_device_name": "stand-in",
        "get_device_uuid": "stand-in",
        "get_device_total_memory": _MEMORY,
        "is_fully_connected": False,
        "device_count": 1,
        "num_compute_units": _PROCESSORS,
        "current_device": 0,
    }
    methods = {name: _answering(value) for name, value in answers.items()}
    made = type("StandIn", (cuda.CudaPlatformBase,), methods)
    vllm.platforms._current_platform = made()
    return made


def _answering(value: Any) -> Any:
    return classmethod(lambda cls, *args, **kwargs: value)


def _torch(capability: tuple[int, int]) -> None:
    properties = SimpleNamespace(
        name="stand-in",
        major=capability[0],
        minor=capability[1],
        total_memory=_MEMORY,
        multi_processor_count=_PROCESSORS,
    )
    for name, value in {
        "_lazy_init": None,
        "current_device": 0,
        "get_device_capability": capability,
        "get_device_properties": properties,
        "current_stream": Stream(),
    }.items():
        setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)
    for name in ("Stream", "Event"):
        setattr(torch.cuda, name, Stream)


def _triton(capability: tuple[int, int]) -> None:
    """Triton's driver for that GPU; vLLM does without Triton if none is active."""
    try:
        from triton import runtime
        from triton.backends import backends
        from triton.backends.compiler import GPUTarget
    except ImportError:
        return
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)  # threads of a warp

    class Driver(Stream):
        def get_current_target(self) -> Any:
            return target

        def get_current_device(self) -> int:
            return 0

    backends["nvidia"].driver.is_active = staticmethod(lambda: True)
    runtime.driver.set_active(Driver())
