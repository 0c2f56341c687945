"""What memory-probed batches are worth: layers of the reference's shapes, quantised twice on a GPU.

Usage: quantise.py FOLDER [SAMPLES]. Runs ``build.py quantise`` with --batch 1 and with --batch auto
on the same text, in the Python that runs this (with ModelOpt), and writes FOLDER/quantise.json:
seconds, peak memory and how busy the GPU was. The project's own documents are the text.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/image/proofs")]

import torch  # noqa: E402
from checkpoint import SPECIAL, text_config, write_tokenizer  # noqa: E402

from tests.checkpoints import REFERENCE  # noqa: E402

LAYERS = ["sliding_attention"] * 3 + ["full_attention"]
LENGTH = 512
SHAPES = REFERENCE | {
    "enable_moe_block": True,
    "num_hidden_layers": len(LAYERS),
    "layer_types": LAYERS,
    "vocab_size": len(SPECIAL) + 256,
    "vocab_size_per_layer_input": len(SPECIAL) + 256,
    "bos_token_id": SPECIAL.index("<bos>"),
    "eos_token_id": SPECIAL.index("<eos>"),
    "pad_token_id": SPECIAL.index("<pad>"),
}


def model(folder: Path) -> None:
    """A Gemma-4 MoE with random weights, by transformers' own classes."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda"):
        made: Any = Gemma4ForCausalLM(text_config(SHAPES)).to(torch.bfloat16)
        with torch.no_grad():
            for weight in made.parameters():
                if weight.dim() >= 2:
                    weight.normal_(0, 0.02)
    made.eval().save_pretrained(folder)
    write_tokenizer(folder)


class Busy:
    """How busy the GPU is, in percent, read twice a second."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._over = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        line = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._over.wait(0.5):
            found = subprocess.run(line, capture_output=True, text=True, check=False).stdout.split()
            self.seen += [int(found[0])] if found and found[0].isdigit() else []

    def stop(self) -> dict[str, Any]:
        """Mean and highest."""
        self._over.set()
        known = self.seen or [0]
        return {"mean": sum(known) / len(known), "highest": max(known), "readings": len(self.seen)}


def quantise(source: Path, text: Path, folder: Path, batch: str, samples: int) -> dict[str, Any]:
    """One run of the command, with its own figures."""
    shutil.rmtree(folder, ignore_errors=True)
    line = [sys.executable, str(ROOT / "build.py"), "quantise", str(source), "--format", "nvfp4"]
    line += ["-o", str(folder), "--calibration", str(text), "--samples", str(samples)]
    line += [
        "--sequence-length",
        str(LENGTH),
        "--batch",
        batch,
        "--python",
        sys.executable,
        "--json",
    ]
    busy, began = Busy(), time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    found = {"seconds": time.monotonic() - began, "gpu_percent": busy.stop()}
    print(done.stderr[-3000:], flush=True)
    try:
        said = json.loads(done.stdout)
    except ValueError:
        said = done.stdout[-2000:]
    return found | {"batch": batch, "exit_code": done.returncode, "said": said}


def main() -> None:
    """Command line."""
    folder = Path(sys.argv[1])
    samples = int(sys.argv[2]) if len(sys.argv) > 2 else 128
    place = Path("/tmp/fp4forge-quantise")
    place.mkdir(exist_ok=True)
    text = place / "text.txt"
    documents = sorted((ROOT / "docs").glob("*.md"))
    text.write_text("\n\n".join(path.read_text() for path in documents))
    source = place / "model"
    model(source)
    found = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "layers": len(LAYERS),
        "samples": samples,
        "length": LENGTH,
        "runs": [],
    }
    for batch in ("auto", "1"):
        found["runs"].append(quantise(source, text, place / f"out-{batch}", batch, samples))
        (folder / "quantise.json").write_text(json.dumps(found, indent=1))
        print(json.dumps(found["runs"][-1])[:1500], flush=True)
    same = [
        subprocess.run(
            ["sha256sum", str(place / f"out-{b}/model.safetensors")], capture_output=True, text=True
        ).stdout.split()[:1]
        for b in ("auto", "1")
    ]
    found["same_weights"] = same[0] == same[1] and bool(same[0])
    (folder / "quantise.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
