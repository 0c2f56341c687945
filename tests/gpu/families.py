"""Serves one small generated checkpoint of each kind of family on this GPU; prints one JSON object.

    python3 families.py [--out FOLDER] [--only NAMES] [--port N]

A dense Qwen3, a hybrid Qwen3-Next, an MLA DeepSeek-V3, a Gemma-4, in BF16 or NVFP4: what vLLM's log
says of the KV cache stands beside the configuration, which ``serve fit`` computes from. Of NVFP4
ones the log-probabilities are compared with transformers' own model on the dequantised weights
(proofs/serve.py states the tolerance). Logs go to --out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/image/proofs")]

import torch  # noqa: E402
from checkpoint import SPECIAL, TINY, fused, text_config, write_tokenizer  # noqa: E402
from nvfp4 import dequantise, quantise  # noqa: E402
from serve import Server, backends, compare, tail  # noqa: E402

VOCABULARY = len(SPECIAL) + 256
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": SPECIAL.index("<bos>"),
    "eos_token_id": SPECIAL.index("<eos>"),
    "pad_token_id": SPECIAL.index("<pad>"),
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


def qwen3() -> Any:
    """A dense model of Qwen3's shapes, four layers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        **COMMON,
    )
    return Qwen3ForCausalLM(config)


def qwen3_next() -> Any:
    """A hybrid of Qwen3-Next's shapes: three gated delta nets to one attention, few experts."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        linear_num_value_heads=16,
        linear_num_key_heads=8,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
        shared_expert_intermediate_size=256,
        **COMMON,
    )
    return Qwen3NextForCausalLM(config)


def deepseek() -> Any:
    """MLA with DeepSeek-V3's latent, few layers and experts."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        hidden_size=1024,
        intermediate_size=2048,
        moe_intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=16,
        n_routed_experts=16,
        n_group=4,
        topk_group=2,
        num_experts_per_tok=4,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=512,
        **COMMON,
    )
    return DeepseekV3ForCausalLM(config)


GEMMA4 = TINY | COMMON | {"vocab_size_per_layer_input": VOCABULARY, "sliding_window": 512}
GEMMA4 |= {"hidden_size": 512, "head_dim": 128, "global_head_dim": 256, "num_hidden_layers": 6}
GEMMA4 |= {"layer_types": ["sliding_attention"] * 5 + ["full_attention"]}


def gemma4() -> Any:
    """Sliding and full layers, experts with tanh-GELU."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM

    return Gemma4ForCausalLM(text_config(GEMMA4))


TRITON = ("--attention-backend", "TRITON_ATTN")
FP8_CACHE = ("--kv-cache-dtype", "fp8_e4m3")
MODELOPT, PACKED = "modelopt", "compressed-tensors"


@dataclass(frozen=True)
class Family:
    """A generated model, the form of its weights (empty: BF16), and flags of vllm serve."""

    make: Callable[[], Any]
    form: str = ""
    options: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # parts of the names of what stays in BF16


# What NVIDIA's checkpoints leave in BF16: linear attention, and MLA's projections.
LINEAR, MLA = ("linear_attn",), ("self_attn",)
CASES = {
    "qwen3": Family(qwen3, MODELOPT, (*TRITON, *FP8_CACHE)),
    "qwen3_packed": Family(qwen3, PACKED, (*TRITON, *FP8_CACHE)),
    "qwen3_next": Family(qwen3_next, MODELOPT, (*TRITON, *FP8_CACHE), LINEAR),
    # States are kept twice for prefix caching.
    "qwen3_next_prefix": Family(
        qwen3_next, MODELOPT, (*TRITON, *FP8_CACHE, "--enable-prefix-caching"), LINEAR
    ),
    "deepseek": Family(deepseek, MODELOPT, (), MLA),
    "gemma4": Family(gemma4, "", FP8_CACHE),
}


def randomised(make: Callable[[], Any]) -> Any:
    """The model with random weights that were rounded to BF16, in float32."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = make()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                weight.fill_(0.3)  # proofs/checkpoint.py says why
            elif weight.dim() >= 2:
                weight.normal_(0, 0.7 / weight.shape[-1] ** 0.5)
            elif "norm" in name:
                weight.fill_(1.0)
    return model.to(torch.bfloat16).float().eval()


def matrices(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A parameter's matrices, views of it, by the names of a checkpoint: experts one by one."""
    base, _, kind = name.rpartition(".")
    if kind == "gate_up_proj" and tensor.dim() == 3:
        half = tensor.shape[1] // 2
        for e, expert in enumerate(tensor):
            yield f"{base}.{e}.gate_proj.weight", expert[:half]
            yield f"{base}.{e}.up_proj.weight", expert[half:]
    elif kind == "down_proj" and tensor.dim() == 3:
        for e, expert in enumerate(tensor):
            yield f"{base}.{e}.down_proj.weight", expert
    else:
        yield name, tensor


def quantised(model: Any, family: Family) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors; what they stand for is put into the model itself."""
    named = [each for name, tensor in model.state_dict().items() for each in matrices(name, tensor)]
    chosen = {
        name
        for name, _ in named
        if family.form
        and name.endswith("_proj.weight")
        and not any(part in name for part in family.left_out)
    }
    amax: dict[str, float] = {}
    for name, matrix in named:
        if name in chosen:
            amax[fused(name)] = max(amax.get(fused(name), 0.0), float(matrix.abs().max()))
    out: dict[str, torch.Tensor] = {}
    for name, matrix in named:
        if name not in chosen:
            keep = matrix.dtype != torch.float32 or name.endswith("e_score_correction_bias")
            out[name] = matrix if keep else matrix.to(torch.bfloat16)
            continue
        base = name.removesuffix("weight")
        packed, scales, scale = quantise(matrix, amax[fused(name)])
        matrix.copy_(dequantise(packed, scales, scale))
        out[base + "weight_scale"], step = scales, torch.tensor(0.01)
        if family.form == MODELOPT:
            out |= {base + "weight": packed, base + "weight_scale_2": scale}
            out[base + "input_scale"] = step
        else:  # compressed-tensors keeps the reciprocals, one element each
            out |= {base + "weight_packed": packed, base + "weight_global_scale": 1 / scale[None]}
            out[base + "input_global_scale"] = 1 / step[None]
    return out


def quantization_config(family: Family) -> dict[str, Any]:
    """What config.json says of the weights' form."""
    if family.form == MODELOPT:
        ignored = [
            "lm_head",
            *(f"*{part}*" for part in family.left_out),
            "*mlp.gate",
            "*_expert_gate",
        ]
        return {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "producer": {"name": "modelopt", "version": "written by this test"},
            "group_size": 16,
            "ignore": ignored,
        }
    scheme = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    scheme |= {"symmetric": True}
    weights, activations = scheme | {"dynamic": False}, scheme | {"dynamic": "local"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group | {"format": "nvfp4-pack-quantized"}},
        "ignore": ["lm_head"],
    }


def save(model: Any, family: Family, folder: Path) -> None:
    """Writes the checkpoint; the model keeps what it stands for."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    with torch.no_grad():
        tensors = quantised(model, family)
    whole = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(whole, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = model.config.to_dict() | {"dtype": "bfloat16"}
    config["architectures"] = [type(model).__name__]
    if "n_routed_experts" in config:  # the published configuration has it, transformers drops it
        config["topk_method"] = "noaux_tc"
    config |= {"quantization_config": quantization_config(family)} if family.form else {}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder)


def greedy(server: Server, prompt: list[int], tokens: int = 16) -> list[int]:
    """The tokens of a completion at temperature 0."""
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    body |= {"ignore_eos": True, "logprobs": 0, "return_token_ids": True}
    found: list[int] = server.post("/v1/completions", body)["choices"][0]["token_ids"]
    return found


# What vLLM's log says of the cache, in GiB, tokens and times.
LINES = {
    "available_gib": r"Available KV cache memory: ([\d.]+) GiB",
    "tokens": r"GPU KV cache size: ([\d,]+) tokens",
    "concurrency": r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x",
    "block_tokens": r"Setting attention block size to (\d+) tokens",
    "graphs_gib": r"Graph capturing finished in .* took ([\d.-]+) GiB",
}


def logged(log: Path) -> dict[str, float]:
    """The figures of a log."""
    text, found = log.read_text(errors="replace"), {}
    for name, pattern in LINES.items():
        if matches := re.findall(pattern, text):
            found[name] = float(matches[-1].replace(",", ""))
    return found


def run(name: str, folder: Path, log: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What one family's server said, and the figures of its log."""
    family = CASES[name]
    model = randomised(family.make)
    save(model, family, folder)
    entry: dict[str, Any] = {"config": json.loads((folder / "config.json").read_text())}
    prompt = [2, *torch.randint(23, VOCABULARY, (96,)).tolist()]
    with torch.no_grad():
        tokens = torch.tensor([prompt], device=next(model.parameters()).device)
        want = model(tokens).logits[0].float().log_softmax(-1).cpu()
    del model
    torch.cuda.empty_cache()
    options = ["--max-model-len", "4096", "--max-num-seqs", "16", *family.options]
    options += ["--gpu-memory-utilization", args.memory, *args.options.split()]
    server = Server(folder, log, options, args.port)
    try:
        entry["ready_s"] = server.wait(400)
        if entry["ready_s"] is None:
            return entry | {"ended": tail(log)}
        entry |= compare(server, want, prompt)
        entry["same_twice"] = greedy(server, prompt) == greedy(server, prompt)
        entry["backends"] = backends(log)
        return entry
    except Exception as error:  # the error is the result
        return entry | {"failed": f"{type(error).__name__}: {error}"[:400]}
    finally:
        server.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--only", help="Names of cases, with commas.")
    parser.add_argument("--port", type=int, default=8124)
    parser.add_argument("--memory", default="0.5", help="--gpu-memory-utilization")
    parser.add_argument("--options", default="", help="More options for vllm serve.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "options": args.options}
    with tempfile.TemporaryDirectory() as root:
        for name in (args.only or ",".join(CASES)).split(","):
            log = args.out / f"{name}.log"
            entry = run(name, Path(root, name), log, args)
            entry["logged"] = logged(log) if log.exists() else {}
            results[name] = entry
            (args.out / "families.json").write_text(json.dumps(results, indent=1) + "\n")
            print(name, {k: v for k, v in entry.items() if k != "config"}, flush=True)


if __name__ == "__main__":
    main()
