"""Serves generated targets with and without a drafter; compares greedy answers token by token.

    python3 speculation.py [--out FOLDER] [--port N] [--only NAMES]

An EAGLE3 drafter for a dense Qwen3 in NVFP4, and Gemma-4's MTP assistant for a Gemma-4, both with
random weights: they draft badly, which is when a wrong verification would show. A target checks the
drafted tokens in one batch, so its sums round otherwise than one token at a time: where answers
part, the gap between the two best tokens there is given, and has to be small.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "image/proofs")]

import torch  # noqa: E402
from checkpoint import WITHOUT_EXPERTS, text_config  # noqa: E402
from families import (  # noqa: E402
    CASES,
    COMMON,
    GEMMA4,
    VOCABULARY,
    Family,
    gemma4,
    randomised,
    save,
)
from serve import Server, tail  # noqa: E402

DRAFTED = 3  # tokens a step
TOKENS, PROMPTS = 48, 6
# Two tokens whose logarithmic probabilities are closer than BF16 rounds a logit are a tie.
TIE = 0.05


def eagle3(folder: Path) -> None:
    """One layer of Llama's over three of the target's hidden states (vLLM's llama_eagle3.py)."""
    from safetensors.torch import save_file

    target = CASES["qwen3"].make().config
    hidden, wide, heads = target.hidden_size, target.intermediate_size, target.num_attention_heads
    keys = target.num_key_value_heads
    config = COMMON | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": target.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "draft_vocab_size": VOCABULARY,
        "dtype": "bfloat16",
        # Read here by the model, and below "eagle_config" by some speculators.
        "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
        "num_aux_hidden_states": 3,
    }
    head = target.head_dim
    shapes = {
        "fc.weight": (hidden, 3 * hidden),
        "midlayer.self_attn.q_proj.weight": (heads * head, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (keys * head, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (keys * head, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, heads * head),
        "midlayer.mlp.gate_proj.weight": (wide, hidden),
        "midlayer.mlp.up_proj.weight": (wide, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, wide),
        "lm_head.weight": (VOCABULARY, hidden),
    }
    torch.manual_seed(1)
    tensors = {n: (torch.randn(s) * 0.7 / s[1] ** 0.5).bfloat16() for n, s in shapes.items()}
    for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
        tensors[f"midlayer.{name}.weight"] = torch.ones(hidden).bfloat16()
    tensors["norm.weight"] = torch.ones(hidden).bfloat16()
    folder.mkdir(parents=True)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def assistant(folder: Path) -> None:
    """Gemma-4's assistant: two layers that read the target's keys and values."""
    from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM

    text = GEMMA4 | WITHOUT_EXPERTS | {"hidden_size": 256, "intermediate_size": 512}
    text |= {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2}
    text |= {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": 0}
    text |= {"use_double_wide_mlp": False, "tie_word_embeddings": True}
    config = Gemma4AssistantConfig(
        text_config=text_config(text), backbone_hidden_size=GEMMA4["hidden_size"]
    )
    model = randomised(lambda: Gemma4AssistantForCausalLM(config))
    model.to(torch.bfloat16).save_pretrained(folder)


# A target, its drafter, and vLLM's name of the method.
PAIRS: dict[str, tuple[Family, Callable[[Path], None], str]] = {
    "eagle3": (CASES["qwen3"], eagle3, "eagle3"),
    "mtp": (Family(gemma4, "", ()), assistant, "mtp"),
    "eagle3_packed": (CASES["qwen3_packed"], eagle3, "eagle3"),
}


def answers(server: Server) -> list[dict[str, Any]]:
    """Greedy tokens of each prompt, with the two best of each position."""
    torch.manual_seed(2)
    found = []
    for _ in range(PROMPTS):
        prompt = [2, *torch.randint(23, VOCABULARY, (32,)).tolist()]
        body = {"model": "m", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        body |= {"ignore_eos": True, "logprobs": 2, "return_token_ids": True}
        choice = server.post("/v1/completions", body)["choices"][0]
        best = [sorted(each.values(), reverse=True) for each in choice["logprobs"]["top_logprobs"]]
        gaps = [each[0] - each[1] if len(each) > 1 else 0.0 for each in best]
        found.append({"tokens": choice["token_ids"], "gaps": gaps})
    return found


def parted(without: dict[str, Any], drafted: dict[str, Any]) -> dict[str, Any] | None:
    """Where two answers part, and how far apart the two best tokens were there; None if never."""
    pairs = zip(without["tokens"], drafted["tokens"], strict=True)
    at = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    return None if at is None else {"token": at, "gap": without["gaps"][at]}


def accepted(server: Server) -> dict[str, float]:
    """What /metrics counts of drafted and accepted tokens."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    pattern = re.compile(r"^vllm:spec_decode_num_(\w+)_total\{[^}]*\} ([\d.e+]+)$", re.MULTILINE)
    counted: dict[str, float] = {}
    for name, value in pattern.findall(text):
        counted[name] = counted.get(name, 0) + float(value)
    return counted


def run(name: str, root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Both servers of a pair, and the comparison of their answers."""
    family, make_drafter, method = PAIRS[name]
    target, drafter = root / name / "target", root / name / "drafter"
    save(randomised(family.make), family, target)
    make_drafter(drafter)
    torch.cuda.empty_cache()
    spec = {"method": method, "model": str(drafter), "num_speculative_tokens": DRAFTED}
    options = ["--max-model-len", "2048", "--max-num-seqs", "8", *family.options]
    options += ["--gpu-memory-utilization", args.memory, *args.options.split()]
    found: dict[str, Any] = {}
    for side, more in (("without", []), ("drafted", ["--speculative-config", json.dumps(spec)])):
        log = args.out / f"{name}-{side}.log"
        server = Server(target, log, [*options, *more], args.port)
        try:
            if (ready := server.wait(400)) is None:
                return {"side": side, "ended": tail(log)}
            found[side] = {"ready_s": ready, "answers": answers(server)}
            if side == "drafted":
                found["counted"] = accepted(server)
        except Exception as error:  # the error is the result
            return {"side": side, "failed": f"{type(error).__name__}: {error}"[:400]}
        finally:
            server.close()
    both = zip(found["without"].pop("answers"), found["drafted"].pop("answers"), strict=True)
    places = [parted(*pair) for pair in both]
    found["answers"], found["parted"] = len(places), [place for place in places if place]
    found["same"] = all(place["gap"] < TIE for place in found["parted"])
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--only", help="Names of pairs, with commas.")
    parser.add_argument("--port", type=int, default=8224)
    parser.add_argument("--memory", default="0.2", help="--gpu-memory-utilization")
    parser.add_argument("--options", default="", help="More options for vllm serve.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "drafted": DRAFTED}
    with tempfile.TemporaryDirectory() as root:
        for name in (args.only or ",".join(PAIRS)).split(","):
            results[name] = run(name, Path(root), args)
            (args.out / "speculation.json").write_text(json.dumps(results, indent=1) + "\n")
            print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()
