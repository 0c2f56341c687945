"""Every model family: its file, its layers' state to the byte, its splits, its manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fp4forge.checkpoint.config import ModelConfig
from fp4forge.core import paths
from fp4forge.core.errors import CheckpointError, FitError, ReleaseError, UsageError
from fp4forge.kernels.gpus import PRODUCTS, product
from fp4forge.models import family
from fp4forge.serve import kv_cache, layer_state, lora, manifest, memory, placing, settings, split
from fp4forge.serve.model_sizes import ModelSizes, read
from fp4forge.serve.setting import ServerSetting
from fp4forge.serve.split import GpuSplit
from tests.checkpoints import TINY, gemma4, write

EXAMPLES = family.examples()
CONFIGS: dict[str, Any] = {name: one.config for name, one in EXAMPLES.items()}
IMAGE = "127.0.0.1:5000/fp4forge/vllm@sha256:" + "a" * 64


def layers(name: str, **changes: Any) -> tuple[layer_state.LayerGroup, ...]:
    given = json.loads(json.dumps(CONFIGS[name]))
    given.get("text_config", given).update(changes)
    return layer_state.layers(msgspec.convert(given, ModelConfig), Path(name), "fp8_e4m3")


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_models_state(name: str) -> None:
    """The family's file has the figures, from the shapes that the model is published with.

    tests/e2e/test_fit.py asks vLLM's own code for them.
    """
    covering = msgspec.convert(CONFIGS[name], ModelConfig).family
    assert name in family.get(covering).examples
    found = layers(name)
    assert sum(kind.count * kind.token_bytes for kind in found) == EXAMPLES[name].token_bytes
    megabytes = sum(kind.count * kind.state_bytes for kind in found) / 1e6
    assert megabytes == pytest.approx(EXAMPLES[name].state_mb, abs=0.001)


def test_no_two_families_have_an_example_of_one_name() -> None:
    assert len(EXAMPLES) == sum(len(one.examples) for one in family.table().values())


def test_what_transformers_leaves_out_is_supplied() -> None:
    """A configuration is saved without what its class has by default."""
    whole = layers("qwen3.6-27b")
    absent = dict.fromkeys(
        ("layer_types", "head_dim", "linear_conv_kernel_dim", "linear_key_head_dim"), None
    )
    again = layers("qwen3.6-27b", **absent)
    assert set(again) == set(whole)
    assert len(layers("gpt-oss-120b", layer_types=None)) == 2


def test_a_window_that_is_switched_off_counts_for_nothing() -> None:
    windowed = {"sliding_window": 4096, "use_sliding_window": False}
    assert [kind.window for kind in layers("qwen3-30b-a3b", **windowed)] == [None]
    assert [k.window for k in layers("mistral-small-3.2-24b", sliding_window=4096)] == [4096]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("qwen3.6-27b", {"layer_types": ["quantum_attention"] * 64}, "quantum_attention"),
        ("nemotron-3-nano-30b-a3b", {"hybrid_override_pattern": "MX" * 26}, "'X'"),
        ("nemotron-3-nano-30b-a3b", {"hybrid_override_pattern": "EE" * 26}, "no layer keeps"),
        ("nemotron-3-nano-30b-a3b", {"mamba_ssm_cache_dtype": "int3"}, "int3"),
        ("gemma-4-31b", {"layer_types": ["full_attention"] * 3}, "do not go together"),
        ("gpt-oss-120b", {"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
)
def test_a_configuration_that_lies_is_refused(
    name: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        layers(name, **changes)
    assert says in caught.value.message


def test_a_model_that_no_file_covers_gets_nothing_of_a_family() -> None:
    given = CONFIGS["llama-3.3-70b"] | {
        "model_type": "novel",
        "architectures": ["NovelForCausalLM"],
    }
    config = msgspec.convert(given, ModelConfig)
    assert config.family == ""
    assert layer_state.layers(config, Path("m"), "fp8")[0].token_bytes == 2 * 8 * 128
    latent = msgspec.convert(CONFIGS["deepseek-v3"] | {"model_type": "novel"}, ModelConfig)
    assert layer_state.layers(latent, Path("m"), "fp8")[0].token_bytes == 576
    # Another vocabulary: not Llama 3, although its model_type is the same.
    other = msgspec.convert(CONFIGS["llama-3.3-70b"] | {"vocab_size": 32000}, ModelConfig)
    assert other.family == ""


def whole(name: str, weights: int, **sizes: Any) -> ModelSizes:
    """A model of those shapes whose weights have a given size, its experts nine tenths of it."""
    config = msgspec.convert(CONFIGS[name], ModelConfig)
    text = config.complete
    return ModelSizes(
        weights=weights,
        experts=weights * 9 // 10 if text.experts else 0,
        num_experts=text.experts,
        top_k=text.num_experts_per_tok or text.top_k_experts or 0,
        hidden=text.hidden_size or 0,
        expert_width=text.moe_intermediate_size or text.intermediate_size or 0,  # type: ignore[arg-type]
        heads=text.num_attention_heads or 0,
        vocabulary=text.vocab_size or 0,
        max_context=text.max_position_embeddings or 0,
        num_layers=text.num_hidden_layers or 0,
        attention=layers(name),
        family=config.family,
        **sizes,
    )


def test_a_fixed_state_takes_blocks_of_its_own() -> None:
    """Qwen3.6-27B, FP8: attention blocks grow to 1,568 tokens, so that one holds a state."""
    model = whole("qwen3.6-27b", 22 * 10**9)
    size, page, groups = kv_cache.groups(model)
    assert (size, page) == (16, 1568 * 2048)
    assert sorted(tokens for _, tokens in groups) == [0, 0, 0, 1568]
    assert kv_cache.blocks_per_sequence(model, 65536, 2048) == 42 + 3 * kv_cache.STATES_PER_SEQUENCE
    # noonghunna/club-3090: 65,536 tokens served on an RTX 5090 at 0.85 with 3.93 GiB of cache.
    assert int(3.93 * 2**30) // (size * page) >= 42 + 6


LOGGED: dict[str, Any] = {
    f"{file.stem}-{name}": found
    for file in sorted((paths.ROOT / "docs/evidence/families").glob("*.json"))
    for name, found in json.loads(file.read_text())["models"].items()
}


@pytest.mark.parametrize("name", [name for name in LOGGED if "logged" in LOGGED[name]])
def test_the_cache_is_what_vllm_logged_on_a_gpu(name: str) -> None:
    """Small models of each kind, 4,096 tokens a sequence; the logs round GiB to two digits."""
    found, logged = LOGGED[name], LOGGED[name]["logged"]
    config = msgspec.convert(found["config"], ModelConfig)
    kinds = layer_state.layers(config, Path(name), found.get("kv_cache", "fp8_e4m3"))
    number = config.text.num_hidden_layers or 0
    model = ModelSizes(
        weights=0,
        hidden=1,
        expert_width=1,
        vocabulary=1,
        max_context=8192,
        num_layers=number,
        attention=kinds,
    )
    size, page, groups = kv_cache.groups(model)
    blocks = kv_cache.blocks_per_sequence(model, 4096, 8192)
    if not found["prefix_caching"]:  # one state of each sequence instead of two
        blocks -= sum(not tokens for _, tokens in groups)
    available = logged.get("available_bytes") or int(logged["available_gib"] * 2**30)
    concurrency = available // (size * page) / blocks
    assert concurrency == pytest.approx(logged["concurrency"], rel=3e-4)
    if "block_tokens" in logged:
        assert max(tokens for _, tokens in groups) == logged["block_tokens"]
    if "graphs_gib" in logged:
        graphs = memory.fit(model, product("b200"), 0.5, 16, 8192).graphs / 2**30
        assert logged["graphs_gib"] < graphs < 3 * logged["graphs_estimated_gib"]


def test_graphs_follow_the_sequences() -> None:
    """club-3090's log: 0.08 GiB for one sequence of Qwen3.6-27B; ours is above it, not far."""
    model = whole("qwen3.6-27b", 22 * 10**9)
    one, many = (memory.fit(model, product("rtx5090"), 0.85, n, 2048).graphs for n in (1, 256))
    assert 0.08 < one / 2**30 < 0.5
    assert many > 20 * one


# Measured by others: tokens a second of one sequence, with the bytes that the model reads for each.
MEASURED = {
    "NVIDIA/dgx-spark-playbooks PR #91": ("llama-3.3-70b", "gb10", 40_610_000_000, 6.72),
    "the reference card": ("gemma-4-26b-a4b", "gb10", 3_230_000_000, 51.0),
}


@pytest.mark.parametrize("source", MEASURED)
def test_our_bound_is_above_what_was_measured(source: str) -> None:
    name, gpu, read, measured = MEASURED[source]
    model = replace(whole(name, read), experts=0, num_experts=0)
    bound = memory.decode_rate(model, product(gpu), 1, 1)
    assert measured <= bound < 2 * measured


@pytest.mark.parametrize(
    ("name", "ways", "says"),
    [
        ("gemma-4-26b-a4b", GpuSplit(2), "704"),  # 352 is not a multiple of 64
        ("gemma-4-26b-a4b", GpuSplit(2, experts=True), ""),
        ("minimax-m2", GpuSplit(3), "8 KV heads"),
        ("minimax-m2", GpuSplit(2), ""),
        ("minimax-m2", GpuSplit(16), "1,536"),
        ("minimax-m2", GpuSplit(16, experts=True), ""),  # each KV head is on two GPUs
        ("glm-4.7-flash", GpuSplit(8), "20 attention heads"),
        ("llama-3.3-70b", GpuSplit(2, experts=True), "no experts"),
        ("deepseek-v3", GpuSplit(4), ""),
        ("qwen3.6-35b-a3b", GpuSplit(16), "512"),
        ("llama-3.3-70b", GpuSplit(1, 100), "80 layers"),
        ("llama-4-scout", GpuSplit(32, experts=True), "40 attention heads"),
    ],
)
def test_splits_that_the_widths_allow(name: str, ways: GpuSplit, says: str) -> None:
    found = "; ".join(split.problems(whole(name, 10**9), ways))
    assert says in found
    assert bool(found) == bool(says)


def test_a_share_is_less_than_the_whole_and_more_than_its_part() -> None:
    model = whole("deepseek-v3", 400 * 10**9, replicated=10**9, embeddings=2 * 10**9)
    for ways in (GpuSplit(2), GpuSplit(4), GpuSplit(8), GpuSplit(4, 2), GpuSplit(1, 4)):
        part = split.shard(model, ways)
        assert model.weights / ways.gpus <= part.weights < model.weights * 1.2 / ways.gpus
    # A latent is whole on each GPU; KV heads are divided.
    assert split.shard(model, GpuSplit(4)).attention == model.attention
    dense = split.shard(whole("llama-3.3-70b", 10**9), GpuSplit(4)).attention[0]
    assert dense.token_bytes == 2 * 2 * 128


def test_which_gpus_and_how_many() -> None:
    wanted = placing.WantedCapacity(context=65536, sequences=1, utilization=0.85)
    large = whole("deepseek-v3", 397 * 10**9)
    found = placing.smallest(large, product("b200"), wanted)
    assert found and found.split == GpuSplit(4) and found.machines == 1
    sparks = placing.smallest(whole("minimax-m2", 134 * 10**9), product("gb10"), wanted)
    assert sparks and sparks.split == GpuSplit(2) and sparks.machines == 2
    assert placing.smallest(whole("deepseek-v3", 4 * 10**12), product("gb10"), wanted) is None


def test_what_cannot_fit_is_refused_with_the_nearest_setting_that_does() -> None:
    wanted = placing.WantedCapacity(context=131072, sequences=1, utilization=0.85)
    dense = whole("llama-3.3-70b", 16 * 10**9)
    placing.check(dense, [product("gb10")], wanted, split.ONE)
    placing.check(dense, [product("rtx5090"), product("rtxpro6000")], wanted, split.ONE)
    with pytest.raises(FitError) as caught:
        placing.check(dense, [product("rtx5090")], wanted, split.ONE)
    assert "--max-model-len" in str(caught.value.remedy)
    assert "--tensor-parallel 2" in str(caught.value.remedy)
    with pytest.raises(FitError, match="704"):
        gemma = whole("gemma-4-26b-a4b", 16 * 10**9)
        placing.check(gemma, list(PRODUCTS.values()), wanted, GpuSplit(2))
    with pytest.raises(FitError, match="2 machines"):
        minimax = whole("minimax-m2", 134 * 10**9)
        placing.check(minimax, [product("gb10")], wanted, GpuSplit(2))


def server(folder: Path, name: str, **wishes: Any) -> settings.ServerSettings:
    folder.mkdir(exist_ok=True)
    given = json.loads(json.dumps(CONFIGS[name]))
    if wishes.get("speculative") == "mtp":  # its checkpoint kept the layers for it
        given.get("text_config", given)["mtp_num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(given))
    return settings.server(folder, IMAGE, settings.ServerWishes(**({"version": "0.20.2"} | wishes)))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("version", ["0.19.1", "0.20.2", "0.33.0"])
def test_a_manifest_says_nothing_of_another_family(name: str, version: str, tmp_path: Path) -> None:
    found = server(tmp_path / name, name, version=version)
    flags = {flag.name: flag.value for flag in found.flags}
    known = family.get(found.family)
    tool = known.tool_parser
    assert flags.get("--tool-call-parser") == (tool.name if tool else None)
    assert ("--enable-auto-tool-choice" in flags) == bool(tool)
    text = json.dumps(found.as_json() | {"left_out": "", "model": ""})
    assert ("Gemma" in text) == (known.title == "Gemma 4")
    assert bool(found.notes) == (tool is None or bool(known.chat_template))
    said = f"for tool calls: {known.chat_template}" in found.notes
    assert said == bool(tool and known.chat_template)


def test_an_unknown_model_is_served_neutrally_and_told_so(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    given = CONFIGS["llama-3.3-70b"] | {"model_type": "novel", "architectures": ["Novel"]}
    (tmp_path / "m/config.json").write_text(json.dumps(given))
    wishes = settings.ServerWishes(version="0.20.2")
    found = settings.server(tmp_path / "m", IMAGE, wishes)
    names = {flag.name for flag in found.flags}
    assert not names & {"--tool-call-parser", "--reasoning-parser", "--moe-backend"}
    assert "neutral flags" in " ".join(found.notes)


def drafter(folder: Path, **sizes: Any) -> Path:
    folder.mkdir()
    given = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama"} | sizes
    (folder / "config.json").write_text(json.dumps(given))
    return folder


def test_speculation(tmp_path: Path) -> None:
    right = drafter(tmp_path / "d", vocab_size=128256, hidden_size=8192)
    found = server(tmp_path / "llama-3.3-70b", "llama-3.3-70b", speculative="eagle3", drafter=right)
    given = json.loads(next(f.value for f in found.flags if f.name == "--speculative-config"))
    assert given == {"method": "eagle3", "model": "/draft", "num_speculative_tokens": 3}
    own = server(tmp_path / "q", "qwen3.6-35b-a3b", speculative="mtp")
    given = json.loads(next(f.value for f in own.flags if f.name == "--speculative-config"))
    assert given["moe_backend"] == "auto"  # the drafter's experts are not the target's
    spark = server(tmp_path / "s", "qwen3.6-35b-a3b", speculative="mtp", gpus=("sm121",))
    given = json.loads(next(f.value for f in spark.flags if f.name == "--speculative-config"))
    assert given["moe_backend"] == "triton"  # auto's CUTLASS is not built for SM12x


@pytest.mark.parametrize(
    ("name", "wishes", "says"),
    [
        ("gemma-4-26b-a4b", {"speculative": "eagle3"}, "image_token_index"),
        ("minimax-m2", {"speculative": "mtp"}, "not known to work"),
        ("llama-3.3-70b", {"speculative": "eagle3"}, "--draft"),
        ("qwen3.6-27b", {"speculative": "medusa"}, "medusa"),
        ("qwen3.6-27b", {"speculative": "mtp", "drafter": Path("/d")}, "takes no --draft"),
        ("qwen3-30b-a3b", {"drafter": Path("/d")}, "--speculative"),
    ],
)
def test_known_traps_of_speculation(
    name: str, wishes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        server(tmp_path / name, name, **wishes)
    assert says in caught.value.message


def test_what_is_no_drafter(tmp_path: Path) -> None:
    """A model of its own, and a checkpoint without layers for multi-token prediction."""
    usual = drafter(tmp_path / "d", vocab_size=128256, hidden_size=8192)
    (usual / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(UsageError, match="is not a drafter for eagle3"):
        server(tmp_path / "l", "llama-3.3-70b", speculative="eagle3", drafter=usual)
    (tmp_path / "q").mkdir()
    (tmp_path / "q/config.json").write_text(json.dumps(CONFIGS["qwen3.6-35b-a3b"]))
    wishes = settings.ServerWishes(version="0.20.2", speculative="mtp")
    with pytest.raises(UsageError, match="has no layers for it"):
        settings.server(tmp_path / "q", IMAGE, wishes)


def test_a_checkpoint_that_is_not_whole_is_not_sized(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", gemma4(TINY), TINY, shards=2)
    assert read(folder).weights
    shard = sorted(folder.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is not whole"):
        read(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        read(folder)


def test_keys_and_addresses(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("one two\n")
    with pytest.raises(UsageError, match="holds 2 words"):
        server(tmp_path / "a", "qwen3-30b-a3b", key_file=key)
    found = server(tmp_path / "b", "qwen3-30b-a3b", listen="::", key_file=tmp_path / "elsewhere")
    assert "not on this machine" in " ".join(found.notes)
    assert '"[::]:8000:8000"' in manifest.render(found, "compose")
    open_ = server(tmp_path / "c", "qwen3-30b-a3b", listen="::")
    assert "[::]:8000 can use the model" in " ".join(open_.notes)
    assert "every pod of the cluster" in manifest.render(open_, "k8s")


def test_kubernetes_expands_nothing(tmp_path: Path) -> None:
    found = server(tmp_path / "m", "qwen3-30b-a3b")
    odd = replace(found, flags=(*found.flags, ServerSetting("--x", "$(HOME)", "a test of quoting")))
    assert '"$$(HOME)"' in manifest.render(odd, "k8s")


def test_a_drafter_of_another_model(tmp_path: Path) -> None:
    wrong = drafter(tmp_path / "d", vocab_size=151936, hidden_size=8192)
    with pytest.raises(UsageError, match="vocab_size"):
        server(tmp_path / "l", "llama-3.3-70b", speculative="eagle3", drafter=wrong)


def test_a_broken_family_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("title: Odd\nmodel_types: [odd]\nlayers:\n  otherwise: quantum\n")
    with pytest.raises(ReleaseError) as caught:
        family.load(file)
    assert "odd.yaml" in caught.value.message and "otherwise" in caught.value.message


def adapter(folder: Path, **content: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"r": 16, "peft_type": "LORA"} | content)
    )
    return folder


def test_adapters(tmp_path: Path) -> None:
    quantised = CONFIGS["minimax-m2"] | {"quantization_config": {"quant_method": "modelopt"}}
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text(json.dumps(quantised))
    given = {"law": adapter(tmp_path / "a"), "code": adapter(tmp_path / "b", r=40)}
    wishes = settings.ServerWishes(version="0.20.2", adapters=given)
    found = settings.server(tmp_path / "m", IMAGE, wishes)
    flags = {flag.name: flag.value for flag in found.flags}
    assert flags["--max-lora-rank"] == "64"
    assert flags["--moe-backend"] == "marlin"
    assert found.arguments.count("--moe-backend") == 1
    text = manifest.render(found, "compose")
    assert f'"{tmp_path}/b", target: "/lora/code", read_only: true' in text
    words = found.arguments[found.arguments.index("--lora-modules") + 1 :]
    assert words[:2] == ["law=/lora/law", "code=/lora/code"]


@pytest.mark.parametrize(
    ("content", "split_", "says"),
    [
        ({"r": 9999}, split.ONE, "r"),
        ({"peft_type": "IA3"}, split.ONE, "IA3"),
        ({"use_dora": True}, split.ONE, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, split.ONE, "modules_to_save"),
        ({}, GpuSplit(2, experts=True), "--expert-parallel"),
    ],
)
def test_adapters_that_cannot_be_served(
    content: dict[str, Any], split_: GpuSplit, says: str, tmp_path: Path
) -> None:
    given = {"x": adapter(tmp_path / "a", **content)}
    with pytest.raises((UsageError, CheckpointError)) as caught:
        server(tmp_path / "m", "minimax-m2", adapters=given, split=split_)
    assert says in caught.value.message


@pytest.mark.parametrize("words", [("law",), ("a b=/x",), ("law=/x", "law=/y"), ("=/x",)])
def test_names_of_adapters(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        lora.parse(words)
