"""Quantises a model: ``python -m inside REQUEST``, a JSON file that ``program.py`` writes."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from . import batching, say, texts


def main() -> None:
    """Command line; the answer is the last line of output."""
    request = json.loads(Path(sys.argv[1]).read_text())
    try:
        say.line(result=run(request))
    except say.QuantiseRefused as refused:
        say.line(**refused.answer)
    except batching.OutOfMemory as error:
        say.line(
            kind="memory",
            error=f"one sample does not fit the memory: {error}",
            rule="a forward pass of one sample is the least that calibration needs",
            remedy="a shorter --sequence-length, or a GPU with more memory",
        )
    except Exception as error:
        traceback.print_exc()
        say.line(kind="tool", error=f"{type(error).__name__}: {error}", rule="", remedy="")
    else:
        return
    sys.exit(1)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Does it; returns the figures for the checkpoint's README."""
    began = time.monotonic()
    versions = _versions(request)
    held = _alone(Path(request["state"]).parent)
    source, folder = Path(request["model"]), Path(request["output"])
    say.line(note="tokenizer and calibration text")
    samples, held_out = _samples(request, source)

    import torch

    device = _device(request, torch)
    torch.manual_seed(request["seed"])
    torch.use_deterministic_algorithms(True, warn_only=True)
    say.line(note="weights")
    model = _model(source, torch)

    say.line(note="ModelOpt")
    import modelopt.torch.quantization as mtq

    from . import compare, memory, tool
    from .calibrate import Calibration

    tool.emulate()
    config = tool.configuration(request)
    state = Path(request["state"]) if request["resumable"] else None
    loop = Calibration(model, torch.tensor(samples), request["batch"], state)
    model = mtq.quantize(model, config, loop if request["activations"] else None)
    changed = tool.repaired(model)
    found: dict[str, Any] = {"versions": versions, "device": device, "repaired": changed}
    found |= {
        "samples": len(samples),
        "batch": loop.batch,
        "resumed": loop.resumed,
        "probes": loop.probes,
        "calibration_seconds": loop.seconds,
        "coverage": loop.coverage.figures() if loop.coverage else {},
        "coverage_first": loop.first,
        "amax": {n: tool._value(q) for n, q in tool.enabled(model, "input_quantizer").items()},
    }
    if held_out:
        say.line(note="quality report")
        found["quality"] = compare.answers(model, torch.tensor(held_out))
    say.line(note="export")
    tool.export(model, source, folder)
    if request["comparable"]:
        say.line(note="error by layer")
        found["errors"] = compare.layers(source, folder)
    found["excluded"] = compare.declared(folder)
    found["peak_bytes"] = memory.peak()
    found["seconds"] = time.monotonic() - began
    os.close(held)
    return found


def _alone(folder: Path) -> int:
    """Holds the folder of the statistics until the handle is closed, or this process ends.

    Raises:
        QuantiseRefused: a program whose command was killed still writes there.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise say.QuantiseRefused(
            "tool",
            f"another process still writes {folder.parent}",
            "one run writes a checkpoint",
            "it ends with its next batch; run this again then",
        ) from None
    return handle


def _versions(request: dict[str, Any]) -> dict[str, str]:
    """Versions of what is installed, without importing it.

    Raises:
        QuantiseRefused: something is missing, or ModelOpt is not the release's.
    """
    found = {"python": platform.python_version()}
    for name in ("nvidia-modelopt", "torch", "transformers", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise say.QuantiseRefused(
                "tool",
                f"{sys.executable} has no {name}",
                "quantising runs in a Python with ModelOpt, torch and transformers",
                "make quantise-venv makes one; docs/quantise.md",
            ) from None
    if found["nvidia-modelopt"] != request["modelopt"]:
        raise say.QuantiseRefused(
            "tool",
            f"ModelOpt {found['nvidia-modelopt']} is installed, the release is"
            f" {request['modelopt']}",
            "each ModelOpt needs its own fixes (releases/quantise)",
            "make quantise-venv; or --release",
        )
    return found


def _samples(request: dict[str, Any], source: Path) -> tuple[list[list[int]], list[list[int]]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    wanted, extra = request["samples"], request["report"]
    try:
        found = texts.windows(
            texts.documents(request["calibration"]),
            lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]),
            wanted + extra if wanted else 0,
            request["length"],
            tokenizer.eos_token_id,
            request["seed"],
        )
        if len(found) <= extra:
            raise texts.TooShort(f"{len(found)} samples, {extra} of them for the report")
    except texts.TooShort as error:
        raise say.QuantiseRefused(
            "text",
            str(error),
            "samples are full windows of text; nothing is padded",
            "use a longer text, fewer --samples, or a shorter --sequence-length",
        ) from None
    except ValueError as error:
        raise say.QuantiseRefused(
            "text",
            f"{Path(request['calibration']).name}: {error}",
            "a .jsonl has a text, or an object with text, article, content, prompt or messages,"
            " on each line",
        ) from None
    return found[: len(found) - extra], found[len(found) - extra :]


def _device(request: dict[str, Any], torch: Any) -> str:
    """The hardware, in words.

    Raises:
        QuantiseRefused: a large model without a GPU, which the options do not allow.
    """
    if torch.cuda.is_available():
        number = torch.cuda.device_count()
        return f"{number} x {torch.cuda.get_device_name(0)}"
    if request["weights"] > request["cpu_weights"] and not request["allow_cpu"]:
        raise say.QuantiseRefused(
            "gpu",
            f"no GPU, and {request['weights'] / 1e9:.1f} GB of weights",
            f"without a GPU, models of at most {request['cpu_weights'] / 1e9:.1f} GB",
            "run it on a GPU, or --allow-cpu: days for a model of 26B",
        )
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _model(source: Path, torch: Any) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, local_files_only=True)
    kind = (config.architectures or [""])[0]
    auto = (
        transformers.AutoModelForImageTextToText
        if kind.endswith("ForConditionalGeneration")
        else transformers.AutoModelForCausalLM
    )
    # accelerate places what the GPUs do not hold in the machine's memory.
    options = {"device_map": "auto"} if torch.cuda.is_available() else {}
    # ModelOpt intercepts F.linear: grouped GEMMs would go past its quantizers.
    return auto.from_pretrained(
        source,
        dtype=torch.bfloat16,
        local_files_only=True,
        experts_implementation="eager",
        **options,
    ).eval()


if __name__ == "__main__":
    main()
