"""Serves generated checkpoints with vLLM on this GPU and compares; prints one JSON object.

    python3 serve.py [--shapes reference|shared|tiny] [--plain FOLDER] [--out FOLDER]

FOLDER of --plain holds an unpatched vllm package: there each damaged checkpoint must show the
symptom that its patch's record claims. Server logs go to --out.

Tolerance of the logits. Server and reference use the same dequantised weights; they differ by
bfloat16 arithmetic (2**-9 an operation, a few dozen in a row) and by the FP8 KV cache (E4M3 keeps
3 bits: up to 2**-4 an element, which moves attention scores by tenths). The mean difference of a
token's logarithmic probability is held to a quarter of the logits' own spread over the vocabulary
(0.16 measured on an H200); random logits, which a wrong layer gives, differ by about one spread.
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
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from checkpoint import (
    REFERENCE,
    SHARED,
    TINY,
    WITHOUT_EXPERTS,
    Case,
    Tensors,
    dequantised,
    float_weights,
    write,
    write_processor,
    write_tokenizer,
)

RELATIVE_TOLERANCE = 0.25
CASES = (
    Case("native"),
    Case("moe_prefix", moe_prefix=True),
    Case("nan_scales", nan_scales=(("down_proj.weight_scale", 0x7F),), nan_everywhere=True),
    Case("no_input_scale", no_input_scale=(2, 6)),
    Case("no_dense_input_scale", no_dense_input_scale="layers.1.mlp.down_proj"),
    Case("multimodal", multimodal=True),
    Case("awq_dense", algo="NVFP4_AWQ", awq_dense=True, dense=True),
)
SHAPES = {"reference": REFERENCE, "shared": SHARED, "tiny": TINY}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "required": ["city"],
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        },
    },
}
VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
GEMMA = [
    *("--quantization", "modelopt", "--kv-cache-dtype", "fp8_e4m3", "--moe-backend", "marlin"),
    *("--max-model-len", "2048", "--gpu-memory-utilization", "0.25", "--enable-auto-tool-choice"),
    *("--reasoning-parser", "gemma4", "--tool-call-parser", "gemma4"),
    *("--limit-mm-per-prompt", '{"video": 0, "audio": 0}'),
]
# The lines in which vLLM 0.19.1 and 0.20.2 say what they chose.
BACKENDS = {
    "moe": r"Using '([A-Z_]+)' NvFp4 MoE backend",
    "linear": r"Using (?:NvFp4LinearBackend\.)?(\w+) for NVFP4 GEMM",
}


class Server:
    """``vllm serve`` in a process group of its own, until closed."""

    def __init__(
        self,
        folder: Path,
        log: Path,
        options: list[str],
        port: int,
        plain: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        self.log, self.port = log, port
        environment = os.environ | (variables or {})
        if plain:
            environment["PYTHONPATH"] = f"{plain}:{environment.get('PYTHONPATH', '')}"
        line = [*VLLM, "serve", str(folder), "--served-model-name", "m", "--port", str(port)]
        self.started = time.monotonic()
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*line, *options],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait(self, seconds: float = 300) -> float | None:
        """Seconds until /health answers; None when the server ended first."""
        while time.monotonic() - self.started < seconds:
            if self.process.poll() is not None:
                return None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return time.monotonic() - self.started
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        return None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - loopback
            return json.load(answer)

    def close(self) -> None:
        """Ends the server and its workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def reference_logprobs(
    shapes: dict[str, Any], source: Tensors, prompt: list[int], device: str = "cuda"
) -> torch.Tensor:
    """Float32 log-probabilities [tokens, vocabulary] by transformers' own Gemma-4."""
    from checkpoint import text_config
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM

    config = text_config(shapes)
    config.dtype = torch.float32
    model = Gemma4ForCausalLM(config).to(device).float().eval()
    plain = dequantised({name: tensor.to(device) for name, tensor in source.items()})
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if name.endswith("experts.gate_up_proj"):
                base = name.removesuffix("gate_up_proj")
                for e in range(tensor.shape[0]):
                    parts = [plain[f"{base}{e}.{p}.weight"] for p in ("gate_proj", "up_proj")]
                    tensor[e].copy_(torch.cat(parts))
            elif name.endswith("experts.down_proj"):
                base = name.removesuffix("down_proj")
                for e in range(tensor.shape[0]):
                    tensor[e].copy_(plain[f"{base}{e}.down_proj.weight"])
            elif name in plain:
                tensor.copy_(plain[name])
        logits = model(torch.tensor([prompt], device=device)).logits[0].float()
    return logits.log_softmax(-1).cpu()


def compare(server: Server, want: torch.Tensor, prompt: list[int]) -> dict[str, Any]:
    """The server's log-probabilities of a prompt's tokens against the reference's."""
    body = {"model": "m", "prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 3}
    answer = server.post("/v1/completions", body)
    entries = answer["choices"][0]["prompt_logprobs"]
    differences, agree = [], 0
    for position, entry in enumerate(entries[1:]):
        for token, found in entry.items():
            differences.append(abs(found["logprob"] - float(want[position, int(token)])))
        best = min(entry, key=lambda token: entry[token]["rank"])
        agree += int(best) == int(want[position].argmax())
    values, spread = torch.tensor(differences), float(want[:-1].std(-1).mean())
    return {
        "tokens": len(entries) - 1,
        "spread": spread,
        "relative_difference": float(values.mean()) / spread,
        "mean_difference": float(values.mean()),
        "max_difference": float(values.max()),
        "same_best_token": agree / (len(entries) - 1),
        "tolerance": RELATIVE_TOLERANCE,
    }


def picture() -> str:
    """A small PNG of one colour's gradient, as a data URL."""
    import base64
    import io

    from PIL import Image

    image = Image.new("RGB", (96, 96))
    image.putdata([(x, y, 128) for y in range(96) for x in range(96)])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def look(server: Server) -> dict[str, Any]:
    """One request with an image, twice at temperature 0."""
    parts = [
        {"type": "image_url", "image_url": {"url": picture()}},
        {"type": "text", "text": "What is it?"},
    ]
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 16,
        "temperature": 0,
    }
    first, second = (server.post("/v1/chat/completions", body) for _ in "12")
    texts = [answer["choices"][0]["message"]["content"] for answer in (first, second)]
    return {
        "image_tokens": first["usage"]["prompt_tokens"],
        "image_deterministic": texts[0] == texts[1],
    }


def call(server: Server) -> str:
    """The tool call that a request demands by name; random weights choose its arguments."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "Weather in Rome?"}],
        "max_tokens": 64,
        "temperature": 0,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }
    message = server.post("/v1/chat/completions", body)["choices"][0]["message"]
    calls = message.get("tool_calls")
    if not calls:
        return f"none: {json.dumps(message)[:300]}"
    made = calls[0]["function"]
    return f"{made['name']}({made['arguments'].strip()})"


def backends(log: Path) -> dict[str, str | None]:
    """What the server's log says it chose for experts and for NVFP4 linear layers."""
    text = log.read_text(errors="replace")
    found = {name: re.search(pattern, text) for name, pattern in BACKENDS.items()}
    return {name: match[1] if match else None for name, match in found.items()}


def chat(server: Server) -> dict[str, Any]:
    """One chat completion twice at temperature 0, and one batch."""
    said = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"model": "m", "messages": said, "max_tokens": 24, "temperature": 0}
    first, second = (server.post("/v1/chat/completions", body) for _ in "12")
    texts = [answer["choices"][0]["message"]["content"] for answer in (first, second)]
    batch = server.post("/v1/chat/completions/batch", {**body, "messages": [said, said]})
    return {
        "deterministic": texts[0] == texts[1],
        "tokens": first["usage"]["completion_tokens"],
        "batch_choices": len(batch["choices"]),
    }


def ask(checkout: Path, server: Server) -> dict[str, Any]:
    """What fp4forge's doctor and smoke test say of the live server."""
    said = {}
    for command in ("doctor", "smoke"):
        line = [
            sys.executable,
            "build.py",
            "serve",
            command,
            "--url",
            f"http://127.0.0.1:{server.port}",
        ]
        done = subprocess.run([*line, "--json"], cwd=checkout, capture_output=True, text=True)
        said[command] = {"exit": done.returncode, "json": done.stdout, "said": done.stderr[-500:]}
    return said


def tail(log: Path) -> list[str]:
    """The lines that say why a server ended."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if "rror" in line]
    return [line[-300:] for line in lines[-4:]]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", choices=list(SHAPES), default="reference")
    parser.add_argument("--plain", type=Path)
    parser.add_argument("--only", help="Names of cases, with commas.")
    parser.add_argument("--eager", action="store_true", help="No CUDA graphs anywhere.")
    parser.add_argument("--options", default="", help="More options for vllm serve.")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument(
        "--doctor",
        type=Path,
        help="fp4forge's checkout: its doctor and smoke test are put to the first patched server.",
    )
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    prompt = [2, *torch.randint(23, 279, (96,)).tolist()]
    results: dict[str, Any] = {"shapes": args.shapes, "device": torch.cuda.get_device_name()}
    results |= {"options": args.options} if args.options else {}
    with tempfile.TemporaryDirectory() as root:
        for case in CASES:
            if args.only and case.name not in args.only.split(","):
                continue
            folder = Path(root, case.name)
            shapes = SHAPES[args.shapes] | (WITHOUT_EXPERTS if case.dense else {})
            weights = float_weights(shapes, device="cuda", multimodal=case.multimodal)
            source = write(folder, shapes, case, weights)
            (write_processor if case.multimodal else write_tokenizer)(folder)
            want = None
            if case.name in ("native", "nan_scales", "awq_dense"):
                clean = {n: _clean(t) for n, t in source.items()}
                want = reference_logprobs(shapes, clean, prompt)
            for side, plain in (("patched", None), ("plain", args.plain)):
                if side == "plain" and plain is None:
                    continue
                log = args.out / f"{case.name}-{side}.log"
                eager = ["--enforce-eager"] if args.eager or case.name != "native" else []
                options = [*GEMMA, *eager, *args.options.split()]
                server = Server(folder, log, options, args.port, plain)
                try:
                    entry: dict[str, Any] = {"ready_s": server.wait()}
                    if entry["ready_s"] is None:
                        entry["ended"] = tail(log)
                    else:
                        if want is not None:
                            entry |= compare(server, want, prompt)
                        entry["backends"] = backends(log)
                        if args.doctor and not plain and "asked" not in results:
                            results["asked"] = ask(args.doctor, server)
                        entry |= chat(server)
                        entry |= look(server) if case.multimodal else {}
                        entry["tool_call"] = call(server)
                except Exception as error:  # the error is the result
                    entry["failed"] = f"{type(error).__name__}: {error}"[:300]
                finally:
                    server.close()
                results.setdefault(case.name, {})[side] = entry
                (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
                print(case.name, side, json.dumps(entry), file=sys.stderr, flush=True)
    print(json.dumps(results))


def _clean(tensor: torch.Tensor) -> torch.Tensor:
    """Block scales with NaN as zero, which is what the patch makes of them."""
    if tensor.dtype != torch.float8_e4m3fn:
        return tensor
    raw = tensor.view(torch.uint8).clone()
    raw[(raw & 0x7F) == 0x7F] = 0
    return raw.view(torch.float8_e4m3fn)


if __name__ == "__main__":
    main()
