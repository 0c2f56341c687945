"""vLLM's FP4 and FP8 kernels on this GPU against float32; prints one JSON object.

    python3 kernels.py

Each check gives a relative error (Frobenius norm) and its tolerance, or why it was skipped.

Tolerances. Weight-only kernels (Marlin) multiply bfloat16 by exact NVFP4 values and add in
float32: what is left is the rounding of the result to bfloat16 (2**-9), and for the MoE that of
two results between: 0.01. FP8 products are exact, Hopper's tensor cores add with about 14 bits:
0.01. NVFP4 GEMMs are held to inputs quantised by this suite: ties that round the other way move
one element in thousands by a step: 0.03.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from nvfp4 import dequantise, quantise

HIDDEN, WIDTH, EXPERTS, TOP = 2816, 704, 16, 4  # the reference's layer, fewer experts
WEIGHT_ONLY, FP8, FP4 = 0.01, 0.01, 0.03


def relative(have: torch.Tensor, want: torch.Tensor) -> float:
    """Relative error; infinite where anything is not finite."""
    error = (have.float() - want.float()).norm() / want.float().norm().clamp(min=1e-9)
    return float(error) if bool(torch.isfinite(have.float()).all()) else float("inf")


def matrix(rows: int, columns: int, kind: str = "random") -> torch.Tensor:
    """A float32 matrix on the GPU: random, with blocks of zeros, or with the largest scales."""
    made = torch.randn(rows, columns, device="cuda") * 0.02
    if kind == "zero blocks":
        made.view(rows, -1, 16)[:, ::3] = 0.0
    if kind == "max scales":
        made.view(rows, -1, 16)[:, ::5] *= 400.0
    return made


def marlin_linear(kind: str) -> tuple[float, float]:
    """Marlin's NVFP4 linear layer, [2816 -> 704]."""
    from vllm.model_executor.layers.quantization.utils import marlin_utils_fp4 as marlin

    packed, block, scale = quantise(matrix(WIDTH, HIDDEN, kind))
    weights = dequantise(packed, block, scale)  # now: the layer's preparation writes in place
    layer = torch.nn.Module()
    layer.output_size_per_partition, layer.input_size_per_partition = WIDTH, HIDDEN
    layer.params_dtype = torch.bfloat16
    for name, value in (
        ("weight", packed),
        ("weight_scale", block),
        ("weight_global_scale", scale.cuda()),
    ):
        setattr(layer, name, torch.nn.Parameter(value.cuda(), requires_grad=False))
    marlin.prepare_fp4_layer_for_marlin(layer)
    x = torch.randn(33, HIDDEN, device="cuda", dtype=torch.bfloat16)
    out = marlin.apply_fp4_marlin_linear(
        x,
        layer.weight,
        layer.weight_scale,
        layer.weight_global_scale,
        getattr(layer, "workspace", None),  # newer releases make one for each call
        WIDTH,
        HIDDEN,
    )
    return relative(out, x.float() @ weights.T), WEIGHT_ONLY


def experts(kind: str) -> SimpleNamespace:
    """Quantised experts, their scale shared by gate and up, and their float32 values."""
    made = SimpleNamespace(
        w13=[],
        w13_scale=[],
        w13_scale_2=[],
        w2=[],
        w2_scale=[],
        w2_scale_2=[],
        float13=[],
        float2=[],
    )
    for _ in range(EXPERTS):
        for name, shape in (("13", (2 * WIDTH, HIDDEN)), ("2", (HIDDEN, WIDTH))):
            packed, block, scale = quantise(matrix(*shape, kind))
            for field, value in (
                (f"w{name}", packed),
                (f"w{name}_scale", block),
                (f"w{name}_scale_2", scale.cuda()),
                (f"float{name}", dequantise(packed, block, scale)),
            ):
                getattr(made, field).append(value)
    for field, values in vars(made).items():
        setattr(made, field, torch.stack(values))
    return made


def routed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs [37, hidden], routing weights and expert ids [37, top]."""
    x = torch.randn(37, HIDDEN, device="cuda", dtype=torch.bfloat16)
    weights, ids = torch.randn(37, EXPERTS, device="cuda").softmax(-1).topk(TOP)
    return x, (weights / weights.sum(-1, keepdim=True)).float(), ids.to(torch.int32)


def moe_reference(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, made: SimpleNamespace
) -> torch.Tensor:
    """The MoE layer in float32 with tanh-GELU, the activation rounded as a bfloat16 layer does."""
    out = torch.zeros(x.shape, device="cuda")
    for token in range(x.shape[0]):
        for slot in range(TOP):
            e = int(ids[token, slot])
            gate_up = made.float13[e] @ x[token].float()
            gate, up = gate_up[:WIDTH], gate_up[WIDTH:]
            act = torch.nn.functional.gelu(gate, approximate="tanh") * up
            out[token] += weights[token, slot] * (made.float2[e] @ act)
    return out


def gelu_tanh() -> Any:
    """vLLM's activation, tanh form: needs the patch gemma4-gelu-tanh."""
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    return MoEActivation.from_str("gelu_tanh")


def marlin_moe(kind: str) -> tuple[float, float]:
    """Marlin's NVFP4 MoE with tanh-GELU, 704 wide."""
    from vllm.model_executor.layers.quantization.utils import marlin_utils_fp4 as marlin
    from vllm.scalar_type import scalar_types

    try:
        from vllm.model_executor.layers.fused_moe.experts.marlin_moe import fused_marlin_moe
    except ImportError:  # where older releases have it
        from vllm.model_executor.layers.fused_moe.fused_marlin_moe import fused_marlin_moe

    made = experts(kind)
    layer = SimpleNamespace(
        num_experts=EXPERTS,
        hidden_size=HIDDEN,
        params_dtype=torch.bfloat16,
        intermediate_size_per_partition=WIDTH,
    )
    w13, s13, g13, w2, s2, g2 = marlin.prepare_nvfp4_moe_layer_for_marlin(
        layer,
        made.w13,
        made.w13_scale,
        made.w13_scale_2,
        made.w2,
        made.w2_scale,
        made.w2_scale_2,
        is_act_and_mul=True,
    )
    x, weights, ids = routed()
    out = fused_marlin_moe(
        x,
        w13,
        w2,
        None,
        None,
        s13,
        s2,
        weights,
        ids,
        scalar_types.float4_e2m1f.id,
        global_num_experts=EXPERTS,
        activation=gelu_tanh(),
        global_scale1=g13,
        global_scale2=g2,
        workspace=getattr(layer, "workspace", None),
    )
    return relative(out, moe_reference(x, weights, ids, made)), WEIGHT_ONLY


def activation() -> tuple[float, float]:
    """The CUDA op gelu_tanh_and_mul against torch."""
    import vllm._custom_ops  # noqa: F401 - loads _C

    x = torch.randn(64, 2 * WIDTH, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(64, WIDTH, device="cuda", dtype=torch.bfloat16)
    torch.ops._C.gelu_tanh_and_mul(out, x)
    gate, up = x.float().chunk(2, dim=-1)
    return relative(out, torch.nn.functional.gelu(gate, approximate="tanh") * up), WEIGHT_ONLY


def fp8_scaled_mm() -> tuple[float, float]:
    """FP8 scaled_mm, per-tensor scales."""
    from vllm import _custom_ops as ops

    a, b = matrix(48, HIDDEN) * 50, matrix(WIDTH * 2, HIDDEN)
    scale_a, scale_b = a.abs().max() / 448.0, b.abs().max() / 448.0
    qa, qb = (a / scale_a).to(torch.float8_e4m3fn), (b / scale_b).to(torch.float8_e4m3fn)
    out = ops.cutlass_scaled_mm(qa, qb.t(), scale_a.view(1, 1), scale_b.view(1, 1), torch.bfloat16)
    return relative(out, (qa.float() * scale_a) @ (qb.float() * scale_b).T), FP8


def fp4_scaled_mm(kind: str) -> tuple[float, float]:
    """scaled_fp4_quant and cutlass_scaled_fp4_mm (Blackwell only)."""
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.quantization.utils.nvfp4_utils import swizzle_blockscale

    packed, block, scale = quantise(matrix(WIDTH, HIDDEN, kind))
    x = torch.randn(64, HIDDEN, device="cuda", dtype=torch.bfloat16)
    seen = quantise(x.float())
    x_fp4, x_scale = ops.scaled_fp4_quant(x, 1.0 / seen[2].cuda())
    alpha = (seen[2] * scale).cuda()
    out = ops.cutlass_scaled_fp4_mm(
        x_fp4, packed, x_scale, swizzle_blockscale(block), alpha, torch.bfloat16
    )
    return relative(out, dequantise(*seen) @ dequantise(packed, block, scale).T), FP4


def fp4_grouped_mm(kind: str) -> tuple[float, float]:
    """The grouped FP4 GEMM of the CUTLASS MoE (Blackwell only), inputs quantised on the way."""
    from vllm.model_executor.layers.fused_moe.experts.cutlass_moe import run_cutlass_moe_fp4
    from vllm.model_executor.layers.quantization.utils.nvfp4_utils import swizzle_blockscale

    made = experts(kind)
    x, weights, ids = routed()
    one = torch.ones(EXPERTS, device="cuda")
    # One scale each for the inputs of both GEMMs, from what they will be.
    in1 = float(x.abs().max()) / (6.0 * 448.0)
    want = moe_reference(x, weights, ids, made)
    act = max(float((made.float13[e] @ x.float().T).abs().max()) ** 2 for e in range(EXPERTS))
    in2 = act / (6.0 * 448.0)
    out = torch.empty_like(x)
    work = [
        torch.empty(37 * TOP * 2 * max(WIDTH, HIDDEN), device="cuda", dtype=x.dtype) for _ in "12"
    ]
    run_cutlass_moe_fp4(
        out,
        x,
        one / in1,
        made.w13,
        swizzle_blockscale(made.w13_scale),
        made.w13_scale_2 * in1,
        one / in2,
        made.w2,
        swizzle_blockscale(made.w2_scale),
        made.w2_scale_2 * in2,
        weights,
        ids,
        gelu_tanh(),
        *work,
        37,
        WIDTH,
        HIDDEN,
        EXPERTS,
        x.device,
    )
    # Inputs of both GEMMs are FP4: two quantisations of about 10 % each.
    return relative(out, want), 0.25


KINDS = ("random", "zero blocks", "max scales")
CHECKS: tuple[tuple[str, int, Callable[[], tuple[float, float]]], ...] = (
    *((f"Marlin NVFP4 linear, {k}", 80, lambda k=k: marlin_linear(k)) for k in KINDS),
    *((f"Marlin NVFP4 MoE 704 wide, {k}", 80, lambda k=k: marlin_moe(k)) for k in KINDS),
    ("gelu_tanh_and_mul", 80, activation),
    ("FP8 scaled_mm", 89, fp8_scaled_mm),
    *((f"NVFP4 scaled_mm, {k}", 100, lambda k=k: fp4_scaled_mm(k)) for k in KINDS),
    *((f"NVFP4 grouped MoE GEMM, {k}", 100, lambda k=k: fp4_grouped_mm(k)) for k in KINDS),
)


def main() -> None:
    """Runs every check that this GPU has the hardware for."""
    major, minor = torch.cuda.get_device_capability()
    results = []
    for name, least, check in CHECKS:
        torch.manual_seed(0)
        entry: dict[str, Any] = {"name": name}
        if major * 10 + minor < least:
            entry["skipped"] = f"needs compute capability {least / 10}, this is {major}.{minor}"
        else:
            try:
                entry["error"], entry["tolerance"] = check()
            except Exception as error:  # the error is the result
                entry["failed"] = f"{type(error).__name__}: {error}"[:400]
        results.append(entry)
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name(),
                "capability": f"{major}.{minor}",
                "torch": torch.__version__,
                "checks": results,
            }
        )
    )


if __name__ == "__main__":
    main()
