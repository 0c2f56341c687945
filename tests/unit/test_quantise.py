"""Quantising without torch: what is refused, how batches and samples are made, the gate."""

from __future__ import annotations

import json
import shutil
import stat
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from fp4forge.cli.quantise import quantise
from fp4forge.core import errors
from fp4forge.core.errors import ForgeError
from fp4forge.inputs import modelopt
from fp4forge.kernels.base import ToolError
from fp4forge.quantise import model_card, program
from fp4forge.quantise.inside import batching, repair, texts
from tests.checkpoints import TINY, Tensors, gemma4, write

TEXT = "The harbour was quiet before six.\n\n" * 2000


def plain(folder: Path, **changes: Any) -> Path:
    """A small BF16 model; shapes may change."""
    shapes = TINY | changes
    tensors: Tensors = {}
    for name, (kind, shape, content) in gemma4(shapes).items():
        if kind == "U8":
            tensors[name] = ("BF16", (shape[0], shape[1] * 2), None)
        elif "scale" not in name:
            tensors[name] = (kind, shape, content)
    return write(folder, tensors, shapes, algo="")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return plain(tmp_path / "model")


def run(model: Path, *more: str) -> Result:
    return CliRunner().invoke(quantise, [str(model), "-o", f"{model}-nvfp4", *more])


def refused(done: Result, kind: type[ForgeError]) -> str:
    assert isinstance(done.exception, kind), done.exception
    assert done.exception.message
    return done.exception.message


def test_a_plan_names_what_stays_and_how_large_it_gets(model: Path) -> None:
    done = run(model, "--dry-run", "--json", "--keep", "*self_attn*")
    assert done.exit_code == 0, done.exception
    plan = json.loads(done.stdout)
    assert plan["family"] == "gemma4" and plan["config"] == "NVFP4_DEFAULT_CFG"
    assert {"*router*", "*embed_vision*", "*self_attn*"} <= set(plan["keep"])
    assert plan["weight_bytes"] / 4 < plan["expected_bytes"] < plan["weight_bytes"]
    assert not Path(f"{model}-nvfp4.partial").exists()
    less = json.loads(run(model, "--dry-run", "--json").stdout)["expected_bytes"]
    assert less < plan["expected_bytes"]


def test_bad_models_are_refused_before_anything_starts(tmp_path: Path, model: Path) -> None:
    kind = errors.CheckpointError
    assert "no config.json" in refused(run(tmp_path), kind)
    done = write(tmp_path / "quantised", gemma4(TINY), TINY)
    assert "quantised already" in refused(run(done), kind)
    undeclared = write(tmp_path / "undeclared", gemma4(TINY), TINY, algo="")
    assert "quantised already" in refused(run(undeclared), kind)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "unheard"}))
    assert "none of the families" in refused(run(model), kind)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    tensors: Tensors = {
        "model.layers.0.mlp.up_proj.weight": ("F32", (16, 16), struct.pack("<f", 1.0) * 256),
        "model.layers.1.mlp.up_proj.weight": (
            "F32",
            (16, 16),
            struct.pack("<f", 1.0) * 255 + struct.pack("<f", value),
        ),
    }
    bad = write(tmp_path / "bad", tensors, TINY, algo="")
    message = refused(run(bad), errors.CheckpointError)
    assert "layers.1.mlp.up_proj" in message and "layers.0" not in message


def test_a_truncated_file_is_refused(model: Path) -> None:
    file = next(model.glob("*.safetensors"))
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 1)
    assert "truncated" in refused(run(model), errors.CheckpointError)


def test_the_text_has_to_be_long_enough(model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too little.")
    kind = errors.CalibrationError
    assert "11 bytes" in refused(run(model, "--calibration", str(short)), kind)
    assert "not a file" in refused(run(model, "--calibration", str(tmp_path / "none")), kind)
    many = plain(tmp_path / "many", num_experts=32)
    message = refused(run(many, "--sequence-length", "8"), kind)
    assert "32 experts" in message


def test_a_full_disk_is_seen_before(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(model)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "free" in refused(run(model, "--dry-run"), errors.DiskError)


def test_wrong_options(model: Path) -> None:
    kind = errors.UsageError
    assert "'fp5'" in refused(run(model, "--format", "fp5"), kind)
    assert "experts" in refused(run(model, "--format", "nvfp4_awq"), kind)
    assert "9.9" in refused(run(model, "--release", "9.9"), kind)
    assert "--report" in refused(run(model, "--format", "w4a16_nvfp4", "--report"), kind)
    Path(f"{model}-nvfp4").mkdir()
    Path(f"{model}-nvfp4", "file").touch()
    assert "exists" in refused(run(model), kind)
    assert run(model, "--keep", "a;b").exit_code == 2
    assert run(model, "--batch", "0").exit_code == 2


def test_a_python_without_modelopt_says_so(model: Path) -> None:
    done = run(model, "--python", sys.executable)
    assert "has no nvidia-modelopt" in refused(done, ToolError)
    assert Path(f"{model}-nvfp4.partial").exists() and not Path(f"{model}-nvfp4").exists()
    assert "exit code 127" in refused(run(model, "--python", "/none"), ToolError)


def fake(folder: Path, made: Path, result: dict[str, Any]) -> str:
    """A Python that writes a checkpoint made before: the gate does not know by what it was made."""
    script = folder / "python"
    script.write_text(
        f"#!{sys.executable}\nimport json, shutil, sys\n"
        "asked = json.load(open(sys.argv[3]))\n"
        f"shutil.copytree({str(made)!r}, asked['output'], dirs_exist_ok=True)\n"
        f"print('fp4forge ' + json.dumps({{'result': {result!r}}}))\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


RESULT: dict[str, Any] = {
    "versions": {"nvidia-modelopt": "0.47.0", "torch": "2.13.0"},
    "device": "CPU",
    "samples": 4,
    "batch": 2,
    "probes": {},
    "resumed": 0,
    "calibration_seconds": 1.0,
    "seconds": 2.0,
    "peak_bytes": 1,
    "coverage": {"experts": 8, "unreached": 0},
    "coverage_first": {"experts": 8, "unreached": 3, "fewest": 0, "median": 2, "most": 9},
    "repaired": {"scalar": 0, "substituted": [], "zero_weights": []},
    "excluded": ["lm_head"],
    "errors": {"a": 0.09, "b": 0.4},
}


def test_only_a_servable_checkpoint_gets_the_name(model: Path, tmp_path: Path) -> None:
    broken = gemma4(TINY)
    del broken["model.layers.0.mlp.up_proj.weight_scale_2"]
    made = write(tmp_path / "broken", broken, TINY)
    done = run(model, "--python", fake(tmp_path, made, RESULT))
    assert "missing-part" in refused(done, errors.CheckpointError)
    assert not Path(f"{model}-nvfp4").exists()
    partial = Path(f"{model}-nvfp4.partial")
    assert not (partial / "README.md").exists() and (partial / "config.json").exists()
    good = write(tmp_path / "good", gemma4(TINY), TINY)
    done = run(model, "--python", fake(tmp_path, good, RESULT))
    assert done.exit_code == 0, done.exception
    assert not partial.exists()
    text = Path(f"{model}-nvfp4", "README.md").read_text()
    assert "5 of 8 by routing, 8 after the second pass" in text
    assert text.index("| b | 0.4000 |") < text.index("| a | 0.0900 |")


def test_a_run_does_not_resume_another(model: Path, tmp_path: Path) -> None:
    made = write(tmp_path / "broken", gemma4(TINY) | {"x.unknown_part": ("F32", (), None)}, TINY)
    python = fake(tmp_path, tmp_path / "nothing", RESULT)
    assert isinstance(run(model, "--python", python).exception, ToolError)
    assert "another request" in refused(
        run(model, "--python", python, "--seed", "1"), errors.UsageError
    )
    assert made.exists()


# Batches.


@given(st.integers(1, 200), st.integers(1, 100), st.integers(1, 20), st.integers(0, 50))
def test_every_sample_runs_once_whatever_fits(count: int, batch: int, fits: int, at: int) -> None:
    ran: list[tuple[int, int]] = []
    sizes: list[int] = []

    def each(start: int, end: int) -> None:
        if end - start > fits:
            raise batching.OutOfMemory
        ran.append((start, end))

    batching.run(count, batch, each, lambda _, size: sizes.append(size), min(at, count))
    assert [n for start, end in ran for n in range(start, end)] == list(
        range(min(at, count), count)
    )
    assert all(size <= max(fits, 1) for size in sizes) or count - at <= fits or batch <= fits


def test_a_sample_that_does_not_fit_ends_it() -> None:
    def each(start: int, end: int) -> None:
        raise batching.OutOfMemory

    with pytest.raises(batching.OutOfMemory):
        batching.run(8, 8, each, lambda *_: None)


def test_the_line_through_two_probes() -> None:
    probe = batching.line(one=3 << 30, two=5 << 30)
    assert (probe.base, probe.sample) == (1 << 30, 2 << 30)
    assert probe.fits(40 << 30) == 17  # (36 - 1) / 2
    assert probe.fits(1 << 20) == 1
    assert batching.line(5, 5).fits(10) > 1 << 20


# Samples.


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@given(
    st.lists(st.text(min_size=1, max_size=40), max_size=20),
    st.integers(1, 8),
    st.integers(1, 16),
    st.integers(0, 5),
)
def test_samples_are_full_windows_of_the_text(
    given_texts: list[str], count: int, length: int, seed: int
) -> None:
    try:
        found = texts.windows(given_texts, letters, count, length, None, seed)
    except texts.TooShort:
        assert sum(map(len, given_texts)) < count * length
        return
    assert [len(row) for row in found] == [length] * count  # so nothing is padded
    assert found == texts.windows(given_texts, letters, count, length, None, seed)
    joined = [letter for text in given_texts for letter in text]
    assert all(joined.count(chr(n)) >= sum(row.count(n) for row in found) for n in set(found[0]))


def test_documents(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    chat = {"messages": [{"role": "user", "content": "hi"}, {"content": "yes"}]}
    lines.write_text("\n".join(map(json.dumps, ("one", {"article": "two"}, chat))))
    assert list(texts.documents(str(lines))) == ["one", "two", "hi\nyes"]
    whole = tmp_path / "a.txt"
    whole.write_text("one\n\n\n\ntwo\n")
    assert [text.strip() for text in texts.documents(str(whole))] == ["one", "two"]


@given(st.text(max_size=60))
def test_fuzz_documents(line: str) -> None:
    try:
        assert texts._text(line, 3).strip()
    except ValueError as error:
        assert str(error).startswith("line 3 ")


# Statistics that are missing.


def test_siblings() -> None:
    names = dict.fromkeys(
        (
            "layers.0.experts.0.up_proj.input_quantizer",
            "layers.0.experts.1.up_proj.input_quantizer",
            "layers.0.experts.1.down_proj.input_quantizer",
            "layers.1.experts.1.up_proj.input_quantizer",
            "layers.0.self_attn.q_proj.input_quantizer",
            "layers.0.self_attn.v_proj.input_quantizer",
        )
    )
    assert repair.siblings("layers.0.experts.0.up_proj.input_quantizer", names) == [
        "layers.0.experts.1.up_proj.input_quantizer"
    ]
    assert repair.siblings("layers.0.self_attn.q_proj.input_quantizer", names) == [
        "layers.0.self_attn.v_proj.input_quantizer"
    ]
    assert repair.siblings("layers.0.self_attn.o_proj.input_quantizer", names) == []


def test_the_siblings_maximum_not_a_tiny_number() -> None:
    name = "layers.0.experts.{}.down_proj.input_quantizer".format
    amax = {name(0): 0.0, name(1): None, name(2): 3.0, name(3): 5.0, name(4): float("nan")}
    found, lost = repair.substitutes(amax)
    assert found == {name(0): 5.0, name(1): 5.0, name(4): 5.0} and not lost
    assert repair.substitutes({"o_proj.input_quantizer": 0.0}) == ({}, ["o_proj.input_quantizer"])


# What the program says.


@given(st.lists(st.one_of(st.text(), st.text().map("fp4forge ".__add__)), max_size=5))
def test_fuzz_what_the_program_says(lines: list[str]) -> None:
    listener = program.Listener(lambda _: None)
    try:
        for line in lines:
            listener.hear(line)
        listener.answer(program.PythonPlace(), 1)
    except ToolError as error:
        assert error.message


def test_failures_keep_their_kind() -> None:
    for kind, expected in program._KINDS.items():
        listener = program.Listener(lambda _: None)
        listener.hear("fp4forge " + json.dumps({"kind": kind, "error": "e", "rule": "r"}))
        with pytest.raises(expected):
            listener.answer(program.PythonPlace(), 0)


def test_in_an_image_there_is_no_network_and_the_model_is_read_only(tmp_path: Path) -> None:
    place = program.PythonPlace("python3", "modelopt:1")
    line, paths = place.line(*(tmp_path / name for name in ("program", "model", "out", "t.txt")))
    assert "--network=none" in line and f"{tmp_path}/model:/model:ro" in line
    assert paths.text == "/text/t.txt" and line[-3:] == ["modelopt:1", "-m", "inside"]


def test_every_release_is_read_and_says_what_is_fixed() -> None:
    for name in modelopt.names():
        found = modelopt.load(name)
        assert {"nvfp4", "w4a16_nvfp4", "nvfp4_awq", "mixed"} == set(found.formats)
        assert {fix.id for fix in found.fixes} >= {"1264", "1265"}


def test_a_bad_model_is_called_bad() -> None:
    good = {"perplexity_bf16": 10.0, "perplexity_nvfp4": 10.5, "agreement": 0.95}
    assert "too bad" not in model_card.judgement(good)
    assert "too bad to serve" in model_card.judgement(good | {"agreement": 0.5})
    assert "too bad to serve" in model_card.judgement(good | {"perplexity_nvfp4": 12.0})
