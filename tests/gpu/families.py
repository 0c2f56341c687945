"""Serves one small generated checkpoint of each kind of family on this GPU; prints one JSON object.

    python3 families.py [--out FOLDER] [--only NAMES]

A dense Qwen3, a hybrid Qwen3-Next, an MLA DeepSeek-V3, a Gemma-4: what vLLM's log says of the KV
cache stands beside the configuration, which ``serve fit`` computes from. Logs go to --out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/image/proofs")]

import torch  # noqa: E402
from checkpoint import SPECIAL, TINY, text_config, write_tokenizer  # noqa: E402

PORT = 8124
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


def gemma4() -> Any:
    """Sliding and full layers, experts with tanh-GELU."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM

    shapes = TINY | COMMON | {"vocab_size_per_layer_input": VOCABULARY, "sliding_window": 512}
    shapes |= {"hidden_size": 512, "head_dim": 128, "global_head_dim": 256, "num_hidden_layers": 6}
    shapes |= {"layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
    return Gemma4ForCausalLM(text_config(shapes))


CASES = {
    "qwen3": (qwen3, ["--attention-backend", "TRITON_ATTN"]),
    # States are kept twice for prefix caching.
    "qwen3_next": (qwen3_next, ["--attention-backend", "TRITON_ATTN"]),
    "qwen3_next_prefix": (
        qwen3_next,
        ["--attention-backend", "TRITON_ATTN", "--enable-prefix-caching"],
    ),
    "deepseek": (deepseek, ["--attention-backend", "TRITON_MLA"]),
    "gemma4": (gemma4, []),
}


def save(make: Any, folder: Path) -> None:
    """Random weights, as transformers saves them."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = make()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                weight.normal_(0, 0.7 / weight.shape[-1] ** 0.5)
            elif "norm" in name:
                weight.fill_(1.0)
    model.to(torch.bfloat16).eval().save_pretrained(folder)
    write_tokenizer(folder)


def serve(folder: Path, log: Path, options: list[str]) -> dict[str, Any]:
    """Seconds to ready, an answer, and whether it is the same twice."""
    line = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
    line += ["--kv-cache-dtype", "fp8_e4m3", "--max-model-len", "4096", "--max-num-seqs", "16"]
    line += ["--gpu-memory-utilization", "0.5", "--served-model-name", "m", "--port", str(PORT)]
    begin = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [*line, *options], stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while time.monotonic() - begin < 240:
            if process.poll() is not None:
                lines = [x for x in log.read_text(errors="replace").splitlines() if "rror" in x]
                return {"ended": [x[-300:] for x in lines[-4:]]}
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        ready = time.monotonic() - begin
        return {"ready_s": ready, "same_twice": ask() == ask()}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def ask() -> Any:
    """Tokens of one completion at temperature 0."""
    body = {"model": "m", "prompt": [2, 40, 50, 60, 70], "max_tokens": 16, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["text"]


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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--only", help="Names of cases, with commas.")
    args = parser.parse_args()
    out, only = args.out, (args.only or ",".join(CASES)).split(",")
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    with tempfile.TemporaryDirectory() as root:
        for name in only:
            make, options = CASES[name]
            folder, log = Path(root, name), out / f"{name}.log"
            entry: dict[str, Any] = {}
            try:
                save(make, folder)
                entry |= {"config": json.loads((folder / "config.json").read_text())}
                entry |= serve(folder, log, options)
            except Exception as error:  # the error is the result
                entry["failed"] = f"{type(error).__name__}: {error}"[:400]
            entry |= logged(log) if log.exists() else {}
            results[name] = entry
            (out / "families.json").write_text(json.dumps(results, indent=1) + "\n")
            print(name, {k: v for k, v in entry.items() if k != "config"}, flush=True)


if __name__ == "__main__":
    main()
