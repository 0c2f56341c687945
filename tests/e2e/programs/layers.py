"""What vLLM's own code keeps of a sequence for each configuration; runs inside the image, on a CPU.

A model's layers are made on the meta device, without weights, and each reports its KV cache
specification (``AttentionLayerBase.get_kv_cache_spec``). What only a GPU has is replaced here: the
choice of an attention backend, and three answers of the platform.

Usage: layers.py CONFIGS.json; prints a JSON object {model: {"token", "fixed", "error"}} in bytes of
an FP8 cache, one sequence.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import host  # tests/image/proofs


def prepare() -> None:
    """One process as the whole group of GPUs, and a CPU that answers like one."""
    host.share()
    host.prepare(None)
    import vllm.model_executor.layers.attention.attention as attention
    import vllm.model_executor.layers.attention.chunked_local_attention as chunked
    import vllm.model_executor.layers.attention.mla_attention as latent
    import vllm.model_executor.layers.fused_moe.layer as experts
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.platforms.cpu import CpuPlatform

    for module in (attention, chunked, latent):
        module.get_attn_backend = _backend
    # It refuses an FP8 cache, which a GPU has.
    CpuPlatform.check_and_update_config = classmethod(lambda cls, config: None)
    CpuPlatform.num_compute_units = classmethod(lambda cls, device_id=0: 48)
    experts.current_platform = _Cuda(experts.current_platform)
    place = f"file://{tempfile.mkdtemp()}/group"
    with set_current_vllm_config(VllmConfig()):
        parallel_state.init_distributed_environment(1, 0, place, 0, "gloo")
        parallel_state.ensure_model_parallel_initialized(1, 1)


class _Cuda:
    """A platform that says it is like CUDA: FusedMoE takes ungated experts only there."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def is_cuda_alike(self) -> bool:
        """As on a GPU."""
        return True


def _backend(*args: Any, **kwargs: Any) -> Any:
    """Triton's backends: they run on every GPU, and keep the cache's plain layout."""
    if kwargs.get("use_mla"):
        from vllm.v1.attention.backends.mla.triton_mla import TritonMLABackend

        return TritonMLABackend
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

    return TritonAttentionBackend


def state(config: dict[str, Any]) -> dict[str, Any]:
    """Bytes of one more token, and of the fixed states, over all layers."""
    import torch
    from vllm.config import (
        CacheConfig,
        ModelConfig,
        VllmConfig,
        get_layers_from_vllm_config,
        set_current_vllm_config,
    )
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.v1.kv_cache_interface import MambaSpec

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        model = ModelConfig(
            model=folder, skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True
        )
        cache = CacheConfig(cache_dtype="fp8_e4m3", block_size=16)
        made = VllmConfig(model_config=model, cache_config=cache)
        with set_current_vllm_config(made), torch.device("meta"):
            initialize_model(made)
    found = {"token": 0, "fixed": 0}
    for layer in get_layers_from_vllm_config(made, AttentionLayerBase).values():
        spec = layer.get_kv_cache_spec(made)
        if isinstance(spec, MambaSpec):
            found["fixed"] += spec.page_size_bytes
        elif spec is not None:
            found["token"] += spec.page_size_bytes // spec.block_size
    return found


def main() -> None:
    """Prints every model's figures."""
    prepare()
    found = {}
    for name, config in json.loads(Path(sys.argv[1]).read_text()).items():
        try:
            found[name] = state(config)
        except Exception as error:  # the test names the model that vLLM could not make
            found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(found))


main()
