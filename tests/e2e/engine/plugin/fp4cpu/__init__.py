"""A plugin of vLLM that lets NVFP4 experts run on a CPU, for tests.

vLLM's own emulation dequantises weights and rounds activations as it does on a GPU. Its last step
is Triton's grouped GEMM, which a CPU lacks: a loop of matrix products takes its place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.fused_moe.experts import nvfp4_emulation_moe as emulation
    from vllm.v1.worker import workspace

    if not workspace.is_workspace_manager_initialized():  # the CPU worker makes none
        workspace.init_workspace_manager(torch.device("cpu"))
    experts = emulation.Nvfp4QuantizationEmulationTritonExperts
    experts._supports_current_device = staticmethod(lambda: True)
    experts.__mro__[1].apply = _apply


def _activated(kind: str, both: torch.Tensor) -> torch.Tensor:
    """[tokens, 2 width] -> [tokens, width]."""
    gate, up = both.chunk(2, dim=-1)
    if kind == "silu":
        return functional.silu(gate) * up
    return functional.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none") * up


def _apply(
    self: Any,
    *,
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: Any,
    apply_router_weight_on_input: bool,
    **_: Any,
) -> None:
    """``TritonExperts.apply`` by torch.

    hidden_states [tokens, hidden], w1 [experts, 2 width, hidden], w2 [experts, hidden, width].
    """
    from vllm.model_executor.layers.fused_moe.utils import moe_kernel_quantize_input

    total = torch.zeros_like(output, dtype=torch.float32)
    for expert in range(w1.shape[0]):
        token, slot = (topk_ids == expert).nonzero(as_tuple=True)
        if not token.numel():
            continue
        hidden = _activated(activation.value, hidden_states[token] @ w1[expert].T)
        hidden, _scale = moe_kernel_quantize_input(
            A=hidden,
            A_scale=self.quant_config.a2_gscale,
            quant_dtype="nvfp4",
            per_act_token_quant=False,
            quantization_emulation=True,
        )
        part = (hidden @ w2[expert].T).float()
        if not apply_router_weight_on_input:
            part = part * topk_weights[token, slot, None]
        total.index_add_(0, token, part)
    output.copy_(total)
