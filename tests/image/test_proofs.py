"""The patches do what their records say, and the code without them shows the symptom.

``proofs/run.py`` runs in the container on its own vLLM, on a CPU: with the patched files, and with
the originals in their place (from the pinned sdist).
"""

from __future__ import annotations

import json
import re
from concurrent.futures import Future
from typing import Any

import pytest

# bfloat16 keeps 8 bits: sums of 64 to 256 products differ by a few 2**-8 of their size.
TOLERANCE = 0.05

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def runs(proof_runs: Future[Any] | None) -> dict[str, Results]:
    """What each run found, once all have ended."""
    if proof_runs is None:
        pytest.skip("this variant has no patches to prove")
    done = proof_runs.result()
    assert done.rc == 0, f"the proofs could not run: {done.stderr.strip()[-600:]}"
    found: dict[str, Results] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture(scope="session")
def patched(runs: dict[str, Results]) -> Results:
    """Results with the image's own files."""
    return runs["patched"]


@pytest.fixture(scope="session")
def original(runs: dict[str, Results]) -> Results:
    """Results with all of vLLM's original files."""
    return runs["original"]


@pytest.fixture(autouse=True)
def needed(request: pytest.FixtureRequest, plan: dict[str, Any]) -> None:
    """Skips the proof of a patch that this vLLM does not need."""
    mark = request.node.get_closest_marker("patch")
    if mark and mark.args[0] not in plan["patches"]:
        pytest.skip(f"vLLM {plan['vllm_version']} needs no {mark.args[0]}")


def wrong(result: dict[str, Any]) -> bool:
    """Whether a checkpoint did not load, or its numbers are not finite."""
    return result["outcome"] != "done" or float("inf") in (
        result["linear_error"],
        result["moe_error"],
    )


def loaded(result: dict[str, Any]) -> None:
    """Asserts that a checkpoint loaded byte for byte and computes what it should."""
    assert result["outcome"] == "done", f"{result['outcome']}: {result.get('message')}"
    assert not result["wrong"] + result["unknown"], f"wrong bytes in {result['wrong'][:3]}"
    assert max(result["linear_error"], result["moe_error"]) < TOLERANCE, "numbers differ"


def test_native_names_load(patched: Results, original: Results) -> None:
    """ModelOpt's tensor names load, every expert tensor byte for byte in place"""
    for result in (patched["native"], patched["multimodal"], original["native"]):
        loaded(result)
        assert all("attn.attn" in name for name in result["untouched"]), result["untouched"]


@pytest.mark.patch("gemma4-moe-prefix")
def test_moe_prefix(patched: Results, original: Results) -> None:
    """gemma4-moe-prefix: names with .moe load; unpatched, they are not found"""
    for case in ("moe_prefix", "multimodal_moe_prefix"):
        loaded(patched[case])
        assert original[case]["outcome"] in ("KeyError", "ValueError")
        assert "layers.0.moe" in original[case]["message"]


@pytest.mark.patch("gemma4-gelu-tanh")
def test_gelu_tanh(patched: Results, original: Results) -> None:
    """gemma4-gelu-tanh: experts compute transformers' activation; unpatched, erf GELU"""
    assert patched["activation"]["error"] < 1e-6
    assert patched["activation"]["refuse"] == [], "MoE backends that refuse the activation"
    assert original["activation"]["error"] > 1e-4


@pytest.mark.patch("modelopt-nan-block-scales")
def test_nan_block_scales(patched: Results, original: Results) -> None:
    """modelopt-nan-block-scales: NaN scales are zeroed and counted; unpatched, NaN or refused"""
    loaded(patched["nan_scales"])
    log = patched["nan_scales"]["log"]
    for where in ("o_proj: 1 of", "w13_weight_scale: 1 of", "w2_weight_scale: 1 of"):
        assert where in log, f"no warning about {where}"
    assert wrong(original["nan_scales"])
    assert "set to zero" not in original["nan_scales"].get("log", "")


@pytest.mark.patch("modelopt-expert-input-scales")
def test_expert_input_scales(patched: Results, original: Results) -> None:
    """modelopt-expert-input-scales: bad scales are refused by name; unpatched, they load"""
    for case, experts in (
        ("no_input_scale", "experts 2, 6"),
        ("zero_input_scale", "experts 1"),
        ("negative_input_scale", "experts 4"),
    ):
        assert patched[case]["outcome"] == "ValueError"
        assert experts in patched[case]["message"]
        where = r"layers\.0\.(moe\.)?experts\S*\.w13_input_scale"
        assert re.search(where, patched[case]["message"]), patched[case]["message"]
        assert original[case]["outcome"] == "done"
    assert any("input_scale" in name for name in original["no_input_scale"]["unknown"])


@pytest.mark.patch("modelopt-dense-input-scales")
def test_dense_input_scales(patched: Results, original: Results) -> None:
    """modelopt-dense-input-scales: a missing one is refused by name; unpatched, it loads"""
    case = "no_dense_input_scale"
    assert patched[case]["outcome"] == "ValueError", patched[case]
    assert "mlp.down_proj" in patched[case]["message"]
    assert "input_scale is missing" in patched[case]["message"]
    assert original[case]["outcome"] == "done"


@pytest.mark.patch("modelopt-nvfp4-awq")
def test_nvfp4_awq(patched: Results, original: Results) -> None:
    """modelopt-nvfp4-awq: dense layers work, experts are refused; unpatched, all are refused"""
    loaded(patched["awq_dense"])
    assert patched["awq_experts"]["outcome"] == "ValueError"
    assert "pre_quant_scale" in patched["awq_experts"]["message"]
    for case in ("awq_dense", "awq_experts"):
        assert "currently only supports" in original[case]["message"]


@pytest.mark.patch("modelopt-nvfp4-awq")
def test_nvfp4_awq_on_two_ranks(patched: Results, original: Results) -> None:
    """modelopt-nvfp4-awq: factors follow the input's shards and stay; wrong ones are refused"""
    result = patched["tensor_parallel"]
    assert result["outcome"] == "done", result.get("message")
    assert result["second_half"], "rank 1 of 2 does not have the second half"
    assert "differ" in result["differing"]
    assert "1 of 2 fused layers" in result["half_filled"]
    assert result["kept"], "a kernel that replaces the layer's parameters loses the factors"
    assert original["tensor_parallel"]["outcome"] == "AttributeError"


@pytest.mark.patch("chat-batch-reasoning")
def test_batch_chat(patched: Results, original: Results) -> None:
    """chat-batch-reasoning: reasoning and content are separated; unpatched, all is content"""
    assert patched["batch_chat"]["outcome"] == "done", patched["batch_chat"].get("message")
    assert patched["batch_chat"]["reasoning"] == ["first I think"] * 2
    content = "then I call <|tool_call>call:f{}<tool_call|>"
    assert patched["batch_chat"]["content"] == [content] * 2
    assert original["batch_chat"]["reasoning"] == [None] * 2
    assert "first I think" in original["batch_chat"]["content"][0]


@pytest.mark.patch("flash-attn-optional")
def test_flash_attn_optional(patched: Results, original: Results) -> None:
    """flash-attn-optional: a build without FlashAttention imports; unpatched, ImportError"""
    result = patched["without_flash_attn"]
    assert result["outcome"] == "done", result.get("message")
    assert result["version"] is None and "--attention-backend TRITON_ATTN" in result["called"]
    assert original["without_flash_attn"]["outcome"] == "ImportError"


def test_emulation_scales(runs: dict[str, Results], plan: dict[str, Any], patched: Results) -> None:
    """nvfp4-emulation-scales: the emulated layer computes correctly; unpatched, it fails"""
    if "emulation" not in runs:
        pytest.skip(f"vLLM {plan['vllm_version']} has the fix itself")
    loaded(patched["native"])
    result = runs["emulation"]["native"]
    wrong = result["outcome"] == "RuntimeError" or result["linear_error"] > 10 * TOLERANCE
    assert wrong, "without the patch the numbers are right too"
