"""What quantising promises, on a tiny Gemma-4, with the real ModelOpt on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import nvfp4  # tests/image/proofs, by tiny
import pytest
import torch
from safetensors.torch import load_file, save_file

from fp4forge.checkpoint.inspect import inspect
from fp4forge.core.paths import PACKAGE, ROOT
from fp4forge.inputs import modelopt
from fp4forge.inputs.release import names
from fp4forge.quantise.inside import __main__ as program
from fp4forge.quantise.inside import compare, memory, say, tool
from fp4forge.quantise.inside.calibrate import Calibration
from tests.quantise import tiny


def samples(count: int = 8, length: int = 64, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(23, 279, (count, length), generator=generator)


def calibrated(model: Path, rows: torch.Tensor, batch: int) -> tuple[dict[str, Any], Calibration]:
    """The activations' amax by quantizer."""
    loaded = program._model(model, torch)
    loop = Calibration(loaded, rows, batch, None)
    config = tool.configuration(tiny.request(model, model.parent / "unused"))
    mtq.quantize(loaded, config, loop)
    found = tool.enabled(loaded, "input_quantizer")
    return {name: tool._value(quantizer) for name, quantizer in found.items()}, loop


def test_statistics_do_not_depend_on_batch_size_or_order(moe: Path) -> None:
    one, _ = calibrated(moe, samples(), 1)
    assert len(one) > 10 and all(value and value > 0 for value in one.values())
    assert calibrated(moe, samples(), 3)[0] == one
    assert calibrated(moe, samples(), 8)[0] == one
    assert calibrated(moe, samples().flip(0), 2)[0] == one
    assert calibrated(moe, samples(seed=4), 8)[0] != one  # other text, other statistics


def test_a_batch_that_does_not_fit_is_halved_and_counts_once(
    moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, loop = calibrated(moe, samples(), 8)
    assert loop.coverage
    counted = {name: count.clone() for name, count in loop.coverage.counts.items()}
    forward = Calibration._forward

    def small(self: Calibration, model: Any, start: int, end: int) -> None:
        forward(self, model, start, end)
        if end - start > 3:
            raise torch.OutOfMemoryError("made by the test")

    monkeypatch.setattr(Calibration, "_forward", small)
    halved, again = calibrated(moe, samples(), 8)
    assert again.batch == 2 and halved == whole
    assert again.coverage
    for name, count in again.coverage.counts.items():
        assert torch.equal(count, counted[name])
        assert int(count.sum()) == 8 * 64 * 2  # tokens x top-2


def test_experts_without_tokens_get_some_and_nothing_else_changes(
    moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = torch.full((2, 64), 100)  # one token again and again: the router always chooses alike
    found, loop = calibrated(moe, same, 1)
    assert loop.coverage
    assert loop.first["unreached"] > 0
    assert loop.coverage.figures()["unreached"] == 0
    assert calibrated(moe, same, 2)[0] == found
    monkeypatch.setattr(Calibration, "_second", lambda *_: None)
    without, bare = calibrated(moe, same, 1)
    assert bare.coverage and bare.coverage.figures()["unreached"] == loop.first["unreached"]
    changed = {name for name in found if found[name] != without[name]}
    assert changed and all("experts." in name for name in changed)


def test_what_cannot_be_exported_is_taken_from_siblings() -> None:
    class Attention(torch.nn.Module):  # type: ignore[misc]  # torch is Any here
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (torch.nn.Linear(32, 16) for _ in range(3))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.q_proj(values) + self.k_proj(values) + self.v_proj(values)

    model = torch.nn.Sequential(Attention())

    def loop(called: Any) -> None:
        called(torch.ones(2, 32))

    mtq.quantize(model, mtq.NVFP4_DEFAULT_CFG, loop)
    parts = model[0]
    layers = (parts.q_proj, parts.k_proj, parts.v_proj)
    tool._set(parts.q_proj.input_quantizer, 0.0)  # ModelOpt's 1265
    parts.k_proj.input_quantizer.reset_amax()
    parts.k_proj.input_quantizer.amax = torch.full((32,), 7.0)  # 1264
    parts.v_proj.input_quantizer.reset_amax()  # saw nothing
    changed = tool.repaired(model)
    assert changed["scalar"] == 1 and len(changed["substituted"]) == 2
    values = [float(layer.input_quantizer.amax) for layer in layers]
    assert values == [7.0, 7.0, 7.0]
    for layer in layers:
        tool._set(layer.input_quantizer, 0.0)
    with pytest.raises(say.QuantiseRefused, match="no token reached 3 layers"):
        tool.repaired(model)


def test_emulation_on_a_cpu_is_nvfp4() -> None:
    values = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    wanted = nvfp4.dequantise(*nvfp4.quantise(values))
    got = tool.fake_nvfp4(values, float(values.abs().max()))
    assert torch.allclose(got, wanted, atol=1e-6)
    assert not torch.allclose(got, values, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "model"),
    [("nvfp4", "moe"), ("w4a16_nvfp4", "moe"), ("mixed", "moe"), ("nvfp4_awq", "dense")],
)
def test_every_format_makes_a_servable_checkpoint(
    kind: str, model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(model)
    found = program.run(tiny.request(source, tmp_path, kind))
    inspected = inspect(tmp_path, release=names()[-1])
    bad = [finding.id for finding in inspected.findings if finding.severity == "error"]
    assert not bad, bad
    assert inspected.servable and inspected.quantised_modules > 10
    formats = {
        "nvfp4": "modelopt NVFP4",
        "w4a16_nvfp4": "modelopt W4A16_NVFP4",
        "mixed": "modelopt MIXED_PRECISION",
        "nvfp4_awq": "modelopt NVFP4_AWQ",
    }
    assert inspected.format == formats[kind]
    if modelopt.load().formats[kind].comparable:
        assert len(found["errors"]) == inspected.quantised_modules
        assert max(found["errors"].values()) < 0.12, max(
            found["errors"].items(), key=lambda i: i[1]
        )


def test_a_damaged_layer_is_the_worst(moe: Path, tmp_path: Path) -> None:
    program.run(tiny.request(moe, tmp_path))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.experts.3.up_proj"
    tensors[f"{name}.weight_scale_2"] *= 1.5
    save_file(tensors, file, metadata={"format": "pt"})
    errors = compare.layers(moe, tmp_path)
    assert max(errors, key=lambda layer: errors[layer]) == name and errors[name] > 0.4


def test_answers_with_quantizers_off_are_the_models(moe: Path, tmp_path: Path) -> None:
    tool.emulate()
    loaded = program._model(moe, torch)
    config = tool.configuration(tiny.request(moe, tmp_path))
    mtq.quantize(loaded, config, Calibration(loaded, samples(), 4, None))
    found = compare.answers(loaded, samples(2, seed=9))
    plain = program._model(moe, torch)
    row = samples(2, seed=9)
    with torch.no_grad():
        logs = plain(input_ids=row).logits[:, :-1].float().log_softmax(-1)
    wanted = float((-logs.gather(2, row[:, 1:, None]).mean()).exp())
    assert found["perplexity_bf16"] == pytest.approx(wanted, rel=0.02)
    assert found["kl"] > 0.001  # and NVFP4 is something else
    assert found["perplexity_nvfp4"] != pytest.approx(found["perplexity_bf16"], rel=1e-5)


def test_a_killed_run_resumes_with_the_same_statistics(moe: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"samples": 80, "batch": 1}
    asked = tiny.request(moe, tmp_path / "out", **changes)
    (tmp_path / "request.json").write_text(json.dumps(asked))
    running = subprocess.Popen(
        [sys.executable, "-m", "inside", str(tmp_path / "request.json")],
        env=os.environ | {"PYTHONPATH": str(PACKAGE / "quantise")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = Path(asked["state"])
    end = time.monotonic() + 300
    while not state.exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert running.poll() is None and state.exists()
    running.send_signal(signal.SIGKILL)
    running.wait()
    resumed = program.run(asked)
    assert 0 < resumed["resumed"] < 80
    whole = program.run(tiny.request(moe, tmp_path / "whole", **changes))
    assert whole["resumed"] == 0
    assert resumed["amax"] == whole["amax"] and resumed["coverage"] == whole["coverage"]
    first, second = (tmp_path / n / "model.safetensors" for n in ("out", "whole"))
    assert first.read_bytes() == second.read_bytes()  # the same checkpoint, byte for byte


def test_memory_is_measured(moe: Path) -> None:
    assert memory.free() > 1 << 20
    kept: list[torch.Tensor] = []
    assert memory.added(lambda: kept.append(torch.ones(64 << 20, dtype=torch.uint8))) > 60 << 20


def test_the_command_makes_it_and_names_it(moe: Path, tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    line = [sys.executable, str(ROOT / "build.py"), "quantise", str(moe), "-o", str(output)]
    line += ["--python", sys.executable, "--sequence-length", "64", "--report", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["coverage"]["unreached"] == 0 and found["quality"]["samples"] == 4
    assert not output.with_name("checkpoint.partial").exists()
    assert inspect(output).servable
    text = (output / "README.md").read_text()
    for head in ("NVFP4_DEFAULT_CFG", "Batch size", "Experts reached", "model.layers.0.router"):
        assert head in text
    assert (output / "quality.svg").read_text().startswith("<?xml")
    assert oct((output / "model.safetensors").stat().st_mode & 0o777) == "0o644"
