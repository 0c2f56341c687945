"""NVFP4 written down independently of vLLM and ModelOpt: quantise, pack, dequantise.

An element is E2M1 (two in a byte, the even index in the low nibble); 16 of a row share a block
scale in FP8 E4M3; a tensor shares one float32 scale. value = element * block scale * scale.
"""

from __future__ import annotations

import torch

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
BLOCK = 16


def quantise(
    weight: torch.Tensor, amax: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed nibbles [out, in/2] uint8, block scales [out, in/16] E4M3, scale (float32, scalar).

    Args:
        weight: [out, in].
        amax: largest magnitude to scale for; layers that are fused share it.
    """
    out, columns = weight.shape
    blocks = weight.float().reshape(out, columns // BLOCK, BLOCK)
    largest = amax or float(blocks.abs().max())
    scale = torch.tensor(largest / (6.0 * 448.0), device=weight.device)
    block_scale = (blocks.abs().amax(-1) / 6.0 / scale).clamp(max=448.0).to(torch.float8_e4m3fn)
    step = block_scale.float() * scale
    ratio = torch.where(step[..., None] > 0, blocks / step[..., None], 0.0)
    middles = ((E2M1[1:] + E2M1[:-1]) / 2).to(ratio.device)
    index = torch.bucketize(ratio.abs(), middles)
    nibbles = (index + 8 * (ratio < 0)).to(torch.uint8).reshape(out, columns)
    packed = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    return packed, block_scale, scale


def dequantise(
    packed: torch.Tensor, block_scale: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """The float32 matrix [out, in] that the parts stand for; NaN for blocks whose scale is NaN."""
    low, high = packed & 0x0F, packed >> 4
    nibbles = torch.stack((low, high), dim=-1).reshape(packed.shape[0], -1).long()
    table = torch.cat((E2M1, -E2M1)).to(packed.device)
    return (
        table[nibbles]
        * block_scale.float().repeat_interleave(BLOCK, dim=1)
        * scale.to(packed.device)
    )
