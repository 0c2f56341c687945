"""The schemes that a layer may be quantised in: which tensors each has, of what type and shape.

Read from vllm/model_executor/layers/quantization of 0.19.1, 0.20.2 and 0.33.0: modelopt.py
(create_weights of each method), compressed_tensors/schemes, fp8.py (weight_scale_inv is DeepSeek's
name), and models/gpt_oss.py for MXFP4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fp4forge.checkpoint.findings import CollectedFindings
from fp4forge.checkpoint.tensors import Tensor

Shape = tuple[int, ...]
Parts = dict[str, Tensor]
Fits = Callable[[Shape, Shape], bool]  # the weight's logical shape, the part's own

PLAIN = frozenset(("BF16", "F16", "F32", "F64"))
FLOATS = ("F32", "BF16", "F16")
SCALAR, BLOCKS, ARRAY, NOTHING = "scalar", "blocks", "array", ""  # how a part's values are read


@dataclass(frozen=True)
class SchemePart:
    """A tensor beside the weights: types, shape, the finding if it is not there, its values."""

    dtypes: tuple[str, ...]
    fits: Fits
    absent: str = "missing-part"  # empty: it may be absent
    values: str = NOTHING


@dataclass(frozen=True)
class QuantisationScheme:
    """One way to quantise a layer [out, in]."""

    name: str
    weight: str  # the part that has the weights
    dtype: str
    parts: Mapping[str, SchemePart] = field(repr=False)
    packed: int = 1  # weights in a byte
    fused: bool = False  # all experts of a layer in one tensor [experts, out, in/32, 16]
    patched: bool = False  # ModelOpt's NVFP4, whose NaN scales a patch zeroes

    def logical(self, weight: Tensor) -> Shape:
        """The shape before packing."""
        return (*weight.shape[:-1], weight.shape[-1] * self.packed)


def _is_scalar(_: Shape, shape: Shape) -> bool:
    return math.prod(shape) == 1 and len(shape) < 3


def _columns(weight: Shape, shape: Shape) -> bool:
    return shape == weight[-1:]


def _channels(weight: Shape, shape: Shape) -> bool:
    return shape in (weight[:1], (weight[0], 1))


def _group_scales(size: int) -> Fits:
    def fits(weight: Shape, shape: Shape) -> bool:
        return weight[-1] % size == 0 and shape == (*weight[:-1], weight[-1] // size)

    return fits


def _tiles(rows: int, columns: int) -> Fits:
    def fits(weight: Shape, shape: Shape) -> bool:
        down, across = -(-weight[0] // rows), -(-weight[1] // columns)
        return shape in ((down, across), (down, 1, across, 1))

    return fits


def _any_of(*rules: Fits) -> Fits:
    return lambda weight, shape: any(rule(weight, shape) for rule in rules)


def _beside_weight(weight: Shape, shape: Shape) -> bool:
    return len(weight) == 4 and weight[-1] == 16 and shape == weight[:-1]


def _one_scalar(absent: str = "missing-part", dtypes: tuple[str, ...] = ("F32",)) -> SchemePart:
    return SchemePart(dtypes, _is_scalar, absent, SCALAR)


_INPUT = _one_scalar("", FLOATS)  # W4A16 and FP8 with dynamic activations have none
_E8M0 = ("U8", "F8_E8M0")
_NVFP4 = {
    "weight_scale": SchemePart(("F8_E4M3",), _group_scales(16), values=BLOCKS),
    "weight_scale_2": _one_scalar(),
    "input_scale": _one_scalar("no-input-scale"),
    "pre_quant_scale": SchemePart(FLOATS, _columns, ""),
}
_PACKED = {
    "weight_scale": SchemePart(("F8_E4M3",), _group_scales(16), values=BLOCKS),
    "weight_global_scale": _one_scalar(),
    "input_global_scale": _one_scalar("no-input-global-scale"),
}


def _fp8(
    name: str, scale: str, fits: Fits, dtypes: tuple[str, ...] = ("F32",)
) -> QuantisationScheme:
    values = SCALAR if fits is _is_scalar else ARRAY if "F32" in dtypes else NOTHING
    parts = {scale: SchemePart(dtypes, fits, values=values), "input_scale": _INPUT}
    return QuantisationScheme(name, "weight", "F8_E4M3", parts)


def fp8_block(rows: int, columns: int) -> QuantisationScheme:
    """FP8 with one scale for each block of weights, as DeepSeek and Qwen publish it."""
    return _fp8("FP8 block", "weight_scale_inv", _tiles(rows, columns), (*FLOATS, "F8_E8M0"))


_ALL = (
    QuantisationScheme("NVFP4", "weight", "U8", _NVFP4, packed=2, patched=True),
    QuantisationScheme("NVFP4_AWQ", "weight", "U8", _NVFP4, packed=2, patched=True),
    QuantisationScheme(
        "W4A16_NVFP4", "weight", "U8", _NVFP4 | {"input_scale": _INPUT}, 2, patched=True
    ),
    _fp8("FP8", "weight_scale", _is_scalar, FLOATS),
    _fp8("FP8_PER_CHANNEL_PER_TOKEN", "weight_scale", _channels, FLOATS),
    _fp8("FP8_PB_WO", "weight_scale", _tiles(128, 128), FLOATS),
    _fp8("MXFP8", "weight_scale", _group_scales(32), _E8M0),
    fp8_block(128, 128),
    QuantisationScheme(
        "MXFP4", "blocks", "U8", {"scales": SchemePart(_E8M0, _beside_weight)}, fused=True
    ),
    QuantisationScheme("NVFP4 packed", "weight_packed", "U8", _PACKED, packed=2),
    QuantisationScheme(
        "NVFP4 packed, W4A16",
        "weight_packed",
        "U8",
        _PACKED | {"input_global_scale": _one_scalar("")},
        packed=2,
    ),
    QuantisationScheme(
        "MXFP4 packed",
        "weight_packed",
        "U8",
        {"weight_scale": SchemePart(_E8M0, _group_scales(32))},
        packed=2,
    ),
    _fp8(
        "FP8 compressed", "weight_scale", _any_of(_is_scalar, _channels, _tiles(128, 128)), FLOATS
    ),
)
SCHEMES = {scheme.name: scheme for scheme in _ALL}
_ALIASES = {"FP8_BLOCK_SCALES": "FP8_PB_WO"}  # 0.33.0's modelopt.py takes both
_KV = ("k_scale", "v_scale")
_NAMES = frozenset(part for scheme in _ALL for part in (scheme.weight, *scheme.parts))
_FOREIGN = frozenset(
    ("qweight", "qzeros", "g_idx", "weight_g_idx", "weight_zero_point", "weight_shape", "absmax")
)
_FUSED = re.compile(r"^(.+\.experts\.\w+?_proj)_(blocks|scales|weight\w*|input_scale)$")
_FUSED_PLAIN = re.compile(r"\.experts\.\w+_proj$")


def modelopt(algo: str) -> QuantisationScheme | None:
    """ModelOpt's scheme of that name."""
    found = SCHEMES.get(_ALIASES.get(algo, algo))
    return found if found and found.weight == "weight" and " " not in found.name else None


def modules(found: Mapping[str, Tensor]) -> tuple[dict[str, Parts], dict[str, Parts]]:
    """The layers with their parts by name, and the scales of the KV cache by attention."""
    layers: dict[str, Parts] = {}
    caches: dict[str, Parts] = {}
    for name, tensor in found.items():
        module, _, part = name.rpartition(".")
        if part in _KV:
            module = re.sub(r"\.(?:attn|[kv]_proj|qkv_proj)$", "", module)
            caches.setdefault(module, {})[part] = tensor
        elif part in _NAMES and module:
            layers.setdefault(module, {})[part] = tensor
        elif ".experts." in name:
            fused = _FUSED.match(name)
            if fused and fused[2] in _NAMES:
                layers.setdefault(fused[1], {})[fused[2]] = tensor
            elif _FUSED_PLAIN.search(name):
                layers.setdefault(name, {})["weight"] = tensor
    return layers, caches


def quantised(parts: Parts) -> bool:
    """Whether a layer's tensors are those of a quantised one."""
    weight = parts.get("weight")
    if weight is None or len(parts) > 1:
        return parts.keys() != {"weight"}
    return weight.dtype in ("U8", "I8") or weight.dtype.startswith(("F4", "F6", "F8"))


def foreign(name: str) -> bool:
    """Whether a tensor is a part of a scheme that is not among these: GPTQ, AWQ, bitsandbytes."""
    return name.rpartition(".")[2] in _FOREIGN


def seen(parts: Parts) -> QuantisationScheme | None:
    """The scheme that a layer's tensors have, whatever the configuration says."""
    scale = parts.get("weight_scale")
    if "blocks" in parts or "scales" in parts:
        return SCHEMES["MXFP4"]
    if "weight_packed" in parts:
        if scale is None or scale.dtype in _E8M0:
            return SCHEMES["MXFP4 packed"]
        weights_only = "input_global_scale" not in parts
        return SCHEMES["NVFP4 packed, W4A16" if weights_only else "NVFP4 packed"]
    weight = parts.get("weight")
    if "weight_scale_inv" in parts:
        return SCHEMES["FP8 block"]
    if "weight_scale_2" in parts or (weight and weight.dtype == "U8"):
        if "pre_quant_scale" in parts:
            return SCHEMES["NVFP4_AWQ"]
        return SCHEMES["NVFP4" if "input_scale" in parts else "W4A16_NVFP4"]
    if weight is None or weight.dtype != "F8_E4M3" or len(weight.shape) != 2:
        return None
    if scale is None or _is_scalar((), scale.shape):
        return SCHEMES["FP8"]
    if scale.dtype in _E8M0:
        return SCHEMES["MXFP8"]
    return SCHEMES[
        "FP8_PER_CHANNEL_PER_TOKEN" if _channels(weight.shape, scale.shape) else "FP8_PB_WO"
    ]


def check(module: str, parts: Parts, scheme: QuantisationScheme, found: CollectedFindings) -> None:
    """Compares a layer's tensors with its scheme."""
    weight = parts.get(scheme.weight)
    other = seen(parts)
    if weight is None or weight.dtype != scheme.dtype:
        same = other is None or (other.weight, other.dtype) == (scheme.weight, scheme.dtype)
        if not same and other:
            found.add("other-scheme", f"{module}: {scheme.name} declared, {other.name} there")
            return
    missing = [scheme.weight] if weight is None else []
    missing += [
        name
        for name, part in scheme.parts.items()
        if name not in parts and part.absent == "missing-part"
    ]
    if missing:  # a layer that is broken anyway: one finding is enough
        missing += [
            name
            for name, part in scheme.parts.items()
            if name not in parts and part.absent not in ("", "missing-part")
        ]
        found.add("missing-part", f"{module}: {', '.join(missing)}")
    for name, part in scheme.parts.items():
        if name not in parts and part.absent and not missing and part.absent != "missing-part":
            found.add(part.absent, module)
    if weight is not None:
        _check_shapes(module, parts, scheme, weight, found)


def _check_shapes(
    module: str, parts: Parts, scheme: QuantisationScheme, weight: Tensor, found: CollectedFindings
) -> None:
    dimensions = 4 if scheme.fused else 2
    if len(weight.shape) == 3 and not scheme.fused:
        return  # fused experts, which models lay out in different ways
    if len(weight.shape) != dimensions or weight.dtype != scheme.dtype:
        found.add("wrong-shape", f"{module}: {_tensor_described(scheme.weight, weight)}")
        return
    logical = scheme.logical(weight)
    for name, part in scheme.parts.items():
        tensor = parts.get(name)
        if tensor is None:
            continue
        if tensor.dtype not in part.dtypes or not part.fits(logical, tensor.shape):
            described = (
                f"{_tensor_described(scheme.weight, weight)}, {_tensor_described(name, tensor)}"
            )
            found.add("wrong-shape", f"{module}: {described}")


def _tensor_described(name: str, tensor: Tensor) -> str:
    return f"{name} {tensor.dtype} {list(tensor.shape)}"
