"""Every format that vLLM loads is judged by its own scheme, and every defect of it is named."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp4forge.checkpoint import inspect, patterns
from fp4forge.checkpoint.findings import KINDS
from fp4forge.core.errors import CheckpointError, ReleaseError
from fp4forge.inputs import release as releases
from fp4forge.models import formats
from tests.checkpoints import (
    Tensors,
    fp8,
    linear,
    norms,
    packed,
    plain,
    publish,
    scaled,
    weights_only,
)

Linear = Callable[[str, int, int], Tensors]
Config = dict[str, Any]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
NEWEST = releases.names()[-1]
NAN, ONE = struct.pack("<f", float("nan")), struct.pack("<f", 1.0)


def dense(layer: Linear, mlp: Linear | None = None) -> Tensors:
    """Two layers of a model without experts."""
    out = plain("model.embed_tokens", 256, 128) | plain("lm_head", 256, 128)
    for at in ("model.layers.0", "model.layers.1"):
        for name in ATTENTION:
            out |= layer(f"{at}.self_attn.{name}", 128, 128)
        for name in ("gate_proj", "up_proj"):
            out |= (mlp or layer)(f"{at}.mlp.{name}", 256, 128)
        out |= (mlp or layer)(f"{at}.mlp.down_proj", 128, 256)
    return out | norms(2, 128, 128)


def moe(layer: Linear, kinds: tuple[str, ...], around: str = "mlp", count: int = 4) -> Tensors:
    """Two layers whose experts have parts of these names."""
    out = plain("model.embed_tokens", 256, 128)
    for at in ("model.layers.0", "model.layers.1"):
        out |= plain(f"{at}.{around}.gate", count, 128)
        for expert in range(count):
            for kind in kinds:
                rows, columns = (128, 64) if kind in ("down_proj", "w2") else (64, 128)
                out |= layer(f"{at}.{around}.experts.{expert}.{kind}", rows, columns)
    return out | norms(2, 128, 128)


def model(quantisation: Any, **more: Any) -> Config:
    shapes = {"num_hidden_layers": 2, "hidden_size": 128, "vocab_size": 256}
    return {"model_type": "qwen3", **shapes, "quantization_config": quantisation, **more}


def modelopt(algo: str, **more: Any) -> Config:
    return {"quant_method": "modelopt", "quant_algo": algo, "ignore": ["lm_head"], **more}


def compressed(
    strategy: str = "tensor_group", size: int = 16, bits: int = 4, activations: bool = True
) -> Config:
    arguments = {
        "num_bits": bits,
        "type": "float",
        "strategy": strategy,
        "group_size": size,
        "symmetric": True,
    }
    group = {
        "targets": ["Linear"],
        "weights": arguments,
        "input_activations": arguments | {"dynamic": "local"} if activations else None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def mixed(tensors: Tensors) -> Config:
    """MIXED_PRECISION with an entry for each layer of the tensors."""
    layers: dict[str, Any] = {}
    for name, (dtype, *_) in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "weight" and dtype in ("U8", "F8_E4M3"):
            algo = "NVFP4" if f"{module}.input_scale" in tensors else "W4A16_NVFP4"
            layers[module] = {"quant_algo": algo if dtype == "U8" else "FP8", "group_size": 16}
    return modelopt("MIXED_PRECISION", quantized_layers=layers) | {"ignore": []}


def channels(name: str, rows: int, columns: int) -> Tensors:
    return scaled(name, rows, columns, "weight_scale", rows)


def blocks(name: str, rows: int, columns: int) -> Tensors:
    return scaled(name, rows, columns, "weight_scale_inv", rows // 128, columns // 128)


def partial(name: str, rows: int, columns: int) -> Tensors:
    return scaled(name, rows, columns, "weight_scale", rows // 128, 1, columns // 128, 1)


def mxfp8(name: str, rows: int, columns: int) -> Tensors:
    return {
        f"{name}.weight": ("F8_E4M3", (rows, columns), None),
        f"{name}.weight_scale": ("U8", (rows, columns // 32), None),
    }


def packed_mxfp4(name: str, rows: int, columns: int) -> Tensors:
    return {
        f"{name}.weight_packed": ("U8", (rows, columns // 2), None),
        f"{name}.weight_scale": ("U8", (rows, columns // 32), None),
    }


def packed_weights_only(name: str, rows: int, columns: int) -> Tensors:
    return packed(name, rows, columns, activations=False)


def gpt_oss(count: int = 4) -> Tensors:
    out = plain("model.embed_tokens", 256, 128) | norms(2, 128)
    for layer in range(2):
        at = f"model.layers.{layer}"
        out |= plain(f"{at}.self_attn.q_proj", 128, 128) | plain(f"{at}.mlp.router", count, 128)
        out |= plain(f"{at}.self_attn.k_proj", 512, 128) | plain(f"{at}.self_attn.v_proj", 512, 128)
        for kind, rows in (("gate_up_proj", 256), ("down_proj", 128)):
            name = f"{at}.mlp.experts.{kind}"
            out[f"{name}_blocks"] = ("U8", (count, rows, 4, 16), None)
            out[f"{name}_scales"] = ("U8", (count, rows, 4), None)
            out[f"{name}_bias"] = ("BF16", (count, rows), None)
    return out


def nvfp4_and_fp8() -> Tensors:
    return dense(fp8, weights_only)


def output_too() -> Tensors:
    """Case 13: attention in FP8, the rest weights only, the output projection as well."""
    out = nvfp4_and_fp8()
    del out["lm_head.weight"]
    return out | weights_only("lm_head", 256, 128)


GPT_OSS = {"num_local_experts": 4, "model_type": "gpt_oss"}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
NO_INPUTS = {"config_groups": {"group_0": {"input_activations": None, "targets": ["Linear"]}}}
MODELOPT, MIXED = "--quantization modelopt", "--quantization modelopt_mixed"
COMPRESSED = "--quantization compressed-tensors"

# tensors, config.json's declaration, format, flag, since, schemes
WHOLE: dict[str, tuple[Tensors, Config, str, str, str, set[str]]] = {
    "nvfp4": (dense(linear), modelopt("NVFP4"), "modelopt NVFP4", MODELOPT, "0.19.0", {"NVFP4"}),
    "w4a16": (
        dense(weights_only),
        modelopt("W4A16_NVFP4"),
        "modelopt W4A16_NVFP4",
        MODELOPT,
        "0.24.0",
        {"W4A16_NVFP4"},
    ),
    "weights only": (
        dense(weights_only),
        modelopt("nvfp4", **NO_INPUTS),
        "modelopt NVFP4 without activations",
        MODELOPT,
        "0.33.0",
        {"W4A16_NVFP4"},
    ),
    "fp8": (dense(fp8), modelopt("FP8"), "modelopt FP8", MODELOPT, "0.19.0", {"FP8"}),
    "fp8 channels": (
        dense(channels),
        modelopt("FP8_PER_CHANNEL_PER_TOKEN"),
        "modelopt FP8_PER_CHANNEL_PER_TOKEN",
        MODELOPT,
        "0.19.0",
        {"FP8_PER_CHANNEL_PER_TOKEN"},
    ),
    "fp8 partial blocks": (
        dense(partial),
        modelopt("fp8_pb_wo"),
        "modelopt FP8_PB_WO",
        MODELOPT,
        "0.19.0",
        {"FP8_PB_WO"},
    ),
    "mxfp8": (
        dense(mxfp8),
        modelopt("MXFP8"),
        "modelopt MXFP8",
        "--quantization modelopt_mxfp8",
        "0.19.0",
        {"MXFP8"},
    ),
    "mixed, of 0.20": (
        dense(fp8, linear),
        mixed(dense(fp8, linear)),
        "modelopt MIXED_PRECISION",
        MIXED,
        "0.19.0",
        {"FP8", "NVFP4"},
    ),
    "mixed, of 0.24": (
        output_too(),
        mixed(output_too()),
        "modelopt MIXED_PRECISION",
        MIXED,
        "0.24.0",
        {"FP8", "W4A16_NVFP4"},
    ),
    "packed": (
        dense(packed),
        compressed(),
        "compressed-tensors",
        COMPRESSED,
        "0.19.0",
        {"NVFP4 packed"},
    ),
    "packed weights only": (
        dense(packed_weights_only),
        compressed(activations=False),
        "compressed-tensors",
        COMPRESSED,
        "0.19.0",
        {"NVFP4 packed, W4A16"},
    ),
    "packed mxfp4": (
        dense(packed_mxfp4),
        compressed("group", 32),
        "compressed-tensors",
        COMPRESSED,
        "0.19.0",
        {"MXFP4 packed"},
    ),
    "compressed fp8": (
        dense(channels),
        compressed("channel", bits=8),
        "compressed-tensors",
        COMPRESSED,
        "0.19.0",
        {"FP8 compressed"},
    ),
    "fp8 blocks": (dense(blocks), BLOCK, "fp8", "--quantization fp8", "0.19.0", {"FP8 block"}),
    "mxfp4": (gpt_oss(), MXFP4, "mxfp4", "", "0.19.0", {"MXFP4"}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_checkpoint_has_no_fault(name: str, tmp_path: Path) -> None:
    tensors, quantisation, format_, flag, since, schemes = WHOLE[name]
    experts = GPT_OSS if name == "mxfp4" else {}
    folder = publish(tmp_path, tensors, model(quantisation, **experts))
    found = inspect.inspect(folder, release=NEWEST)
    assert not found.findings
    assert found.servable
    assert (found.format, found.flag, found.since) == (format_, flag, since)
    assert set(found.schemes) == schemes
    assert sum(found.schemes.values()) == found.quantised_modules
    assert f"loads from vLLM {since} on" in inspect.verdict(found)


def test_without_a_release_it_is_judged_by_the_one_that_compose_takes(tmp_path: Path) -> None:
    from fp4forge.cli.wanted_server import published

    folder = publish(tmp_path, dense(linear), model(modelopt("NVFP4")))
    options = dict.fromkeys(("release", "variant", "strategy", "base", "platform"))
    _, release, _ = published(options | {"arch": "sm121"})
    assert inspect.inspect(folder).release == release


@pytest.mark.parametrize(
    ("architecture", "releases_", "finding"),
    [
        ("Qwen3ForCausalLM", ("0.19.1", "0.20.2", "0.33.0"), ""),
        ("Qwen3ForSequenceClassification", ("0.19.1", "0.20.2", "0.33.0"), ""),
        ("Gemma4UnifiedForConditionalGeneration", ("0.33.0",), "needs-newer-vllm"),
        ("BambaForCausalLM", ("0.19.1", "0.20.2"), ""),
        ("Qwen9ForCausalLM", (), "unknown-architecture"),
    ],
)
def test_a_release_loads_models_that_it_has_a_class_for(
    architecture: str, releases_: tuple[str, ...], finding: str, tmp_path: Path
) -> None:
    config = model(modelopt("NVFP4")) | {"architectures": [architecture]}
    found = inspect.inspect(publish(tmp_path, dense(linear), config), release="0.20.2")
    assert found.releases == releases_
    assert [one.id for one in found.findings] == [finding] * bool(finding)
    newer = inspect.inspect(tmp_path, release="0.33.0")
    assert newer.servable == ("0.33.0" in releases_)


@pytest.mark.parametrize("name", WHOLE)
def test_every_part_is_missed(name: str, tmp_path: Path) -> None:
    """Each tensor of one layer is taken away; only FP8's input_scale may be absent."""
    tensors, quantisation, *_ = WHOLE[name]
    where = "mlp.experts.down_proj_" if name == "mxfp4" else "layers.1.mlp.down_proj."
    experts = GPT_OSS if name == "mxfp4" else {}
    parts = [part for part in tensors if where in part and not part.endswith("_bias")]
    if name == "fp8":
        parts = [part for part in parts if not part.endswith("input_scale")]
    assert parts
    for number, part in enumerate(parts):
        rest = {key: value for key, value in tensors.items() if key != part}
        folder = publish(tmp_path / str(number), rest, model(quantisation, **experts))
        found = inspect.inspect(folder)
        assert not found.servable, f"{part} is not missed"
        said = " ".join(place for one in found.findings for place in one.where)
        assert "down_proj" in said


@pytest.mark.parametrize("name", WHOLE)
def test_every_shape_is_checked(name: str, tmp_path: Path) -> None:
    tensors, quantisation, *_ = WHOLE[name]
    experts = GPT_OSS if name == "mxfp4" else {}
    scale = next(part for part in tensors if part.endswith(("scale", "scales", "scale_inv")))
    dtype, *_ = tensors[scale]
    spoilt = tensors | {scale: (dtype, (3, 5), None)}
    found = inspect.inspect(publish(tmp_path, spoilt, model(quantisation, **experts)))
    assert "wrong-shape" in {one.id for one in found.findings}
    assert not found.servable


def test_a_checkpoint_is_refused_for_a_release_that_is_too_old(tmp_path: Path) -> None:
    folder = publish(tmp_path, output_too(), model(mixed(output_too())))
    found = inspect.inspect(folder, release="0.20.2")
    assert [one.id for one in found.findings] == ["needs-newer-vllm"]
    assert not found.servable
    assert found.since == "0.24.0"
    assert "0.20.2" not in found.releases
    assert "0.33.0" in found.releases
    assert "not servable by release 0.20.2: loads from vLLM 0.24.0 on" in inspect.verdict(found)
    whole = publish(tmp_path / "old", dense(linear), model(modelopt("NVFP4")))
    assert inspect.inspect(whole, release="0.19.1").servable


def test_an_output_projection_needs_a_newer_vllm(tmp_path: Path) -> None:
    tensors = dense(linear)
    del tensors["lm_head.weight"]
    tensors |= linear("lm_head", 256, 128)
    quantisation = modelopt("NVFP4") | {"ignore": []}
    assert inspect.inspect(publish(tmp_path, tensors, model(quantisation))).since == "0.24.0"


def test_awq_needs_its_patch(tmp_path: Path) -> None:
    tensors = dense(linear)
    tensors["model.layers.0.mlp.up_proj.pre_quant_scale"] = ("BF16", (128,), None)
    found = inspect.inspect(publish(tmp_path, tensors, model(modelopt("NVFP4_AWQ"))))
    assert found.servable
    assert (found.since, found.patches) == ("", ("modelopt-nvfp4-awq",))
    assert "needs the awq variant's patches: modelopt-nvfp4-awq" in inspect.verdict(found)


def test_strategy_group_is_refused_as_vllm_does(tmp_path: Path) -> None:
    """Case 16: AngelSlim's export, without global scales."""
    tensors = {name: one for name, one in dense(packed).items() if "global_scale" not in name}
    found = inspect.inspect(publish(tmp_path, tensors, model(compressed("group"))))
    by_id = {one.id: one for one in found.findings}
    assert set(by_id) == {"wrong-strategy", "missing-part"}
    assert by_id["wrong-strategy"].fix == "quantise again with scheme NVFP4"
    assert "strategy group" in by_id["wrong-strategy"].where[0]
    assert "weight_global_scale, input_global_scale" in by_id["missing-part"].where[0]
    assert found.since == ""
    assert not found.servable


GATED, MINIMAX = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")


def keys_and_values(rows: int) -> Tensors:
    """Of a model whose family supplies the number of heads."""
    places = [f"model.layers.{layer}.self_attn.{kind}_proj" for layer in (0, 1) for kind in "kv"]
    return {part: one for place in places for part, one in linear(place, rows, 128).items()}


SETS = {
    "gated": (moe(linear, GATED), "num_experts", "mlp"),
    "not gated": (moe(linear, ("up_proj", "down_proj")), "n_routed_experts", "mlp"),
    "minimax": (
        moe(linear, MINIMAX, "block_sparse_moe") | keys_and_values(8 * 128),
        "num_local_experts",
        "block_sparse_moe",
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_experts_are_counted_by_their_siblings(name: str, tmp_path: Path) -> None:
    tensors, count, around = SETS[name]
    type_ = "minimax_m2" if name == "minimax" else "qwen3_moe"
    config = model(modelopt("NVFP4"), **{count: 4, "model_type": type_})
    found = inspect.inspect(publish(tmp_path / "whole", tensors, config))
    assert found.experts == 4
    assert not found.findings
    expert = f"model.layers.1.{around}.experts.2."
    kind = sorted({part.split(".")[-2] for part in tensors if expert in part})[-1]
    lost = {part: one for part, one in tensors.items() if f"{expert}{kind}." not in part}
    (finding,) = inspect.inspect(publish(tmp_path / "lost", lost, config)).findings
    assert (finding.id, finding.where) == ("missing-expert", (f"{expert[:-1]}: {kind}",))
    few = {part: one for part, one in tensors.items() if ".experts.3." not in part}
    (finding,) = inspect.inspect(publish(tmp_path / "few", few, config)).findings
    assert (finding.id, finding.count) == ("missing-expert", 2)
    none = {
        part: one
        for part, one in tensors.items()
        if "layers.1." not in part or "experts." not in part
    }
    (finding,) = inspect.inspect(publish(tmp_path / "none", none, config)).findings
    assert finding.where == ("model.layers.1: all 4",)
    config[count] = 3
    more = inspect.inspect(publish(tmp_path / "more", tensors, config)).findings
    assert [one.id for one in more] == ["wrong-size", "expert-count"]  # the router's rows


def test_a_set_of_experts_may_be_one_entry(tmp_path: Path) -> None:
    """Qwen3.5 MoE's quantized_layers name the whole set."""
    tensors = moe(weights_only, GATED)
    layers = {f"model.layers.{n}.mlp.experts": {"quant_algo": "W4A16_NVFP4"} for n in range(2)}
    config = model(modelopt("MIXED_PRECISION", quantized_layers=layers), num_experts=4)
    found = inspect.inspect(publish(tmp_path, tensors, config), release=NEWEST)
    assert not found.findings
    assert found.schemes == {"W4A16_NVFP4": 24}
    assert found.since == "0.24.0"


def test_names_of_multimodal_models_and_fused_layers_cover_their_parts(tmp_path: Path) -> None:
    tensors = {
        name.replace("model.", "model.language_model.", 1): one for name, one in dense(fp8).items()
    }
    at = "language_model.model.layers"
    fused = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    layers = {f"{at}.{n}.{name}": {"quant_algo": "fp8"} for n in range(2) for name in fused}
    config = model(modelopt("MIXED_PRECISION", quantized_layers=layers))
    assert not inspect.inspect(publish(tmp_path, tensors, config)).findings


def test_nothing_of_gemma_is_said_of_other_models(tmp_path: Path) -> None:
    tensors = moe(linear, GATED)
    for part in [part for part in tensors if "layers.0.mlp.experts" in part]:
        del tensors[part]
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = ("BF16", (4, 128, 128), None)
    config = model(modelopt("NVFP4"), num_experts=4)
    (finding,) = inspect.inspect(publish(tmp_path, tensors, config)).findings
    assert finding.id == "experts-plain"
    assert "Gemma" not in finding.fix
    moved = {
        name.replace("mlp.experts", "moe.experts"): one for name, one in SETS["gated"][0].items()
    }
    found = inspect.inspect(publish(tmp_path / "moe", moved, config))
    assert "moe-prefix" not in {one.id for one in found.findings}


def without(tensors: Tensors, *parts: str) -> Tensors:
    return {name: one for name, one in tensors.items() if not any(part in name for part in parts)}


CACHE = {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}
SCALE: Tensors = {"model.layers.0.self_attn.k_proj.k_scale": ("F32", (), ONE)}
VALUE: Tensors = {"model.layers.0.self_attn.v_proj.v_scale": ("F32", (), ONE)}
MINUS: Tensors = {"model.layers.0.self_attn.k_proj.k_scale": ("BF16", (1,), b"\x80\xbf")}
BROKEN: Tensors = {
    "model.layers.0.mlp.up_proj.weight_scale": (
        "F8_E4M3",
        (256, 8),
        b"\x7f" + bytes([0x38]) * (256 * 8 - 1),
    )
}
OTHER = {"model.layers.9.mlp.up_proj": {"quant_algo": "FP8"}}
LAYER = {"model.layers.0.mlp.up_proj": {"quant_algo": "FP8"}}
UP = "model.layers.0.mlp.up_proj"
FEW = without(dense(linear), UP) | plain(UP, 256, 128)
FEW_MIXED = without(dense(fp8), UP) | plain(UP, 256, 128)

# finding -> tensors, declaration, hf_quant_config.json, a place
DEFECTS: dict[str, tuple[Tensors, Config | None, Config | None, str]] = {
    "not-declared": (dense(linear), None, None, "q_proj"),
    "excluded-quantised": (
        dense(linear),
        modelopt("NVFP4") | {"ignore": ["lm_head", "model.layers.0*"]},
        None,
        "model.layers.0.",
    ),
    "declared-missing": (
        dense(fp8),
        modelopt("MIXED_PRECISION", quantized_layers=mixed(dense(fp8))["quantized_layers"] | OTHER),
        None,
        "layers.9.mlp.up_proj: FP8",
    ),
    "declared-plain": (FEW_MIXED, mixed(dense(fp8)), None, UP),
    "maybe-plain": (FEW, modelopt("NVFP4"), None, UP),
    "other-scheme": (dense(linear), modelopt("FP8"), None, "FP8 declared, NVFP4 there"),
    "declarations-differ": (
        dense(linear),
        modelopt("NVFP4"),
        {"quant_algo": "FP8", "exclude_modules": ["lm_head", "*layers.1*"]},
        "quant_algo: NVFP4 in config.json, FP8",
    ),
    "missing-layer": (without(dense(linear), "layers.0."), modelopt("NVFP4"), None, "layers.0"),
    "unknown-part": (
        dense(linear) | {f"{UP}.qweight": ("I32", (4, 4), None)},
        modelopt("NVFP4"),
        None,
        "qweight",
    ),
    "no-input-global-scale": (
        without(dense(packed), f"{UP}.input_global_scale"),
        compressed(),
        None,
        UP,
    ),
    "nan-group-scale": (dense(packed) | BROKEN, compressed(), None, UP),
    "bad-scales": (
        dense(blocks) | {f"{UP}.weight_scale_inv": ("F32", (2, 1), NAN + ONE)},
        BLOCK,
        None,
        "weight_scale_inv",
    ),
    "kv-scale-lost": (dense(linear) | VALUE, modelopt("NVFP4", **CACHE), None, "self_attn"),
    "kv-no-scales": (dense(linear), modelopt("NVFP4", **CACHE), None, "config.json"),
    "kv-undeclared": (dense(linear) | SCALE, modelopt("NVFP4"), None, "self_attn"),
    "bad-scalar-negative": (dense(linear) | MINUS, modelopt("NVFP4", **CACHE), None, "k_scale"),
}
ELSEWHERE = {
    "bad-config",
    "missing-tensor",
    "wrong-size",
    "cut-down",
    "needs-newer-vllm",
    "unknown-architecture",
    "wrong-strategy",
    "experts-plain",
    "expert-count",
}


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_is_named(name: str, tmp_path: Path) -> None:
    tensors, quantisation, other, place = DEFECTS[name]
    found = inspect.inspect(publish(tmp_path, tensors, model(quantisation), other))
    assert [one.id for one in found.findings] == [name]
    assert place in " ".join(found.findings[0].where)
    assert found.servable == (KINDS[name].severity != inspect.ERROR)


def test_every_finding_has_a_case() -> None:
    from tests.unit import test_checkpoint

    files = {"not-in-index", "index-only", "missing-file", "bad-file", "unknown-format"}
    tried = {*test_checkpoint.CASES, *DEFECTS, *ELSEWHERE, *files, "gelu-tanh"}
    assert tried == set(KINDS)


def test_the_scales_of_a_kv_cache_are_read(tmp_path: Path) -> None:
    folder = publish(tmp_path, dense(linear) | SCALE | VALUE, model(modelopt("NVFP4", **CACHE)))
    assert not inspect.inspect(folder).findings


def test_vllm_reads_config_json_first(tmp_path: Path) -> None:
    other = {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}
    config = model({"quant_method": "modelopt"})
    folder = publish(tmp_path, dense(linear), config, other)
    assert not inspect.inspect(folder).findings
    layers = mixed(dense(fp8))
    only_there = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers["quantized_layers"]}
    config = model({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"})
    assert not inspect.inspect(publish(tmp_path / "b", dense(fp8), config, only_there)).findings
    nested = model({"producer": {"name": "modelopt"}, "quantization": other})
    assert not inspect.inspect(publish(tmp_path / "c", dense(linear), nested)).findings
    inside = model(None, text_config={"quantization_config": modelopt("NVFP4")})
    assert (
        inspect.inspect(publish(tmp_path / "d", dense(linear), inside)).format == "modelopt NVFP4"
    )


def test_names_and_patterns_exclude_layers(tmp_path: Path) -> None:
    tensors = without(dense(packed), *ATTENTION)
    for layer in range(2):
        for name in ATTENTION:
            tensors |= plain(f"model.layers.{layer}.self_attn.{name}", 128, 128)
    quantisation = compressed() | {"ignore": ["lm_head", "re:.*self_attn.*"]}
    assert not inspect.inspect(publish(tmp_path, tensors, model(quantisation))).findings
    quantisation |= {
        "ignore": [f"model.layers.{n}.self_attn.{m}" for n in (0, 1) for m in ATTENTION]
    }
    assert not inspect.inspect(publish(tmp_path, tensors, model(quantisation))).findings


def test_groups_of_compressed_tensors_have_their_own_layers(tmp_path: Path) -> None:
    quantisation = compressed()
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
    group = {"targets": ["re:.*self_attn.*"], "weights": weights, "input_activations": None}
    quantisation["config_groups"]["group_1"] = group
    tensors = dense(channels, packed)
    found = inspect.inspect(publish(tmp_path, tensors, model(quantisation)))
    assert not found.findings
    assert found.schemes == {"FP8 compressed": 8, "NVFP4 packed": 6}


def test_layers_that_share_a_defect_are_shown_together(tmp_path: Path) -> None:
    spoilt = without(dense(linear), ".weight_scale_2")
    (finding,) = inspect.inspect(publish(tmp_path, spoilt, model(modelopt("NVFP4")))).findings
    assert finding.count == 14
    assert finding.where[0] == "model.layers.0-1.self_attn.q_proj: weight_scale_2"


@pytest.mark.parametrize(
    ("quantisation", "more"),
    [
        ({"quant_method": "gptq"}, {}),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, {}),
        (modelopt("MIXED_PRECISION"), {}),
        (modelopt("MIXED_PRECISION", quantized_layers={UP: {"quant_algo": "W2"}}), {}),
        (modelopt("W4A8_AWQ"), {}),
        ({"quant_method": "compressed-tensors"}, {}),
        (compressed(bits=2), {}),
    ],
)
def test_unknown_formats_are_refused(quantisation: Config, more: Config, tmp_path: Path) -> None:
    found = inspect.inspect(publish(tmp_path, dense(linear), model(quantisation, **more)))
    assert not found.servable
    assert "unknown-format" in {one.id for one in found.findings}
    assert found.since == ""


LIES: dict[str, tuple[Config, str]] = {
    "a negative size": (model(modelopt("NVFP4"), hidden_size=-1), "hidden_size"),
    "a text for a number": (model(modelopt("NVFP4"), num_experts="many"), "num_experts"),
    "a count beyond reason": (model(modelopt("NVFP4"), n_routed_experts=10**12), "n_routed"),
    "a number for an algorithm": (model({"quant_algo": 4}), "quant_algo"),
    "a text for a list": (model(modelopt("NVFP4") | {"ignore": "lm_head"}), "ignore"),
    "a layer without algorithm": (
        model(modelopt("MIXED_PRECISION", quantized_layers={UP: {}})),
        "quant_algo",
    ),
    "a list for groups": (model(compressed() | {"config_groups": []}), "config_groups"),
    "a block of minus one": (
        model({"quant_method": "fp8", "weight_block_size": [-1, 1]}),
        "weight_block_size",
    ),
    "a pattern that is none": (model(compressed() | {"ignore": ["re:("]}), "regular expression"),
    "a pattern that takes hours": (model(compressed() | {"ignore": ["re:(a+)+$"]}), "hours"),
    "wildcards that take hours": (model(modelopt("NVFP4") | {"ignore": ["*a" * 40]}), "hours"),
    "a list beyond reason": (model(modelopt("NVFP4") | {"ignore": ["a"] * 10_001}), "entries"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_configuration_that_lies_gives_one_message(name: str, tmp_path: Path) -> None:
    config, said = LIES[name]
    with pytest.raises(CheckpointError, match=said):
        inspect.inspect(publish(tmp_path, dense(linear), config))


def test_patterns_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_SECONDS", 0.05)
    tensors = dense(packed)
    for number in range(40):
        tensors |= plain("a" * 150 + f".{number}", 4, 4)
    quantisation = compressed() | {"ignore": ["lm_head", "re:.*a.*a.*a.*b"]}
    with pytest.raises(CheckpointError, match="too long"):
        inspect.inspect(publish(tmp_path, tensors, model(quantisation)))


def test_absurd_counts_are_not_counted_through(tmp_path: Path) -> None:
    config = model(modelopt("NVFP4"), num_experts=10_000_000, num_hidden_layers=10_000)
    found = inspect.inspect(publish(tmp_path, moe(linear, GATED), config))
    by_id = {one.id: one for one in found.findings}
    assert "experts.4-9999999" in by_id["missing-expert"].where[0]
    assert by_id["missing-layer"].count == 9_998
    assert by_id["missing-layer"].where == ("model.layers.2-9999",)


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path, dense(linear), model(modelopt("NVFP4")))
    header = (
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
        b'"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}'
    )
    content = struct.pack("<Q", len(header)) + header + bytes(6)
    (folder / "model-2.safetensors").write_bytes(content)
    found = {one.id: one for one in inspect.inspect(folder).findings}
    assert "a and b overlap" in found["bad-file"].where[0]


def test_the_table_of_formats_is_checked() -> None:
    for text, said in (
        ("formats: {a: {since: 0.19.0}}", "source"),
        ("formats: {a: {source: x}}", "since"),
        ("formats: {a: {source: x, since: null, proved: [0.19.0]}}", "proved"),
        ("formats: {a: {source: x, since: 0.19.0, flag: -q}}", "flag"),
        ("formats: {}", "formats"),
    ):
        with pytest.raises(ReleaseError, match=said):
            formats.FORMAT.parse(text, "formats.yaml")
    for name, entry in formats.table().items():
        assert name == "bf16" or entry.layers, name
        assert all(layer.source or not layer.since for layer in entry.layers.values())
