"""What a model's layers ask of vLLM's selection code, recorded while they are made without weights.

The layers are made as if ModelOpt had quantised all of them to NVFP4, on the meta device.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_QUANTISED = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "group_size": 16,
    "exclude_modules": ["lm_head"],
    "ignore": ["lm_head"],
}


@dataclass
class Questions:
    """What was asked, each once, in the order of the layers; and what stopped the making of them.

    attention: (backend that vLLM's configuration sets or None, AttentionSelectorConfig, heads).
    experts: (FusedMoEConfig, weights' QuantKey, activations' QuantKey).
    config: the VllmConfig, in which a selection can be repeated.
    """

    attention: list[tuple[Any, Any, Any]] = field(default_factory=list)
    experts: list[tuple[Any, Any, Any]] = field(default_factory=list)
    config: Any = None
    problem: str = ""


_ASKED: list[Questions] = [Questions()]


def prepare() -> None:
    """One process as the whole group of GPUs, and ears at vLLM's selection code."""
    import vllm.v1.attention.selector as selector
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.layers.quantization import modelopt
    from vllm.model_executor.models import registry

    # For each class it would import vLLM again in another process, which lacks the stand-in.
    registry._run_in_subprocess = lambda work: work()
    selector._cached_get_attn_backend = _attention(selector._cached_get_attn_backend)
    modelopt.select_nvfp4_moe_backend = _experts(modelopt.select_nvfp4_moe_backend)
    place = f"file://{tempfile.mkdtemp()}/group"
    with set_current_vllm_config(VllmConfig()):
        parallel_state.init_distributed_environment(1, 0, place, 0, "gloo")
        parallel_state.ensure_model_parallel_initialized(1, 1)


def _attention(real: Any) -> Any:
    def choose(backend: Any, attn_selector_config: Any, num_heads: Any = None, **rest: Any) -> Any:
        asked = (backend, attn_selector_config, num_heads)
        if asked not in _ASKED[-1].attention:
            _ASKED[-1].attention.append(asked)
        try:
            return real(backend, attn_selector_config, num_heads, **rest)
        except ValueError:  # none fits: the layers after this one have questions as well
            return _any_backend(attn_selector_config)

    return choose


def _any_backend(config: Any) -> Any:
    if config.use_mla:
        from vllm.v1.attention.backends.mla.triton_mla import TritonMLABackend

        return TritonMLABackend
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

    return TritonAttentionBackend


def _experts(real: Any) -> Any:
    def choose(config: Any, weight_key: Any, activation_key: Any) -> Any:
        asked = (config, weight_key, activation_key)
        if all(_essence(asked) != _essence(earlier) for earlier in _ASKED[-1].experts):
            _ASKED[-1].experts.append(asked)
        return real(config, weight_key, activation_key)

    return choose


def _essence(asked: tuple[Any, Any, Any]) -> str:
    """A question without what differs between equal layers."""
    config, *keys = asked
    return f"{config.activation} {config.num_experts} {config.hidden_dim} {keys}"


def questions(config: dict[str, Any], cache: str) -> Questions:
    """What the layers of a model ask.

    Args:
        config: its config.json.
        cache: the KV cache's data type, as --kv-cache-dtype takes it.
    """
    asked = Questions()
    _ASKED.append(asked)
    try:
        with tempfile.TemporaryDirectory() as folder:
            quantised = {**config, "quantization_config": _QUANTISED}
            Path(folder, "config.json").write_text(json.dumps(quantised))
            asked.config = _configured(folder, cache)
            _make(asked.config)
    except Exception as error:  # what was asked before it is an answer as well
        asked.problem = f"{type(error).__name__}: {error}"[:500]
    finally:
        _ASKED.pop()
    return asked


def _configured(folder: str, cache: str) -> Any:
    """vLLM's configuration, after the model's own rules and the platform's have changed it."""
    from vllm.config import CacheConfig, ModelConfig, VllmConfig

    model = ModelConfig(
        model=folder, skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True
    )
    return VllmConfig(model_config=model, cache_config=CacheConfig(cache_dtype=cache))


def _make(config: Any) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with set_current_vllm_config(config), torch.device("meta"):
            initialize_model(config)
    finally:
        torch.set_default_dtype(before)
