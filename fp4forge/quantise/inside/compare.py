"""How far NVFP4 is from BF16: each layer's weights, and the model's answers on held-out text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

# E2M1, by the 3 low bits of a nibble; the fourth is the sign (OCP Microscaling Formats, 5.3.3).
_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)$")


class _Files:
    """A checkpoint's tensors by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(str(path), framework="pt")
            self.places |= dict.fromkeys(file.keys(), file)

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def get(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self.places[name].get_tensor(name)
        return found

    def rows(self, name: str, number: int) -> torch.Tensor:
        found: torch.Tensor = self.places[name].get_slice(name)[number]
        return found


def layers(source: Path, folder: Path) -> dict[str, float]:
    """Relative error by quantised layer: the norm of the difference over that of the weights."""
    before, after = _Files(source), _Files(folder)
    found: dict[str, float] = {}
    for name in after.places:
        module = name.removesuffix(".weight_scale")
        if module == name:
            continue
        wanted = _original(before, module)
        if wanted is None:
            continue
        have = _plain(after, module)
        found[module] = float((have - wanted.float()).norm() / wanted.float().norm().clamp(1e-30))
    return found


def _original(files: _Files, module: str) -> torch.Tensor | None:
    if f"{module}.weight" in files:
        return files.get(f"{module}.weight")
    match = _EXPERT.match(module)
    if not match:
        return None
    base, number, part = match[1], int(match[2]), match[3]
    if part == "down_proj" and f"{base}.down_proj" in files:
        return files.rows(f"{base}.down_proj", number)
    if f"{base}.gate_up_proj" in files:
        gate, up = files.rows(f"{base}.gate_up_proj", number).chunk(2)
        return gate if part == "gate_proj" else up
    return None


def _plain(files: _Files, module: str) -> torch.Tensor:
    weight, scale = files.get(f"{module}.weight"), files.get(f"{module}.weight_scale").float()
    if weight.dtype != torch.uint8:  # FP8
        return (
            weight.float() * scale.reshape(-1, 1) if scale.numel() > 1 else weight.float() * scale
        )
    scale = scale * files.get(f"{module}.weight_scale_2").float()
    nibbles = torch.stack((weight & 15, weight >> 4), -1).flatten(-2).long()
    values = _VALUES[nibbles & 7] * (1 - 2 * (nibbles >> 3).float())
    return (values.reshape(*scale.shape, -1) * scale[..., None]).flatten(-2)


def answers(model: Any, samples: torch.Tensor) -> dict[str, Any]:
    """Perplexity of both, KL divergence and top-1 agreement, over held-out samples.

    The same model answers twice: with its quantizers off, and with them on.

    Returns:
        Perplexities, mean KL in nats, agreement 0 to 1, and both of these by position.
    """
    device = next(model.parameters()).device
    length = samples.shape[1] - 1
    losses, kl, same = [0.0, 0.0], torch.zeros(length), torch.zeros(length)
    on = [m for m in model.modules() if getattr(m, "is_enabled", None) is True]
    for row in samples:
        ids = row[None].to(device)
        logs = []
        for quantised in (False, True):
            for quantizer in on:
                (quantizer.enable if quantised else quantizer.disable)()
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            logs.append(logits.log_softmax(-1).cpu())
        for place, log in enumerate(logs):
            losses[place] -= float(log.gather(1, row[1:, None]).mean())
        kl += (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
        same += (logs[0].argmax(-1) == logs[1].argmax(-1)).float()
    number = len(samples)
    plain, quant = (float(torch.tensor(loss / number).exp()) for loss in losses)
    kl, same = kl / number, same / number
    return {
        "samples": number,
        "perplexity_bf16": plain,
        "perplexity_nvfp4": quant,
        "kl": float(kl.mean()),
        "agreement": float(same.mean()),
        "kl_by_position": _binned(kl),
        "agreement_by_position": _binned(same),
    }


def _binned(values: torch.Tensor, bins: int = 16) -> list[tuple[int, float]]:
    """Means over equal parts: the last position of each, and its mean."""
    found, end = [], 0
    for part in values.chunk(bins):
        end += len(part)
        found.append((end, float(part.mean())))
    return found


def declared(folder: Path) -> list[str]:
    """What the checkpoint's declaration excludes."""
    content = json.loads((folder / "hf_quant_config.json").read_text())
    return list(content["quantization"].get("exclude_modules") or [])
