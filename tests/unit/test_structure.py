"""What a model lacks, or has in another size than its configuration says, is found."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fp4forge.checkpoint import config as configs
from fp4forge.checkpoint import inspect, kinds, plausible, structure
from fp4forge.core.errors import CheckpointError, ReleaseError
from fp4forge.inputs.release import names
from fp4forge.models import family
from fp4forge.models import tensor_layouts as layouts
from fp4forge.serve import model_sizes
from tests.checkpoints import Tensors, linear, norms, packed, plain, publish, write_file

NEWEST = names()[-1]
PUBLISHED = {name: one.config for name, one in family.examples().items()}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "ignore": ["lm_head"],
    },
}


def filled(layout: layouts.TensorLayout, at: str, sizes: dict[str, int], any_: int = 32) -> Tensors:
    """A layout's tensors in BF16, in the sizes that a configuration gives."""
    out: Tensors = {}
    for names_, wanted in layout.tensors.items():
        name = names_.partition("|")[0]
        shape = tuple(layouts.value(one, sizes) or any_ for one in wanted)
        if any(field not in sizes for one in wanted for field in layouts.fields(one)):
            continue
        every = range(sizes["experts"]) if "*" in name else (0,)
        for number in every:
            place = at + name.replace("*", str(number))
            out |= {place: ("BF16", shape, None)} if name.endswith(BARE) else plain(place, *shape)
    return out


BARE = ("sinks", "A_log", "dt_bias", ".D")
LAYERS = 8
EXPERTS = "BF16", (2, 32, 64), None
SMALL = {"hidden_size": 64, "vocab_size": 96, "intermediate_size": 96, "moe_intermediate_size": 32}


def whole(name: str, **changes: Any) -> tuple[Tensors, dict[str, Any]]:
    """A published configuration made small, and a checkpoint with all that its family has."""
    given = deepcopy(PUBLISHED[name])
    text = given.get("text_config", given)
    text.update({key: value for key, value in SMALL.items() if key in text})
    for key in ("num_experts", "n_routed_experts", "num_local_experts"):
        if key in text:
            text[key] = 2
    for key in ("num_experts_per_tok", "top_k_experts"):
        if key in text:
            text[key] = 1
    cut = {"num_hidden_layers": LAYERS}
    for key in ("layer_types", "hybrid_override_pattern", "no_rope_layers"):
        if text.get(key):
            cut[key] = text[key][:LAYERS]
    text.update(cut | changes)
    config = msgspec.convert(given, configs.ModelConfig)
    full, count = config.complete, text["num_hidden_layers"]
    known = family.get(config.family)
    states = kinds.of(config, count, Path(name))
    root = "model.language_model." if "text_config" in given else "model."
    out: Tensors = {}
    for one in (layouts.layouts()[each] for each in known.tensors):
        if one.within == "model":
            out |= filled(one, root, structure.sizes(full, None, count))
            continue
        for number, state in enumerate(states):
            if one.states and state not in one.states:
                continue
            if one.within == ("dense" if full.experts else "experts"):
                continue
            at = f"{root}layers.{number}."
            out |= filled(one, at, structure.sizes(full, number, count))
    if full.experts and not any(".experts." in part for part in out):  # in one tensor
        out |= {f"{root}layers.{n}.mlp.experts.down_proj": EXPERTS for n in range(count)}
    return out, given


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n != "llama-3.3-70b"])
def test_a_family_s_whole_model_has_no_fault_and_every_loss_is_found(
    name: str, tmp_path: Path
) -> None:
    tensors, config = whole(name)
    found = inspect.inspect(publish(tmp_path / "whole", tensors, config), release=NEWEST)
    assert {one.id for one in found.findings} <= {"gelu-tanh"}  # a release has its class, too
    short = {part.rpartition("layers.")[2].partition(".")[2] or part for part in tensors}
    assert len(short) > 8
    for kind in sorted(kind for kind in short if "experts." not in kind):
        last = [part for part in tensors if part.endswith(kind)][-1]
        rest = {part: one for part, one in tensors.items() if part != last}
        found = inspect.inspect(publish(tmp_path / "less", rest, config), release=NEWEST)
        assert not found.servable, last


def llama() -> Tensors:
    out = plain("model.embed_tokens", 128256, 64) | plain("lm_head", 128256, 64) | norms(3, 64)
    for layer in range(3):
        at = f"model.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.q_proj", 64, 64),
            ("self_attn.k_proj", 32, 64),
            ("self_attn.v_proj", 32, 64),
            ("self_attn.o_proj", 64, 64),
            ("mlp.gate_proj", 96, 64),
            ("mlp.up_proj", 96, 64),
            ("mlp.down_proj", 64, 96),
        ):
            out |= linear(f"{at}.{name}", rows, columns)
    return out


def judged(
    tmp_path: Path, tensors: Tensors, **changes: Any
) -> dict[str, inspect.CheckpointFinding]:
    found = inspect.inspect(publish(tmp_path, tensors, LLAMA | changes), release=NEWEST)
    return {one.id: one for one in found.findings}


def test_a_whole_model_has_no_fault(tmp_path: Path) -> None:
    assert not judged(tmp_path, llama())


@pytest.mark.parametrize(
    ("lost", "finding", "where"),
    [
        ("model.embed_tokens.", "missing-tensor", "model.embed_tokens"),
        ("lm_head.", "missing-tensor", "lm_head"),
        ("model.norm.", "missing-tensor", "model.norm"),
        ("layers.1.self_attn.o_proj.", "missing-tensor", "model.layers.1.self_attn.o_proj"),
        ("self_attn.o_proj.", "missing-tensor", "model.layers.2.self_attn.o_proj"),
        ("layers.0.input_layernorm.", "missing-tensor", "model.layers.0.input_layernorm"),
        ("input_layernorm.", "missing-tensor", "model.layers.2.input_layernorm"),
        ("layernorm.", "missing-tensor", "model.layers.0.post_attention_layernorm"),
        ("mlp.", "missing-tensor", "model.layers.0.mlp.gate_proj"),
        ("layers.1.mlp.up_proj", "missing-tensor", "model.layers.1.mlp.up_proj"),
        ("model.layers.2.", "missing-layer", "model.layers.2"),
        ("model.layers.", "missing-layer", "all 3"),
    ],
)
def test_what_is_lost_is_named(lost: str, finding: str, where: str, tmp_path: Path) -> None:
    rest = {name: one for name, one in llama().items() if lost not in name}
    found = judged(tmp_path, rest)
    assert found.keys() == {finding}
    assert any(place.startswith(where) or where in place for place in found[finding].where)


def test_a_checkpoint_cut_for_a_test_is_told_so(tmp_path: Path) -> None:
    """Nobody loses every norm by accident; the shared cases have none."""
    rest = {name: one for name, one in llama().items() if "norm" not in name}
    found = inspect.inspect(publish(tmp_path, rest, LLAMA), release=NEWEST)
    assert [(one.id, one.severity) for one in found.findings] == [("cut-down", inspect.NOTE)]
    assert "cut-down" in inspect.verdict(found)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"hidden_size": 128, "head_dim": 16}, "hidden_size (128)"),
        ({"num_attention_heads": 8, "head_dim": 16}, "num_attention_heads * head_dim (128)"),
        ({"num_key_value_heads": 4}, "num_key_value_heads * head_dim (64)"),
        ({"head_dim": 32}, "num_attention_heads * head_dim (128)"),
        ({"intermediate_size": 192}, "intermediate_size (192)"),
    ],
)
def test_another_size_than_the_configuration_s_is_named(
    changes: dict[str, int], where: str, tmp_path: Path
) -> None:
    found = judged(tmp_path, llama(), **changes)
    assert found.keys() == {"wrong-size"}
    assert any(where in place for place in found["wrong-size"].where)


def test_a_packed_layer_is_compared_by_its_unpacked_size(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj"
    tensors = {part: one for part, one in llama().items() if name not in part}
    wide = inspect.inspect(
        publish(tmp_path, tensors | linear(name, 96, 128), LLAMA), release=NEWEST
    )
    (finding,) = wide.findings
    assert finding.where == (
        f"{name}: [96, 128], config.json says intermediate_size (96), hidden_size (64)",
    )
    config = LLAMA | {"vocab_size": 128256, "quantization_config": None}
    other = tensors | packed(name, 96, 64)
    there = inspect.inspect(publish(tmp_path / "b", other, config), release=NEWEST).findings
    assert "wrong-size" not in {one.id for one in there}


def test_a_model_of_no_family_and_a_drafter_are_not_compared(tmp_path: Path) -> None:
    few = {name: one for name, one in llama().items() if "o_proj" not in name}
    assert not judged(tmp_path / "a", few, model_type="olmo9", architectures=["OlmoForCausalLM"])
    assert not judged(tmp_path / "b", few, architectures=["Eagle3LlamaForCausalLM"])


def test_tied_embeddings_need_no_output(tmp_path: Path) -> None:
    tied = {name: one for name, one in llama().items() if "lm_head" not in name}
    assert not judged(tmp_path, tied, tie_word_embeddings=True)


def test_layers_that_share_a_cache_need_no_keys(tmp_path: Path) -> None:
    """As Gemma-4 E2B and E4B: the last layers read another layer's cache, and are wider."""
    small = {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}
    small |= {"hidden_size_per_layer_input": 16}
    tensors, config = whole("gemma-4-31b", **small)
    last = "model.language_model.layers.7"
    assert tensors[f"{last}.mlp.up_proj.weight"][1] == (192, 64)
    assert "model.language_model.embed_tokens_per_layer.weight" in tensors
    lost = (f"{last}.self_attn.k_", f"{last}.self_attn.v_")
    rest = {name: one for name, one in tensors.items() if not name.startswith(lost)}
    assert not inspect.inspect(publish(tmp_path, rest, config), release=NEWEST).findings
    for name in ("embed_tokens_per_layer", f"{last}.per_layer_input_gate", "layers.3.self_attn.k_"):
        less = {part: one for part, one in rest.items() if name not in part}
        assert not inspect.inspect(publish(tmp_path / "b", less, config), release=NEWEST).servable
    config["text_config"]["num_kv_shared_layers"] = 0
    found = inspect.inspect(publish(tmp_path / "c", rest, config), release=NEWEST)
    assert {one.id for one in found.findings} == {"missing-tensor", "wrong-size"}


def test_an_unknown_kind_of_layer_is_one_message(tmp_path: Path) -> None:
    config = LLAMA | {"layer_types": ["full_attention", "mystery", "full_attention"]}
    with pytest.raises(CheckpointError, match="'mystery' is not known"):
        inspect.inspect(publish(tmp_path, llama(), config))


@pytest.mark.parametrize("name", family.table())
def test_every_family_s_layouts_are_there(name: str) -> None:
    assert set(family.get(name).tensors) <= layouts.layouts().keys()


def test_a_layout_that_names_what_it_lacks_is_refused() -> None:
    text = "layouts:\n  a:\n    within: layer\n    source: a file of vLLM\n    shared: [b]\n"
    with pytest.raises(ReleaseError, match="names b"):
        layouts.FORMAT.parse(text + "    tensors: {c: [hidden_size]}\n", "tensors.yaml")
    with pytest.raises(ReleaseError, match="hidden_size"):
        layouts.FORMAT.parse(
            "layouts:\n  a:\n    within: layer\n    source: a file of vLLM\n"
            "    tensors: {c: [__import__]}\n".replace("__import__", "hidden_size - 1"),
            "tensors.yaml",
        )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_experts_per_tok": 9}, "9 experts for each token, 2 experts in a layer"),
        ({"num_experts_per_tok": 0}, "no expert for each token"),
        ({"num_key_value_heads": 3}, "32 attention heads cannot share 3 KV heads"),
        ({"layer_types": ["full_attention"] * 3}, "3 layer_types, 8 layers"),
        ({"num_kv_shared_layers": 8}, "8 layers share a KV cache, of 8"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_told_so(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    tensors, config = whole("qwen3-30b-a3b")
    folder = publish(tmp_path, tensors, config | changes)
    found = {one.id: one for one in inspect.inspect(folder).findings}
    assert says in " ".join(found["bad-config"].where)
    with pytest.raises(CheckpointError, match="contradicts itself"):
        model_sizes.read(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_does_not(name: str) -> None:
    assert not list(plausible.problems(msgspec.convert(PUBLISHED[name], configs.ModelConfig)))


@pytest.mark.parametrize("file", ["/etc/passwd", "../a.safetensors", "b/a.safetensors", "a\0", ""])
def test_an_index_names_files_of_its_folder(file: str, tmp_path: Path) -> None:
    folder = publish(tmp_path, llama(), LLAMA)
    index = {"weight_map": dict.fromkeys(llama(), file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        inspect.inspect(folder)
    assert "model.embed_tokens.weight is in" in caught.value.message


def test_files_that_the_index_does_not_name_are_skipped_as_vllm_does(tmp_path: Path) -> None:
    """Mistral publishes consolidated.safetensors beside the files of the index."""
    folder = publish(tmp_path, llama(), LLAMA)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(llama(), "model.safetensors")}))
    size = inspect.inspect(folder, release=NEWEST).weight_bytes
    write_file(folder / "consolidated.safetensors", llama())
    found = inspect.inspect(folder, release=NEWEST)
    assert (found.servable, found.weight_bytes) == (True, size)
    assert [(one.id, one.where) for one in found.findings] == [
        ("not-in-index", ("consolidated.safetensors",))
    ]
    index.write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="names none of the folder's files"):
        inspect.inspect(folder)
    index.unlink()
    (finding,) = inspect.inspect(folder, release=NEWEST).findings
    assert (finding.id, finding.count) == ("bad-file", 1)  # one line, not one for each tensor


@pytest.mark.parametrize("name", ["model-rank-{}-part-0.safetensors", "rank{}.safetensors"])
def test_a_set_by_ranks_is_one_message(name: str, tmp_path: Path) -> None:
    folder = publish(tmp_path, {}, LLAMA)
    (folder / "model.safetensors").unlink()
    for rank in (0, 1):
        write_file(folder / name.format(rank), llama())
    with pytest.raises(CheckpointError, match="one GPU's part"):
        inspect.inspect(folder)
    with pytest.raises(CheckpointError, match="one GPU's part"):
        model_sizes.read(folder)


def test_a_numbered_file_is_missed_without_an_index(tmp_path: Path) -> None:
    folder = publish(tmp_path, {}, LLAMA)
    (folder / "model.safetensors").rename(folder / "model-00002-of-00003.safetensors")
    found = {one.id: one for one in inspect.inspect(folder).findings}
    assert [place[:28] for place in found["bad-file"].where] == [
        "model-00001-of-00003.safeten",
        "model-00003-of-00003.safeten",
    ]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "__0_0.distcp"])
def test_weights_of_another_kind_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=name):
        inspect.inspect(tmp_path)


def test_compose_refuses_an_architecture_that_no_release_has(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from fp4forge.cli import cli

    folder = publish(tmp_path, llama(), LLAMA | {"architectures": ["FooBarForCausalLM"]})
    command = ["serve", "compose", "--model", str(folder), "--arch", "sm120", "--gpu", "rtx5090"]
    refused = CliRunner().invoke(cli, [*command, "--registry", "127.0.0.1:9"])
    assert isinstance(refused.exception, CheckpointError)
    assert "unknown-architecture" in str(refused.exception.rule)
    image = "127.0.0.1:5000/own/image@sha256:" + "a" * 64  # it may be patched: a note
    noted = CliRunner().invoke(cli, [*command, "--image", image])
    assert noted.exit_code == 0
    assert "FooBarForCausalLM: not in vLLM" in noted.output
