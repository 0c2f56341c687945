"""The program that asks vLLM in its image, with a small vLLM in place of the real one."""

from __future__ import annotations

import os
import sys
from collections import namedtuple
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from fp4forge.backends.inside import ask as inside
from fp4forge.models.backend_answers import BackendDecision


class Backend(Enum):
    CUTLASS = "CUTLASS"
    FLASHINFER = "FLASHINFER"
    MARLIN = "MARLIN"
    BATCHED = "BATCHED"


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        made = sys.modules.get(path)
        if made is None:
            made = ModuleType(path)
            monkeypatch.setitem(sys.modules, path, made)
            if end > 1:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], made)
    for key, value in contents.items():
        setattr(sys.modules[name], key, value)


def kernel(name: str, reason: str) -> Any:
    def supported(*args: Any) -> tuple[bool, str | None]:
        return not reason, reason or None

    return type(name, (), {"is_supported_config": staticmethod(supported)})


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Experts of a vLLM that tries FlashInfer, CUTLASS, Marlin; its variable forces Marlin."""
    kernels = {
        Backend.FLASHINFER: [kernel("A", "no GELU"), kernel("B", "no device")],
        Backend.CUTLASS: [kernel("C", "")],
        Backend.MARLIN: [kernel("M", "")],
        Backend.BATCHED: [kernel("D", "no format")],
    }
    name = "vllm.model_executor.layers.fused_moe.oracle.nvfp4"

    def select(config: Any, weights: Any, activations: Any) -> tuple[Any, Any]:
        module = sys.modules[name]
        if os.environ.get("VLLM_FORCE_MARLIN"):
            return Backend.MARLIN, None
        for backend in (Backend.FLASHINFER, Backend.CUTLASS, Backend.MARLIN):
            for one in module.backend_to_kernel_cls(backend):
                if one.is_supported_config(one)[0]:
                    return backend, one
        raise NotImplementedError("No backend supports the deployment configuration.")

    module(
        monkeypatch,
        name,
        NvFp4MoeBackend=Backend,
        backend_to_kernel_cls=kernels.__getitem__,
        select_nvfp4_moe_backend=select,
    )
    formats = SimpleNamespace(Standard="standard")
    module(
        monkeypatch,
        "vllm.model_executor.layers.fused_moe.modular_kernel",
        FusedMoEActivationFormat=formats,
    )
    return SimpleNamespace(kernels=kernels)


LAYER = SimpleNamespace(
    num_experts=128,
    experts_per_token=8,
    activation=SimpleNamespace(value="gelu_tanh"),
    routing_method=SimpleNamespace(name="Custom"),
)


def decision(found: dict[str, Any]) -> BackendDecision:
    return msgspec.convert(found, BackendDecision)


def test_experts_in_vllms_order_with_its_reasons(oracle: Any) -> None:
    found = decision(inside.experts((LAYER, "w", "a")))
    assert found.layer == "128 experts, 8 a token, gelu_tanh, Custom routing"
    assert [one.name for one in found.options] == ["FLASHINFER", "CUTLASS", "MARLIN", "BATCHED"]
    assert [one.automatic for one in found.options] == [True, True, True, False]
    assert found.options[0].reason == "no GELU; no device"
    assert (found.options[1].kernel, found.options[1].usable) == ("C", True)
    assert (found.selected, found.image, found.refused) == ("CUTLASS", "CUTLASS", "")


def test_the_images_variables_change_its_own_selection_alone(
    oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "_GIVEN", {"VLLM_FORCE_MARLIN": "1"})
    monkeypatch.setenv("VLLM_FORCE_MARLIN", "1")
    found = decision(inside.experts((LAYER, "w", "a")))
    assert (found.selected, found.image) == ("CUTLASS", "MARLIN")


def test_experts_that_nothing_runs_have_vllms_message(oracle: Any) -> None:
    for backend in (Backend.CUTLASS, Backend.MARLIN):
        oracle.kernels[backend] = [kernel("N", "no scheme")]
    found = decision(inside.experts((LAYER, "w", "a")))
    assert (found.selected, found.image) == ("", "")
    assert found.refused == "No backend supports the deployment configuration."
    assert not any(one.usable for one in found.options)


def test_a_backend_whose_package_is_missing_is_refused_with_the_error(oracle: Any) -> None:
    del oracle.kernels[Backend.BATCHED]
    found = decision(inside.experts((LAYER, "w", "a")))
    assert found.options[-1].reason == repr(Backend.BATCHED)
    assert found.selected == "CUTLASS"


def linear_kernel(name: str, supported: str, possible: str) -> Any:
    methods = {
        "is_supported": staticmethod(lambda: (not supported, supported or None)),
        "can_implement": staticmethod(lambda config: (not possible, possible or None)),
    }
    return type(name, (), methods)


def test_linear_kernels_that_are_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [
        linear_kernel("First", "sm_100 required", "no size"),
        linear_kernel("Second", "", "no size"),
        linear_kernel("Third", "", ""),
    ]
    module(
        monkeypatch,
        "vllm.model_executor.kernels.linear",
        NvFp4LinearLayerConfig=object,
        _POSSIBLE_NVFP4_KERNELS={"cuda": kernels},
        init_nvfp4_linear_kernel=kernels[2],
    )
    platform = SimpleNamespace(_enum="cuda")
    module(monkeypatch, "vllm.platforms", current_platform=platform)
    found = decision(inside.linear())
    assert [one.reason for one in found.options] == ["sm_100 required", "no size", ""]
    assert found.selected == "Third"


def test_linear_kernels_of_releases_with_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    class Linear(Enum):
        FLASHINFER_CUTLASS = "flashinfer-cutlass"
        FBGEMM = "fbgemm"
        MARLIN = "marlin"

    def select() -> Linear:
        if os.environ.get("VLLM_USE_FBGEMM"):
            raise ImportError("Backend fbgemm requires an operator")
        asked = os.environ.get("VLLM_NVFP4_GEMM_BACKEND", "marlin")
        assert asked == "marlin", f"FlashInfer is required for {asked}"
        return Linear(asked)

    module(monkeypatch, "vllm.model_executor.kernels.linear")
    module(
        monkeypatch,
        "vllm.model_executor.layers.quantization.utils.nvfp4_utils",
        select_nvfp4_linear_backend=select,
        NvFp4LinearBackend=Linear,
    )
    found = decision(inside.linear())
    assert found.selected == "MARLIN"
    assert "FlashInfer is required for flashinfer-cutlass" in found.options[0].reason
    assert found.options[1].reason == "Backend fbgemm requires an operator"
    assert found.options[2].usable


class Attention(Enum):
    FLASH = "vllm.Flash"
    TRITON = "vllm.Triton"
    FLEX = "vllm.Flex"

    def get_path(self) -> str:
        return str(self.value)


Layer = namedtuple("Layer", "head_size use_mla has_sink attn_type")
HEADS = Layer(head_size=512, use_mla=False, has_sink=True, attn_type="decoder")


def platform(valid: list[Any], invalid: dict[Any, Any], chosen: str) -> Any:
    def select(forced: Any, **given: Any) -> str:
        if forced is Attention.FLEX or not chosen:
            raise ValueError("No valid attention backend. Reasons: {FLEX: [many]}")
        return chosen

    return SimpleNamespace(
        get_device_capability=lambda: (12, 1),
        get_valid_backends=lambda **given: (valid, invalid),
        get_attn_backend_cls=select,
    )


def test_attention_in_vllms_order_of_preference() -> None:
    valid = [(Attention.TRITON, 1), (Attention.FLEX, 2)]
    invalid = {Attention.FLASH: (0, ["head_size not supported", "sinks not supported"])}
    found = decision(
        inside.attention(platform(valid, invalid, "vllm.Triton"), (None, HEADS, 8), "auto")
    )
    assert [one.name for one in found.options] == ["FLASH", "TRITON", "FLEX"]
    assert found.options[0].reason == "head_size not supported, sinks not supported"
    assert (found.layer, found.cache) == ("head size 512, sink", "auto")
    assert (found.selected, found.demanded) == ("TRITON", "")


def test_attention_that_the_models_own_rule_leaves_no_choice_for() -> None:
    valid = [(Attention.FLASH, 0), (Attention.TRITON, 1)]
    stand_in = platform(valid, {}, "vllm.Triton")
    found = decision(inside.attention(stand_in, (Attention.TRITON, HEADS, 8), "fp8_e4m3"))
    assert (found.selected, found.demanded) == ("TRITON", "TRITON")


def test_attention_that_nothing_runs_has_vllms_message_without_the_options() -> None:
    invalid = {Attention.FLEX: (0, ["kv_cache_dtype not supported"])}
    found = decision(inside.attention(platform([], invalid, ""), (None, HEADS, 8), "nvfp4"))
    assert (found.selected, found.refused) == ("", "No valid attention backend.")
