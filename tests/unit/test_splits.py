"""Data parallelism, embeddings that are looked up, and models of no known family, in a fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import CheckpointError
from fp4forge.kernels.gpus import product
from fp4forge.serve import model_sizes, placing, split
from fp4forge.serve.layer_state import LayerGroup
from fp4forge.serve.model_sizes import ModelSizes
from fp4forge.serve.placing import WantedCapacity
from fp4forge.serve.split import ONE, GpuSplit
from tests.checkpoints import TINY, gemma4, linear, plain, publish, write

GB = 10**9
MOE = ModelSizes(
    weights=100 * GB,
    experts=90 * GB,
    embeddings=GB,
    output=GB,
    num_experts=256,
    top_k=8,
    hidden=4096,
    expert_width=1536,
    heads=64,
    vocabulary=100_000,
    max_context=131072,
    num_layers=60,
    attention=(LayerGroup(60, 576, None, kind="latent"),),
)
WANTED = WantedCapacity(context=65536, sequences=4, utilization=0.85)


def test_data_parallel_ranks_share_the_experts_and_nothing_else() -> None:
    two = split.shard(MOE, GpuSplit(data=2))
    assert two.experts == 45 * GB
    assert two.weights == 55 * GB
    assert two.attention == MOE.attention
    four = split.shard(MOE, GpuSplit(tensor=2, data=2, experts=True))
    assert (four.experts, four.weights) == (90 * GB // 4, 90 * GB // 4 + 5 * GB)
    assert four.expert_width == MOE.expert_width
    assert GpuSplit(2, 1, True, 2).text == "TP 2, DP 2, EP"
    assert (
        GpuSplit(2, 1, True, 2).flags == "--tensor-parallel 2 --data-parallel 2 --expert-parallel"
    )
    assert GpuSplit(2, 2, False, 2).gpus == 8


def test_each_rank_has_a_cache_of_its_own() -> None:
    """MLA's latent is whole on each GPU of a tensor-parallel group; data parallelism divides it."""
    gpu = product("b200")
    tensor = placing.on(MOE, gpu, GpuSplit(8), WANTED)
    data = placing.on(MOE, gpu, GpuSplit(experts=True, data=8), WANTED)
    assert data.sequences % 8 == 0
    assert data.sequences > 5 * tensor.sequences
    assert (
        data.fit.activations
        > placing.on(MOE, gpu, GpuSplit(8, experts=True), WANTED).fit.activations
    )


@pytest.mark.parametrize(
    ("ways", "says"),
    [
        (GpuSplit(data=2), ""),
        (GpuSplit(tensor=4, data=8), "cut 32 ways"),
        (GpuSplit(tensor=4, data=8, experts=True), ""),
        (GpuSplit(tensor=64, data=8, experts=True), "256 experts are fewer than 512 GPUs"),
    ],
)
def test_experts_are_divided_over_all_ranks(ways: GpuSplit, says: str) -> None:
    assert says in "; ".join(split.problems(MOE, ways))
    assert bool(says) == bool(split.problems(MOE, ways))


def test_data_parallelism_is_offered_last_and_on_one_machine() -> None:
    listed = list(split.choices(MOE, 8, data=True))
    assert any(one.data > 1 for one in listed)
    assert [one.data for one in listed if one.gpus == 2][:2] == [1, 1]
    assert all(one.data == 1 for one in split.choices(MOE, 8))
    odd = replace(MOE, heads=7, num_layers=1, expert_width=128)  # nothing else divides it
    found = placing.smallest(odd, product("rtxpro6000"), WANTED)
    assert found and found.split.data == 2
    assert placing.smallest(odd, product("gb10"), replace(WANTED, utilization=0.5)) is None
    dense = replace(MOE, num_experts=0, experts=0)
    assert all(one.data == 1 for one in split.choices(dense, 8, data=True))


def test_embeddings_of_each_layer_are_looked_up_and_not_read(tmp_path: Path) -> None:
    """As Gemma-4 E2B and E4B have them."""
    tensors = gemma4(TINY) | plain("model.embed_tokens_per_layer", 320, 2 * 16)
    found = model_sizes.read(write(tmp_path / "a", tensors, TINY))
    without = model_sizes.read(write(tmp_path / "b", gemma4(TINY), TINY))
    assert found.lookups == 320 * 32 * 2
    assert found.weights == without.weights + found.lookups
    assert found.read_per_token() == without.read_per_token()
    assert split.shard(found, GpuSplit(2)).lookups == found.lookups // 2


HYBRID: dict[str, Any] = {
    "model_type": "unheard_of",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "every layer is counted as full attention"),
        ({"mamba_d_state": 16, "attn_layer_period": 8}, "attn_layer_period, mamba_d_state says"),
        ({"linear_attn_config": {"kda_layers": [1]}}, "linear_attn_config says"),
        ({"text_config": {**HYBRID, "ssm_cfg": {}}}, "ssm_cfg says"),
        ({"text_config": None}, "every layer is counted as full attention"),
        ({"layer_types": ["full_attention"] * 4}, "counted as layer_types says"),
        ({"kv_lora_rank": 64, "qk_rope_head_dim": 16}, "latent"),
    ],
)
def test_what_is_assumed_of_an_unknown_model_is_said(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = publish(tmp_path, linear("model.layers.0.mlp.up_proj", 64, 64), HYBRID | changes)
    said = model_sizes.read(folder).assumed
    assert says in said
    assert "unheard_of" in said


def test_nothing_is_assumed_of_a_known_model(tmp_path: Path) -> None:
    assert not model_sizes.read(write(tmp_path, gemma4(TINY), TINY)).assumed


def test_an_unknown_kind_of_layer_is_refused(tmp_path: Path) -> None:
    kinds = ["mamba", "full_attention", "mamba", "full_attention"]
    folder = publish(
        tmp_path, linear("a.layers.0.up_proj", 64, 64), HYBRID | {"layer_types": kinds}
    )
    with pytest.raises(CheckpointError, match="'mamba' is not known") as caught:
        model_sizes.read(folder)
    assert "add a file for the model's family" in str(caught.value.remedy)


def test_the_command_says_what_it_assumed(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from fp4forge.cli import cli

    config = HYBRID | {"mamba_d_state": 16}
    folder = publish(tmp_path, linear("model.layers.0.mlp.up_proj", 64, 64), config)
    command = ["serve", "fit", "--model", str(folder), "--gpu", "b200"]
    assert "mamba_d_state" in CliRunner().invoke(cli, command).output
    read = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert "mamba_d_state" in read["assumed"]
    assert read["gpus"][0]["split"] == {"tensor": 1, "pipeline": 1, "experts": False, "data": 1}
    assert GpuSplit(1, 1, False, 1) == ONE
