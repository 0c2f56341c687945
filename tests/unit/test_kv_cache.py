"""Types of KV cache: only those that a release has, and that its attention takes on the GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fp4forge.checkpoint.config import ModelConfig
from fp4forge.core.errors import UsageError
from fp4forge.models import backend_answers, family
from fp4forge.serve import kv_cache_types, layer_state, recipes, settings
from fp4forge.serve.setting import ServerSetting

CONFIGS: dict[str, Any] = {name: one.config for name, one in family.examples().items()}
IMAGE = "127.0.0.1:5000/fp4forge/vllm@sha256:" + "a" * 64


def layers(name: str, kind: str) -> tuple[layer_state.LayerGroup, ...]:
    return layer_state.layers(msgspec.convert(CONFIGS[name], ModelConfig), Path(name), kind)


@pytest.mark.parametrize(
    ("kind", "version", "says"),
    [
        ("nvfp4", "0.19.1", "--release 0.33.0 has it"),
        ("int4_per_token_head", "0.20.2", "vLLM 0.20.2 does not have it"),
        ("int4_per_token_head", "0.33.0", "its size is not known here"),
        ("fp4", "0.33.0", "no release here has it"),
    ],
)
def test_a_type_that_a_release_lacks_is_refused(kind: str, version: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        kv_cache_types.available(kind, version)
    error = caught.value
    assert says in " ".join((error.message, str(error.rule), str(error.remedy)))


def test_a_type_that_no_attention_takes_on_the_gpu_is_refused() -> None:
    """The kept answers of 0.20.2's own selection code."""
    with pytest.raises(UsageError) as caught:
        kv_cache_types.check("nvfp4", "0.20.2", ("sm120",), "llama3")
    assert "takes it on sm120" in caught.value.message
    assert "kv_cache_dtype not supported" in str(caught.value.rule)
    assert caught.value.remedy == "--kv-cache-dtype auto or fp8_e4m3"


def test_what_attention_takes_is_not_remarked_on() -> None:
    for answer in backend_answers.load("0.20.2"):
        for kind in ("fp8_e4m3", "fp8", "auto", "bfloat16"):
            assert not kv_cache_types.check(kind, "0.20.2", (answer.gpu,), answer.family)


def test_what_nobody_asked_is_said() -> None:
    said = kv_cache_types.check("fp8_e5m2", "0.20.2", ("sm120", "sm121"), "qwen3")
    assert "sm120, sm121 was not asked" in said
    assert not kv_cache_types.check(kv_cache_types.DEFAULT, "0.20.2", ("sm120",), "")


def test_the_manifest_has_the_type_and_refuses_a_wrong_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["llama-3.3-70b"]))
    wishes = settings.ServerWishes(version="0.20.2", gpus=("sm120",), kv_cache="bfloat16")
    made = settings.server(tmp_path, IMAGE, wishes)
    assert "bfloat16" in made.arguments
    with pytest.raises(UsageError, match="nvfp4"):
        settings.server(tmp_path, IMAGE, replace(wishes, kv_cache="nvfp4"))


def test_an_fp4_cache_has_a_scale_for_16_values() -> None:
    (fp8,), (fp4,) = layers("llama-3.3-70b", "fp8"), layers("llama-3.3-70b", "nvfp4")
    assert (fp8.token_bytes, fp4.token_bytes) == (2 * 8 * 128, 2 * 8 * (64 + 8))
    with pytest.raises(UsageError, match="not for this model"):
        layers("deepseek-v3", "nvfp4")


def test_a_recipe_s_type_is_taken_if_it_has_the_size_that_fits(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["llama-3.3-70b"]))
    made = settings.server(tmp_path, IMAGE, settings.ServerWishes(version="0.20.2"))
    for value, says in (("fp8", ""), ("bfloat16", "fits was computed"), ("int4", "lacks int4")):
        flag = ServerSetting("--kv-cache-dtype", value, "of a recipe")
        chosen = recipes.RecipeSettings(
            model="m", flags=(flag,), environment=(), asks_for="", notes=()
        )
        notes = recipes.apply(made, chosen).notes
        assert (says in " ".join(notes)) if says else not any("kv-cache" in n for n in notes)
