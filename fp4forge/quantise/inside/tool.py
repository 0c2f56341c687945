"""ModelOpt: its configuration, its quantizers after calibration, its export."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch

from . import repair, say

_E2M1_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf")


def emulate() -> None:
    """Lets a CPU do what ModelOpt's kernels do on a GPU: round to NVFP4 and back.

    ModelOpt has no CPU kernel for blocks with dynamic scales; a search (AWQ) and the quality report
    need one. See _dynamic_block_quantize_impl in quantization/tensor_quant.py.
    """
    from modelopt.torch.quantization import tensor_quant

    original = tensor_quant.dynamic_block_quantize_op

    def rounded(inputs: Any, block: int, amax: Any, bits: int, exponent: int, *scale: int) -> Any:
        if inputs.is_cuda or (bits, exponent, *scale) != (4, 2, 8, 4) or amax is None:
            return original(inputs, block, amax, bits, exponent, *scale)
        return fake_nvfp4(inputs, float(amax.max()), block)

    tensor_quant.dynamic_block_quantize_op = rounded


def fake_nvfp4(inputs: torch.Tensor, amax: float, block: int = 16) -> torch.Tensor:
    """Values as NVFP4 has them.

    Args:
        inputs: [..., columns], columns a multiple of ``block``.
        amax: the largest magnitude; it sets the tensor's scale, amax / (6 * 448).
        block: values that share an E4M3 scale.
    """
    blocks = inputs.float().unflatten(-1, (-1, block))
    scale = amax / (6.0 * 448.0)
    step = (blocks.abs().amax(-1, keepdim=True) / 6.0 / scale).clamp(2**-9, 448.0)
    step = step.to(torch.float8_e4m3fn).float() * scale
    middles = torch.tensor(_E2M1_MIDDLES, device=inputs.device)
    values = torch.tensor(_E2M1, device=inputs.device)
    found = values[torch.bucketize((blocks / step).abs(), middles)] * blocks.sign() * step
    return found.flatten(-2).to(inputs.dtype)


def configuration(request: dict[str, Any]) -> dict[str, Any]:
    """ModelOpt's configuration, with the layers of other formats and those that stay as they are.

    Rules of ``quant_cfg`` apply in order, the last one that matches wins.
    """
    found: dict[str, Any] = copy.deepcopy(getattr(mtq, request["config"]))
    rules = found["quant_cfg"]
    disabled = [rule for rule in rules if rule.get("enable") is False][1:]  # the first: everything
    for pattern, name in request["layers"].items():
        for rule in getattr(mtq, name)["quant_cfg"]:
            kind = rule["quantizer_name"]
            if kind in ("*weight_quantizer", "*input_quantizer") and "cfg" in rule:
                rules.append(copy.deepcopy(rule) | {"quantizer_name": pattern + kind})
    rules += copy.deepcopy(disabled)
    rules += [{"quantizer_name": pattern, "enable": False} for pattern in request["keep"]]
    return found


def enabled(model: Any, kind: str) -> dict[str, Any]:
    """Enabled quantizers by name, with those of fused experts (``..._quantizers.3``)."""
    return {
        name: module
        for name, module in model.named_modules()
        if (name.endswith(kind) or f"{kind}s." in name) and getattr(module, "is_enabled", False)
    }


def repaired(model: Any) -> dict[str, Any]:
    """Makes every amax one that can be exported; returns what was changed.

    Raises:
        QuantiseRefused: a layer, and all that stand in for it, saw only zeros or nothing.
    """
    changed: dict[str, Any] = {"scalar": 0, "substituted": [], "zero_weights": []}
    inputs = {
        n: q for n, q in enabled(model, "input_quantizer").items() if not getattr(q, "_dynamic", 0)
    }
    for quantizer in inputs.values():  # ModelOpt's pull request 1264
        amax = getattr(quantizer, "_amax", None)
        if amax is not None and amax.numel() > 1:
            _set(quantizer, float(amax.max()))
            changed["scalar"] += 1
    found, lost = repair.substitutes({n: _value(q) for n, q in inputs.items()})
    if lost:
        raise say.QuantiseRefused(
            "checkpoint",
            f"no token reached {len(lost)} layers, nor any that could stand in: {lost[0]}",
            "an activation's scale comes from its own statistics, or its siblings'",
            "use more, or other, calibration text; or --keep the layers",
        )
    for name, value in found.items():  # 1265
        _set(inputs[name], value)
        changed["substituted"].append(name)
    weights = enabled(model, "weight_quantizer")
    values = {n: _value(q) for n, q in weights.items() if getattr(q, "_amax", None) is not None}
    found, lost = repair.substitutes(values)
    for name, value in found.items() | {(name, 1.0) for name in lost}:
        _set(weights[name], value)
        changed["zero_weights"].append(name)
    return changed


def _value(quantizer: Any) -> float | None:
    amax = getattr(quantizer, "_amax", None)
    return None if amax is None or not amax.numel() else float(amax.max())


def _set(quantizer: Any, value: float) -> None:
    old = getattr(quantizer, "_amax", None)
    device = old.device if old is not None else None
    if old is not None:
        quantizer.reset_amax()
    quantizer.amax = torch.tensor(value, dtype=torch.float32, device=device)


def export(model: Any, source: Path, folder: Path) -> None:
    """Writes the checkpoint in ModelOpt's layout, and beside it what else the model needs."""
    from modelopt.torch.export import export_hf_checkpoint

    with torch.inference_mode():
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=folder)
    for path in sorted(source.iterdir()):
        there = folder / path.name
        if path.is_file() and not path.name.endswith(_WEIGHTS) and not there.exists():
            shutil.copyfile(path, there)
    for path in folder.iterdir():  # safetensors writes 0600; a server may be another user
        if path.is_file():
            path.chmod(0o644)
