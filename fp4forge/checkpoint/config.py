"""A checkpoint's configuration: the fields of config.json that this project reads, typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, structs

from fp4forge.core import reading
from fp4forge.core.errors import CheckpointError
from fp4forge.core.limits import COUNT, LAYERS
from fp4forge.models import family

_Size = Annotated[int, Meta(ge=0, le=COUNT)]
_Wide = _Size | list[_Size] | None  # some models' differ by layer


class LayerScheme(Struct, frozen=True):
    """One layer of ModelOpt's quantized_layers."""

    quant_algo: str
    group_size: _Size | None = None


class QuantisationArgs(Struct, frozen=True):
    """How compressed-tensors quantises weights, activations or the KV cache."""

    num_bits: _Size | None = None
    type: str | None = None
    strategy: str | None = None
    group_size: Annotated[int, Meta(ge=-1, le=COUNT)] | None = None
    symmetric: bool | None = None


class QuantisationGroup(Struct, frozen=True):
    """The layers of a compressed-tensors scheme: names, ``re:`` patterns or classes."""

    targets: list[str] | None = None
    weights: QuantisationArgs | None = None
    input_activations: QuantisationArgs | None = None


class Quantisation(Struct, frozen=True):
    """How weights were quantised, as ModelOpt, compressed-tensors and others declare it."""

    quant_algo: str | None = None
    quant_method: str | None = None
    quantized_layers: dict[str, LayerScheme] | None = None
    exclude_modules: list[str] | None = None
    ignore: list[str] | None = None
    ignored_layers: list[str] | None = None
    modules_to_not_convert: list[str] | None = None
    config_groups: dict[str, QuantisationGroup] | None = None
    kv_cache_quant_algo: str | None = None
    kv_cache_scheme: QuantisationArgs | None = None
    weight_block_size: list[_Size] | None = None
    quantization: Quantisation | None = None  # ModelOpt's older exports nest it

    @property
    def algo(self) -> str:
        """ModelOpt's algorithm in capitals; some exports write it small."""
        return (self.quant_algo or "").upper()

    @property
    def method(self) -> str:
        """Who reads the declaration; empty if it does not say."""
        return (self.quant_method or "").lower().replace("_tensors", "-tensors")

    @property
    def excluded(self) -> list[str] | None:
        """What is not quantised, by the key that vLLM's reader of this format takes."""
        lists = (self.ignore, self.exclude_modules, self.ignored_layers)
        return next((one for one in (*lists, self.modules_to_not_convert) if one is not None), None)

    @property
    def kv_cache(self) -> str:
        """FP8, NVFP4 or nothing."""
        if self.kv_cache_quant_algo:
            return self.kv_cache_quant_algo.upper()
        scheme = self.kv_cache_scheme
        return "FP8" if scheme and (scheme.num_bits, scheme.type) == (8, "float") else ""


class TextConfig(Struct, frozen=True):
    """The language model's part."""

    model_type: str | None = None
    tie_word_embeddings: bool | None = None
    hidden_activation: str | None = None
    num_hidden_layers: Annotated[int, Meta(ge=0, le=LAYERS)] | None = None
    num_experts: _Size | None = None
    n_routed_experts: _Size | None = None
    num_local_experts: _Size | None = None
    top_k_experts: _Size | None = None
    num_experts_per_tok: _Size | None = None
    hidden_size: _Size | None = None
    intermediate_size: _Wide = None
    moe_intermediate_size: _Wide = None
    n_shared_experts: _Size | None = None
    shared_expert_intermediate_size: _Size | None = None
    moe_shared_expert_intermediate_size: _Size | None = None
    vocab_size: _Size | None = None
    max_position_embeddings: Annotated[int, Meta(ge=0, le=1 << 40)] | None = None
    head_dim: _Size | None = None
    global_head_dim: _Size | None = None
    num_attention_heads: _Size | None = None
    num_key_value_heads: _Size | None = None
    num_global_key_value_heads: _Size | None = None
    num_kv_shared_layers: _Size | None = None
    attention_k_eq_v: bool | None = None
    use_double_wide_mlp: bool | None = None
    hidden_size_per_layer_input: _Size | None = None
    layer_types: list[str] | None = None
    hybrid_override_pattern: list[str] | str | None = None
    layers_block_type: list[str] | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: _Size | None = None
    full_attention_interval: _Size | None = None
    mtp_num_hidden_layers: _Size | None = None
    num_nextn_predict_layers: _Size | None = None
    sliding_window: _Size | None = None
    use_sliding_window: bool | None = None
    attention_chunk_size: _Size | None = None
    # Multi-head latent attention.
    kv_lora_rank: _Size | None = None
    qk_rope_head_dim: _Size | None = None
    q_lora_rank: _Size | None = None
    qk_nope_head_dim: _Size | None = None
    v_head_dim: _Size | None = None
    index_head_dim: _Size | None = None
    # Gated delta net.
    linear_num_value_heads: _Size | None = None
    linear_num_key_heads: _Size | None = None
    linear_key_head_dim: _Size | None = None
    linear_value_head_dim: _Size | None = None
    linear_conv_kernel_dim: _Size | None = None
    mamba_ssm_dtype: str | None = None
    # Mamba-2.
    mamba_num_heads: _Size | None = None
    mamba_head_dim: _Size | None = None
    ssm_state_size: _Size | None = None
    n_groups: _Size | None = None
    conv_kernel: _Size | None = None
    mamba_ssm_cache_dtype: str | None = None
    quantization_config: Quantisation | None = None

    @property
    def experts(self) -> int:
        """Experts of a layer, by whichever name the model has for them."""
        return self.num_experts or self.n_routed_experts or self.num_local_experts or 0


class ModelConfig(TextConfig, frozen=True):
    """config.json as a whole; a multimodal model has its language model in ``text_config``."""

    architectures: list[str] | None = None
    target_hidden_size: _Size | None = None  # of an EAGLE3 drafter
    text_config: TextConfig | None = None
    compression_config: Quantisation | None = None

    @property
    def text(self) -> TextConfig:
        """The language model's configuration."""
        return self.text_config or self

    @property
    def family(self) -> str:
        """The model family's name (``models/families``); empty if none covers it."""
        types = tuple(name for name in (self.model_type, self.text.model_type) if name)
        return family.of(types, tuple(self.architectures or ()), msgspec.structs.asdict(self.text))

    @property
    def complete(self) -> TextConfig:
        """The language model's configuration with the sizes that transformers would supply.

        A configuration is saved without the values that are its class's defaults
        (``PretrainedConfig.to_diff_dict``).
        """
        text = self.text
        given = family.get(self.family).defaults
        missing = {name: size for name, size in given.items() if getattr(text, name, 0) is None}
        return msgspec.structs.replace(text, **missing) if missing else text

    @property
    def quantisation(self) -> Quantisation:
        """What config.json declares: as vLLM looks for it, there or with the language model."""
        found = self.quantization_config or self.text.quantization_config
        found = found or self.compression_config or Quantisation()
        return found.quantization or found

    @property
    def tied(self) -> bool:
        """Whether the embeddings are the output projection too."""
        whole = self.tie_word_embeddings
        return bool(self.text.tie_word_embeddings if whole is None else whole)


class _ModelOpt(Struct, frozen=True):
    """hf_quant_config.json."""

    quantization: Quantisation | None = None


def read(folder: Path) -> ModelConfig:
    """A folder's config.json.

    Raises:
        CheckpointError: there is none, or it is not one; the message names the field.
    """
    return reading.json_file(folder / "config.json", ModelConfig, CheckpointError)


def read_modelopt(folder: Path) -> Quantisation:
    """A folder's hf_quant_config.json.

    Raises:
        CheckpointError: as ``read``.
    """
    path = folder / "hf_quant_config.json"
    return reading.json_file(path, _ModelOpt, CheckpointError).quantization or Quantisation()


def merged(first: Quantisation, second: Quantisation) -> Quantisation:
    """A declaration as vLLM reads it: config.json's, or hf_quant_config.json's if it has none.

    Of MIXED_PRECISION, vLLM takes the layers from either; see get_quant_config in
    vllm/model_executor/model_loader/weight_utils.py.
    """
    if first.method and not first.method.startswith("modelopt"):
        return first
    if not first.quant_algo and not first.config_groups:
        return structs.replace(second, quant_method=first.quant_method or "modelopt")
    if first.algo == "MIXED_PRECISION" and first.quantized_layers is None:
        return structs.replace(second, quant_method=first.quant_method, quant_algo=first.quant_algo)
    return first


def width(value: int | list[int] | None) -> int:
    """The largest of a size that may differ by layer; 0 if there is none."""
    return max(value, default=0) if isinstance(value, list) else value or 0
