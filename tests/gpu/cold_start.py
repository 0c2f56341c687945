"""Measures a server's start on this GPU: nothing cached, caches filled, caches from a warm layer.

    python3 cold_start.py [--out FOLDER] [--port N] [--shapes reference|tiny]

Seconds from the process's start to ready and to the first token, and of each phase as the log shows
them (fp4forge/launch/phases.py). The layer is what ``build.py warm`` bakes: packed and seeded by
the program that ships in the image. The first start of all also reads Python's modules from the
disk; therefore a second one with nothing cached is the one to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/image/proofs")]

import torch  # noqa: E402
from checkpoint import float_weights, write, write_tokenizer  # noqa: E402
from serve import CASES, GEMMA, SHAPES, Server, tail  # noqa: E402

from fp4forge.launch.phases import StartTracker  # noqa: E402

# In this order: "filled" has the caches of the start before it, "baked" the layer of "first".
STARTS = ("first", "filled", "cold", "baked")
WARM = ROOT / "fp4forge/image/runtime/opt/fp4forge/warm.py"


def variables(caches: Path) -> dict[str, str]:
    """Where each compiler keeps its results; as in the image's cache volume."""
    return {
        "HOME": str(caches.parent),
        "VLLM_CACHE_ROOT": str(caches / "vllm"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "FLASHINFER_WORKSPACE_BASE": str(caches.parent),
        "HUMMING_CACHE_DIR": str(caches / "humming"),
    }


def warm(action: str, caches: Path, layer: Path, model: Path) -> dict[str, Any]:
    """Packs or seeds; what it said and how long it took."""
    line = [sys.executable, str(WARM), action, str(caches), str(layer), "--model", str(model)]
    begin = time.monotonic()
    done = subprocess.run(
        line, capture_output=True, text=True, env=os.environ | variables(caches), check=False
    )
    said = (done.stdout + done.stderr).strip()[-300:]
    return {"exit": done.returncode, "said": said, "seconds": time.monotonic() - begin}


def follow(server: Server, tracker: StartTracker, over: threading.Event) -> None:
    """Feeds the tracker with the log's lines as they come."""
    with server.log.open(errors="replace") as file:
        while not over.is_set():
            if line := file.readline():
                tracker.feed(line, time.monotonic() - server.started)
            else:
                time.sleep(0.05)


def start(model: Path, log: Path, caches: Path, port: int, options: list[str]) -> dict[str, Any]:
    """One start until its first token."""
    server = Server(model, log, [*GEMMA, *options], port, variables=variables(caches))
    tracker, over = StartTracker(), threading.Event()
    thread = threading.Thread(target=follow, args=(server, tracker, over))
    thread.start()
    try:
        if (ready := server.wait(400)) is None:
            return {"ended": tail(log)}
        tracker.ready(ready)
        server.post("/v1/completions", {"model": "m", "prompt": "Paris", "max_tokens": 1})
        first = time.monotonic() - server.started
        return {"ready_s": ready, "first_token_s": first, "phases_s": tracker.seconds}
    finally:
        over.set()
        thread.join()
        server.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--port", type=int, default=8324)
    parser.add_argument("--shapes", choices=list(SHAPES), default="reference")
    parser.add_argument("--starts", default=",".join(STARTS), help="Of these, with commas.")
    parser.add_argument("--options", default="", help="More options for vllm serve.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"shapes": args.shapes, "device": torch.cuda.get_device_name()}
    with tempfile.TemporaryDirectory() as root:
        model, caches, layer = (Path(root, name) for name in ("model", "home/.cache", "layer"))
        shapes = SHAPES[args.shapes]
        write(model, shapes, CASES[0], float_weights(shapes, device="cuda"))
        write_tokenizer(model)
        torch.cuda.empty_cache()
        for name in args.starts.split(","):
            if name != "filled":
                shutil.rmtree(caches, ignore_errors=True)
                caches.mkdir(parents=True)
            found: dict[str, Any] = {}
            if name == "baked":
                found["seed"] = warm("seed", caches, layer, model)
            log = args.out / f"start-{name}.log"
            found |= start(model, log, caches, args.port, args.options.split())
            if name == "first":
                found["collect"] = warm("collect", caches, layer, model)
                found["layer_bytes"] = sum(p.stat().st_size for p in layer.glob("*"))
                found["folders"] = sorted(str(p.relative_to(caches)) for p in caches.glob("*/*"))
            results[name] = found
            (args.out / "cold-start.json").write_text(json.dumps(results, indent=1) + "\n")
            print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
