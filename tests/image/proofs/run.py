"""Proves the patches inside the image, on a CPU; prints one JSON object, results by run.

    python3 run.py NAME[:FOLDER[:CASE]] ...

Each run proves them once: on the files as they are, or with the originals in FOLDER in place of the
patched ones, where each record's symptom must show; of the checkpoints only those named CASE.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

# Before torch: the tensors are tiny, and several threads would only wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from chat import batch_chat
from checkpoint import DENSE, TINY, Case, Tensors, float_weights, write
from host import build, configured, prepare, share, tensors
from nvfp4 import dequantise, quantise

# A parameter of the fused experts, in the module trees of all releases.
EXPERT = re.compile(r"(.*?)\.(?:moe\.)?experts\.(?:[a-z_]+\.)*((?:w13|w2)_\w+)")
SENTINEL = 0xA5  # in every byte of every parameter before loading
EXPERTS = 8  # of TINY
CASES = (
    Case("native"),
    Case("moe_prefix", moe_prefix=True),
    Case("multimodal", multimodal=True),
    Case("multimodal_moe_prefix", multimodal=True, moe_prefix=True),
    Case(
        "nan_scales",
        nan_scales=(
            ("self_attn.o_proj.weight_scale", 0x7F),
            ("experts.3.gate_proj.weight_scale", 0xFF),
            ("experts.5.down_proj.weight_scale", 0x7F),
        ),
    ),
    Case("no_input_scale", no_input_scale=(2, 6)),
    Case("zero_input_scale", input_scale={1: 0.0}),
    Case("negative_input_scale", input_scale={4: -0.5}),
    Case("no_dense_input_scale", no_dense_input_scale="layers.1.mlp.down_proj"),
    Case("awq_dense", algo="NVFP4_AWQ", awq_dense=True, dense=True),
    Case("awq_experts", algo="NVFP4_AWQ", awq_dense=True, awq_experts=True),
)


def checkpoint_name(name: str) -> str:
    """transformers' name of a module or parameter of vLLM's multimodal model."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1)
    return "model." + name if name.startswith(("vision_tower.", "embed_vision.")) else name


def expected(name: str, t: Tensors, layers: int) -> torch.Tensor | None:
    """What a parameter of vLLM's model must hold, from the checkpoint's tensors."""
    name = checkpoint_name(name)
    old = name.replace(".moe.per_expert_scale", ".router.per_expert_scale")
    for fused, parts in (("qkv_proj", "qkv"), ("gate_up_proj", ("gate_proj", "up_proj"))):
        if f".{fused}." in name:
            names = [f"{part}_proj" for part in parts] if parts == "qkv" else parts
            found = [t.get(name.replace(fused, part)) for part in names]
            if found[-1] is None:  # k_eq_v: the values are the keys
                found[-1] = found[-2]
            return _join(name, [f for f in found if f is not None])
    if match := EXPERT.fullmatch(name):
        base, kind = f"{match[1]}.experts.", match[2]
        count = EXPERTS
        proj = ("gate_proj", "up_proj") if kind.startswith("w13_") else ("down_proj",)
        suffix = kind.split("_", 1)[1]
        rows = []
        for e in range(count):
            parts_ = [t.get(f"{base}{e}.{p}.{suffix}") for p in proj]
            if any(p is None for p in parts_):
                return None
            rows.append(_join(name, [p for p in parts_ if p is not None], stack=len(proj) > 1))
        return torch.stack(rows)
    return t.get(old)


def _join(name: str, parts: list[torch.Tensor], stack: bool = True) -> torch.Tensor:
    if name.endswith("pre_quant_scale"):
        return parts[0]
    if parts[0].dim() == 0:
        return torch.stack(parts) if stack else parts[0]
    return torch.cat(parts)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def load(folder: Path, source: Tensors) -> dict[str, Any]:
    """Loads a checkpoint with vLLM's own code; compares every parameter byte for byte."""
    with configured(folder) as config:
        model = build(config)
        for parameter in model.parameters():
            if not torch.isnan(parameter.data.float().reshape(-1)[:1]).any():
                bits_of(parameter).fill_(SENTINEL)
        model.load_weights(tensors(folder))
        wrong: list[str] = []
        untouched: list[str] = []
        unknown: list[str] = []
        for name, parameter in model.named_parameters():
            want = expected(name, source, 2)
            have = bits(parameter)
            if want is None:
                target = untouched if bool((have == SENTINEL).all()) else unknown
                target.append(name)
            elif not torch.equal(have, bits(want.to(parameter.dtype).reshape(parameter.shape))):
                wrong.append(name)
        after = after_loading(model, source)
    return {"wrong": wrong, "untouched": untouched, "unknown": unknown, **after}


def bits_of(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter's bytes, to write to."""
    return parameter.data.reshape(-1).view(torch.uint8)


def after_loading(model: Any, source: Tensors) -> dict[str, Any]:
    """Runs process_weights_after_loading and compares numbers with this suite's dequantiser."""
    import vllm.model_executor.layers.quantization.modelopt as modelopt

    captured: list[dict[str, Any]] = []

    class Converted(Exception):
        pass

    def convert(**kwargs: Any) -> Any:
        captured.append(kwargs)
        raise Converted

    modelopt.convert_to_nvfp4_moe_kernel_format = convert
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logger = logging.getLogger("vllm.model_executor.layers.quantization.modelopt")
    logger.addHandler(handler)
    try:
        linear_error, moe_error = 0.0, 0.0
        for name, layer in model.named_modules():
            method: Any = getattr(layer, "quant_method", None)
            kind = type(method).__name__
            if kind in ("ModelOptNvFp4LinearMethod", "ModelOptLinearMethod"):
                method.process_weights_after_loading(layer)
                linear_error = max(linear_error, _linear_error(name, layer, method, source))
            elif kind == "ModelOptNvFp4FusedMoE" and hasattr(layer, "w13_weight"):
                try:
                    method.process_weights_after_loading(layer)
                except Converted:
                    moe_error = max(moe_error, _moe_error(name, captured[-1], source))
    finally:
        logger.removeHandler(handler)
    return {"linear_error": linear_error, "moe_error": moe_error, "log": log.getvalue()}


def _weight(base: str, source: Tensors) -> torch.Tensor:
    """Dequantised float32 weight with NaN blocks as zero, and AWQ's factors folded in."""
    scale = source[f"{base}.weight_scale"]
    weight = dequantise(source[f"{base}.weight"], scale, source[f"{base}.weight_scale_2"])
    weight = torch.nan_to_num(weight, nan=0.0)
    factors = source.get(f"{base}.pre_quant_scale")
    return weight if factors is None else weight * factors.float()


def _linear_error(name: str, layer: Any, method: Any, source: Tensors) -> float:
    """Relative error of the layer against float32; NaN counts as infinite."""
    parts = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    name = checkpoint_name(name)
    last = name.rsplit(".", 1)[1]
    bases = [name.replace(last, part) for part in parts.get(last, [last])]
    if f"{bases[-1]}.weight" not in source:  # k_eq_v
        bases[-1] = bases[-2]
    weight = torch.cat([_weight(base, source) for base in bases])
    torch.manual_seed(3)
    x = (torch.randn(5, weight.shape[1]) * 0.5).to(torch.bfloat16)
    out = method.apply(layer, x).float()
    # The layer quantises its input too, after AWQ's factors: so does the reference.
    factors = source.get(f"{bases[0]}.pre_quant_scale")
    x, weight = (x, weight) if factors is None else (x * factors, weight / factors.float())
    scale = source.get(f"{bases[0]}.input_scale")
    if scale is None:  # nothing to compare with: the layer used what lay in memory
        return float("inf")
    seen = quantise(x.float(), 6.0 * 448.0 * float(scale))
    return _relative(out, dequantise(*seen) @ weight.T)


def _moe_error(name: str, kwargs: dict[str, Any], source: Tensors) -> float:
    """Relative error of the weights that the backend would get."""
    match = EXPERT.fullmatch(f"{checkpoint_name(name)}.w2_weight")
    assert match, name
    base = f"{match[1]}.experts"
    worst = 0.0
    for e in range(EXPERTS):
        up = [_weight(f"{base}.{e}.{p}", source) for p in ("gate_proj", "up_proj")]
        have13 = dequantise(kwargs["w13"][e], kwargs["w13_scale"][e], kwargs["w13_scale_2"][e])
        have2 = dequantise(kwargs["w2"][e], kwargs["w2_scale"][e], kwargs["w2_scale_2"][e])
        worst = max(worst, _relative(have13, torch.cat(up)))
        worst = max(worst, _relative(have2, _weight(f"{base}.{e}.down_proj", source)))
    return worst


def _relative(have: torch.Tensor, want: torch.Tensor) -> float:
    error = (have.float() - want).norm() / want.norm()
    return float(error) if torch.isfinite(error) else float("inf")


def activation() -> dict[str, Any]:
    """The experts' activation against transformers' own Gemma-4."""
    from transformers.activations import ACT2FN
    from vllm.model_executor.layers.fused_moe import activation as moe
    from vllm.model_executor.models import gemma4

    source = Path(gemma4.__file__).read_text().split("class Gemma4MoE", 1)[1]
    chosen = source.split('activation="', 1)[1].split('"', 1)[0]
    gate, up = torch.linspace(-6, 6, 4001), torch.ones(4001)
    x = torch.stack((gate, up), dim=1)
    out = torch.empty(4001, 1)
    moe.apply_moe_activation(moe.MoEActivation.from_str(chosen), out, x)
    want = ACT2FN["gelu_pytorch_tanh"](gate)
    backends = [name for name, takes in _backends(moe.MoEActivation.from_str(chosen)) if not takes]
    return {"chosen": chosen, "error": float((out[:, 0] - want).abs().max()), "refuse": backends}


def _backends(chosen: Any) -> list[tuple[str, bool]]:
    """The experts classes that Gemma-4 can be given on a CUDA GPU, and whether they take it."""
    import importlib

    found = []
    for module, name in (
        ("fused_marlin_moe", "MarlinExperts"),
        ("fused_marlin_moe", "BatchedMarlinExperts"),
        ("fused_moe", "TritonExperts"),
        ("fused_batched_moe", "BatchedTritonExperts"),
        ("cutlass_moe", "CutlassExpertsFp4"),
        ("experts.cutlass_moe", "CutlassExpertsFp4"),
    ):
        try:
            loaded = importlib.import_module(f"vllm.model_executor.layers.fused_moe.{module}")
        except ModuleNotFoundError:
            continue
        cls = getattr(loaded, name, None)
        if cls is not None:
            found.append((name, bool(cls._supports_activation(chosen))))
    return found


def tensor_parallel() -> dict[str, Any]:
    """AWQ's factors on the second of two ranks, and what is refused."""
    import vllm.model_executor.layers.quantization.modelopt as modelopt

    def parameter(width: int) -> Any:
        made = modelopt.PreQuantScaleParameter(
            where="layer", data=torch.full((width,), float("nan")), weight_loader=None
        )
        made.tp_rank, made.tp_size = 1, 2
        return made

    whole = torch.arange(32, dtype=torch.float32)
    row = parameter(16)
    row.load_row_parallel_weight(whole)
    fused = parameter(32)
    fused.load_merged_column_weight(whole, shard_id=0, shard_offset=0, shard_size=8)
    refused = ""
    try:
        fused.load_merged_column_weight(whole + 1, shard_id=1, shard_offset=8, shard_size=8)
    except ValueError as error:
        refused = str(error)
    layer = torch.nn.Module()
    layer.register_parameter("pre_quant_scale", fused)
    layer.logical_widths = [8, 8]
    half = ""
    scheme = getattr(modelopt, "_PRE_QUANT_SCALE", None)
    finish = (
        scheme.pre_process if scheme else modelopt.ModelOptNvFp4LinearMethod._finish_pre_quant_scale
    )
    try:
        finish(layer)
    except ValueError as error:
        half = str(error)
    return {
        "second_half": torch.equal(row.data, whole[16:]),
        "differing": refused,
        "half_filled": half,
        "kept": scheme is None or _kept(scheme, fused, whole),
    }


def _kept(scheme: Any, filled: Any, whole: torch.Tensor) -> bool:
    """Whether the factors outlive a kernel that replaces its layer's parameters, as Humming's does.

    ``prepare_humming_linear_layer_config`` in vLLM's quantization/utils/humming/linear.py.
    """
    layer = torch.nn.Module()
    layer.logical_widths = [8, 8]
    filled.loads = 2
    layer.register_parameter("pre_quant_scale", filled)
    scheme.pre_process(layer)
    for name, _ in list(layer.named_parameters(recurse=False)):
        delattr(layer, name)
    out = scheme.apply(layer, torch.ones(1, len(whole)), None, lambda _layer, x, _bias: x)
    return bool(torch.equal(out[0], whole))


def without_flash_attn() -> dict[str, Any]:
    """Imports what every model imports, as a build for GPUs without FlashAttention's extensions."""
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    class Cuda(CpuPlatform):  # type: ignore[misc]
        def is_cuda(self) -> bool:
            return True

    package, module = "vllm.vllm_flash_attn", "vllm.v1.attention.backends.fa_utils"
    for name in [name for name in sys.modules if name == module or name.startswith(package)]:
        del sys.modules[name]
    blocked = dict.fromkeys((f"{package}._vllm_fa2_C", f"{package}._vllm_fa3_C"))
    sys.modules |= blocked  # type: ignore[arg-type]  # None: importing it is an ImportError
    before, vllm.platforms._current_platform = vllm.platforms._current_platform, Cuda()
    try:
        utils = importlib.import_module(module)
        try:
            utils.flash_attn_varlen_func()
        except ImportError as error:
            return {"version": utils.get_flash_attn_version(), "called": str(error)}
        return {"called": "nothing"}
    finally:
        vllm.platforms._current_platform = before
        for name in (*blocked, module):
            sys.modules.pop(name, None)


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A proof's result, or what it raised."""
    try:
        return {"outcome": "done", **work()}
    except Exception as error:  # the error is the result
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.name}"
        return {"outcome": type(error).__name__, "message": str(error)[:600], "where": where}


def prove(originals: Path | None, only: str) -> dict[str, Any]:
    """All proofs, or those of the checkpoints whose names have a word, in this process."""
    prepare(originals)
    results = {"activation": attempt(activation)}
    with tempfile.TemporaryDirectory() as root:
        for case in CASES:
            if only in case.name:
                folder, shapes = Path(root, case.name), DENSE if case.dense else TINY
                weights = float_weights(shapes, multimodal=case.multimodal)
                source = write(folder, shapes, case, weights)
                results[case.name] = attempt(lambda f=folder, s=source: load(f, s))  # type: ignore[misc]
        if not only:
            results["without_flash_attn"] = attempt(without_flash_attn)
            results["batch_chat"] = attempt(lambda: batch_chat(Path(root, "native")))
            with configured(Path(root, "native")):
                results["tensor_parallel"] = attempt(tensor_parallel)
    return results


def fork(run: str, results: Path) -> int:
    """Starts one run as a process of its own, which writes its results; returns its id."""
    if child := os.fork():
        return child
    try:
        name, _, rest = run.partition(":")
        folder, _, only = rest.partition(":")
        found = prove(Path(folder) if folder else None, only)
        (results / name).write_text(json.dumps(found))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME[:FOLDER[:CASE]]")
    runs = parser.parse_args().runs
    share()
    with tempfile.TemporaryDirectory() as name:
        children = [fork(run, Path(name)) for run in runs]
        codes = [os.waitpid(child, 0)[1] for child in children]
        if any(codes):
            sys.exit(1)
        print(
            json.dumps({file.name: json.loads(file.read_text()) for file in Path(name).iterdir()})
        )


if __name__ == "__main__":
    main()
