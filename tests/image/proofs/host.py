"""Makes vLLM's real loader run without a GPU, and unpatched files importable beside patched ones.

Used inside the image. What a CPU cannot do is replaced here and nowhere else: the platform, the
choice of a linear and a MoE backend, two activation ops of ``_C`` (whose CUDA code needs the
driver), and the process of its own in which vLLM looks at a model's class, to keep CUDA out of the
first.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Originals(importlib.abc.MetaPathFinder):
    """Imports modules from a folder of unpatched files if it has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """A spec for modules that the folder has."""
        file = self.folder / (fullname.replace(".", "/") + ".py")
        return importlib.util.spec_from_file_location(fullname, file) if file.is_file() else None


# What takes longest to import, and imports no file that a patch changes.
_SHARED = (
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "transformers.image_processing_utils",
    "openai",
    "fastapi",
)


def share() -> None:
    """Imports, and sets up, what several runs of a process can share; each forks after it."""
    os.environ |= {
        "VLLM_USE_NVFP4_CT_EMULATIONS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    for name in _SHARED:
        importlib.import_module(name)


def prepare(originals: Path | None) -> None:
    """Sets a run's process up; call it once, before vLLM is imported any further.

    Raises:
        RuntimeError: a patched file was imported already, and its original would be ignored.
    """
    if originals:
        finder = Originals(originals)
        early = [name for name in sys.modules if finder.find_spec(name, None)]
        if early:
            raise RuntimeError(f"imported before its original could be: {', '.join(early)}")
        sys.meta_path.insert(0, finder)
    _define_ops()
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    vllm.platforms._current_platform = CpuPlatform()
    import vllm.model_executor.layers.fused_moe.oracle.nvfp4 as oracle
    import vllm.model_executor.layers.quantization.modelopt as modelopt
    import vllm.model_executor.models.registry as registry

    # It would import all of vLLM once more for each class, which is most of the proofs' time.
    registry._run_in_subprocess = lambda work: work()

    def choose(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # Its weights keep the checkpoint's layout until they are converted.
        return oracle.NvFp4MoeBackend.VLLM_CUTLASS, None

    modelopt.select_nvfp4_moe_backend = choose
    _emulate_linear(modelopt)


def _emulate_linear(modelopt: Any) -> None:
    """Emulated NVFP4 linear layers, which releases without the variable lack on a CPU."""
    from vllm import envs
    from vllm.model_executor.kernels import linear

    if "VLLM_USE_NVFP4_CT_EMULATIONS" not in envs.environment_variables:
        modelopt.init_nvfp4_linear_kernel = lambda *args, **kwargs: (
            linear.EmulationNvFp4LinearKernel(linear.NvFp4LinearLayerConfig())
        )


_LIBRARIES: list[Any] = []


def _define_ops() -> None:
    """``_C``'s two GELU ops for CPU tensors: (out [n, d], input [n, 2d]) -> ()."""
    import torch

    library = torch.library.Library("_C", "FRAGMENT")
    _LIBRARIES.append(library)  # it lives as long as it is referenced
    for name, form in (("gelu_and_mul", "none"), ("gelu_tanh_and_mul", "tanh")):

        def run(out: Any, x: Any, form: str = form) -> None:
            half = x.shape[-1] // 2
            gate = torch.nn.functional.gelu(x[..., :half].float(), approximate=form)
            out.copy_(gate * x[..., half:].float())

        library.define(f"{name}(Tensor! out, Tensor input) -> ()")
        library.impl(name, run, "CPU")


_STATE: dict[str, Any] = {}


@contextmanager
def configured(folder: Path, **arguments: Any) -> Iterator[Any]:
    """vLLM's configuration for a checkpoint, set as the current one; one process, gloo.

    arguments go to vLLM's EngineArgs.

    Raises:
        Whatever vLLM raises for the checkpoint.
    """
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs

    chosen = {"skip_tokenizer_init": True, "quantization": "modelopt", **arguments}
    config = EngineArgs(
        model=str(folder), max_model_len=64, enforce_eager=True, dtype="bfloat16", **chosen
    ).create_engine_config()
    with set_current_vllm_config(config):
        if not _STATE:
            _STATE["folder"] = tempfile.mkdtemp(prefix="gloo-")
            init_distributed_environment(1, 0, f"file://{_STATE['folder']}/store", 0, "gloo")
            initialize_model_parallel(1, 1)
        yield config


def build(config: Any) -> Any:
    """The model with empty parameters."""
    import torch
    from vllm.model_executor.model_loader.utils import initialize_model

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        config.compilation_config.static_forward_context.clear()
        return initialize_model(config)
    finally:
        torch.set_default_dtype(before)


def tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Names and tensors of a checkpoint, as vLLM's loader gets them."""
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            yield name, file.get_tensor(name)
