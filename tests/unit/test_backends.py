"""What vLLM selects: its answers, the kept ones, the models to ask for, and the command."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from msgspec import structs

from fp4forge.backends import ask, model
from fp4forge.cli import backends as command
from fp4forge.core.errors import (
    CheckpointError,
    ForgeError,
    RegistryError,
    ReleaseError,
    ToolError,
    UsageError,
)
from fp4forge.models import backend_answers as kept
from fp4forge.models import family
from fp4forge.models.backend_answers import BackendAnswer, BackendDecision, BackendOption
from fp4forge.oci import engine, process

MARLIN = BackendOption(name="MARLIN", kernel="MarlinExperts")
EXPERTS = BackendDecision(
    kind="experts",
    layer="128 experts, gelu_tanh",
    selected="VLLM_CUTLASS",
    image="MARLIN",
    options=(
        BackendOption(
            name="FLASHINFER_CUTLASS", reason="kernel does not support GELU_TANH activation"
        ),
        BackendOption(name="VLLM_CUTLASS"),
        MARLIN,
        BackendOption(name="B12X", automatic=False),
    ),
)
ANSWER = BackendAnswer(
    vllm="0.20.2",
    gpu="sm121",
    capability=(12, 1),
    model="gemma-4-26b-a4b",
    family="gemma4",
    environment={"VLLM_TEST_FORCE_FP8_MARLIN": "1"},
    decisions=(EXPERTS,),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(kept, "FOLDER", tmp_path)
    kept.load.cache_clear()
    yield tmp_path
    kept.load.cache_clear()


# The kept answers.


def test_kept_answers_come_back_and_equal_decisions_are_kept_once(folder: Path) -> None:
    other = structs.replace(ANSWER, gpu="sm120", capability=(12, 0), problems=("no cache",))
    path = kept.write((ANSWER, other))
    assert kept.load("0.20.2") == (ANSWER, other)
    assert path.read_text().count("FLASHINFER_CUTLASS") == 1
    assert kept.find("0.20.2", "sm120", "gemma4") == other
    assert kept.find("0.20.2", "sm100", "gemma4") is None
    assert kept.load("9.9.9") == ()


@pytest.mark.parametrize(
    "change", [{"vllm": "0.19.1"}, {"environment": {}}, {"family": ""}], ids=str
)
def test_answers_of_different_images_are_not_kept_together(
    change: dict[str, Any], folder: Path
) -> None:
    with pytest.raises(UsageError, match="cannot be kept together"):
        kept.write((ANSWER, structs.replace(ANSWER, **change)))
    assert not list(folder.iterdir())


def test_a_number_without_a_decision_is_refused(folder: Path) -> None:
    path = kept.write((ANSWER,))
    path.write_text(path.read_text().replace('"decisions": [0]', '"decisions": [1]'))
    with pytest.raises(ReleaseError, match="names a decision that is not there"):
        kept.load("0.20.2")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("marlin", "MARLIN"),
        ("cutlass", "VLLM_CUTLASS"),
        ("flashinfer-cutlass", "FLASHINFER_CUTLASS"),
        ("triton", None),
    ],
)
def test_a_backend_is_found_by_vllms_flag(name: str, found: str | None) -> None:
    option = EXPERTS.option(name)
    assert (option.name if option else None) == found


def test_a_linear_backend_is_found_by_vllms_flag() -> None:
    kernels = (
        BackendOption(name="CutlassNvFp4LinearKernel"),
        BackendOption(name="MarlinNvFp4LinearKernel"),
    )
    found = BackendDecision(kind="linear", layer="", options=kernels).option("marlin")
    assert found == kernels[1]


def disagreements(answer: BackendAnswer) -> list[str]:
    """What a family forces on vLLM that the answer does not explain."""
    wrong = []
    for kind in kept.KINDS:
        for setting in kept.demands(answer.family, answer.vllm, answer.gpu, kind):
            for decision in answer.of(kind):
                option = decision.option(setting.value)
                if option is None or not option.usable:
                    wrong.append(f"{setting.flag} {setting.value}: vLLM refuses it")
                elif option.name == decision.selected:
                    wrong.append(f"{setting.flag} {setting.value}: vLLM selects it by itself")
    return wrong


def test_kept_answers_explain_what_families_force() -> None:
    answers = kept.load("0.20.2")
    assert {"sm100", "sm120", "sm121"} <= {answer.gpu for answer in answers}
    assert {"gemma4", "qwen3", "nemotron_h", "gpt_oss", "deepseek"} <= {a.family for a in answers}
    for answer in answers:
        assert disagreements(answer) == [], (answer.gpu, answer.family)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"selected": "MARLIN"}, "selects it by itself"),
        ({"options": (structs.replace(MARLIN, reason="no"),)}, "refuses it"),
        ({"options": ()}, "refuses it"),
    ],
)
def test_a_forced_backend_that_makes_no_sense_is_found(
    changed: dict[str, Any], message: str
) -> None:
    assert disagreements(ANSWER) == []
    broken = structs.replace(ANSWER, decisions=(structs.replace(EXPERTS, **changed),))
    assert message in disagreements(broken)[0]


def test_kept_gemma_4_would_get_vllms_cutlass_on_a_spark() -> None:
    answer = kept.find("0.20.2", "sm121", "gemma4")
    assert answer
    experts = answer.of("experts")[0]
    # The image leaves the choice to vLLM.
    assert (experts.selected, experts.image) == ("VLLM_CUTLASS", "VLLM_CUTLASS")
    refused = experts.option("flashinfer_cutlass")
    assert refused and "GELU_TANH" in refused.reason
    assert {one.selected for one in answer.of("attention") if one.cache == "fp8_e4m3"} == {
        "TRITON_ATTN"
    }


def test_a_familys_setting_demands_a_backend_where_it_holds() -> None:
    assert [s.value for s in kept.demands("gemma4", "0.20.2", "sm121", "experts")] == ["marlin"]
    assert kept.demands("gemma4", "0.33.0", "sm100", "experts") == ()
    assert kept.demands("qwen3", "0.20.2", "sm121", "experts") == ()


# Models.


@pytest.mark.parametrize("name", family.table())
def test_every_family_has_an_example(name: str) -> None:
    found = model.of_family(name)
    assert found.family == name and found.config["architectures"]


def test_the_example_of_a_family_has_experts_if_one_does() -> None:
    assert model.of_family("gemma4").name == "gemma-4-26b-a4b"


@pytest.mark.parametrize("name", ["gemma5", ""])
def test_an_unknown_family_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"no model family '{name}'"):
        model.of_family(name)


def test_a_folders_configuration_is_asked_for_as_it_is(tmp_path: Path) -> None:
    given = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "own": 1}
    (tmp_path / "config.json").write_text(json.dumps(given))
    assert model.of_folder(tmp_path) == ask.QueriedModel(tmp_path.name, given, "qwen3")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        model.of_folder(tmp_path / "none")


# The command's side.


def listener(lines: list[str]) -> tuple[ask._Listener, list[str]]:
    notes: list[str] = []
    found = ask._Listener(notes.append)
    for line in lines:
        found.hear(line)
    return found, notes


def test_lines_of_the_program_are_told_from_those_of_vllm() -> None:
    answers = json.dumps({"answers": [msgspec.to_builtins(ANSWER)]})
    found, notes = listener(
        ["WARNING vLLM is here\n", 'fp4forge {"note": "asking"}\n', f"fp4forge {answers}\n"]
    )
    assert notes == ["asking"]
    assert found.answers("an-image", 0) == (ANSWER,)


def test_a_program_that_fails_is_quoted() -> None:
    found, _ = listener(["Traceback\n", "ModuleNotFoundError: No module named 'vllm'\n"])
    with pytest.raises(ToolError, match="No module named 'vllm'"):
        found.answers("an-image", 1)


def test_an_answer_of_another_shape_is_refused() -> None:
    with pytest.raises(ToolError, match=r"inside\.ask"):
        listener(['fp4forge {"answers": [{"vllm": 7}]}\n'])


def test_the_archive_has_the_program_and_the_request() -> None:
    with tarfile.open(fileobj=io.BytesIO(ask.archive({"gpus": {}}))) as tar:
        names = {Path(name).name for name in tar.getnames()}
        request = tar.extractfile("fp4forge-backends/request.json")
        assert request and json.load(request) == {"gpus": {}}
    assert {"__init__.py", "ask.py", "layers.py", "stand_in.py", "request.json"} == names


def test_an_image_is_asked_in_a_container_without_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Any] = []
    attributes = {"Os": "linux", "Architecture": "arm64"}
    client = SimpleNamespace(
        images=SimpleNamespace(get=lambda image: SimpleNamespace(attrs=attributes)),
        api=SimpleNamespace(put_archive=lambda *given: sent.append(given)),
    )

    @contextlib.contextmanager
    def container(client: Any, image: str, platform: str) -> Iterator[str]:
        assert platform == "linux/arm64"
        yield "c0ffee"

    def follow(line: list[str], each: Callable[[str], None], *rest: Any) -> int:
        assert line[:2] == ["docker", "exec"] and "c0ffee" in line
        said = structs.replace(ANSWER, family="")
        each("fp4forge " + json.dumps({"answers": [msgspec.to_builtins(said)]}))
        return 0

    monkeypatch.setattr(engine, "connect", lambda: client)
    monkeypatch.setattr(engine, "have", lambda *given: "pulled")
    monkeypatch.setattr(engine, "container", container)
    monkeypatch.setattr(process, "follow", follow)
    found = ask.ask(
        "an-image", "linux/amd64", {"sm121": (12, 1)}, (model.of_family("gemma4"),), print
    )
    assert found == (ANSWER,)
    assert sent[0][:2] == ("c0ffee", "/tmp")


def test_an_image_that_is_not_there_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def have(*given: Any) -> str:
        raise RegistryError("an-image cannot be pulled: not found", remedy="docker login")

    monkeypatch.setattr(engine, "connect", lambda: None)
    monkeypatch.setattr(engine, "have", have)
    with pytest.raises(RegistryError, match="an-image cannot be pulled") as caught:
        ask.ask("an-image", "linux/amd64", {}, (), print)
    assert "--kept" in caught.value.remedy


def run(*arguments: str) -> str:
    done = CliRunner().invoke(command.backends, arguments, catch_exceptions=False)
    return done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which GPU and which model"),
        (["--gpu", "sm121"], "which GPU and which model"),
        (["--gpu", "sm121", "--family", "gemma5", "--kept"], "gemma5"),
        (["--gpu", "sm121", "--model", "x", "--kept"], "no answers for --model"),
        (["--gpu", "sm121", "--family", "gemma4", "--kept", "--image", "i"], "--image with --kept"),
        (["--gpu", "sm121", "--family", "gemma4", "--kept", "--write"], "--write with --kept"),
        (["--gpu", "sm121", "--family", "gemma5", "--image", "x"], "gemma5"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ForgeError, match=message):
        run(*arguments)


def test_without_an_image_or_registry_the_remedy_names_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("REGISTRY", raising=False)
    monkeypatch.setattr(command, "resolve_registry", lambda given: None)
    with pytest.raises(UsageError, match="which image"):
        run("--gpu", "sm121", "--family", "gemma4")


def test_an_image_of_another_release_is_refused() -> None:
    with pytest.raises(UsageError, match=r"has vLLM 0\.20\.2, and release 0\.19\.1 has 0\.19\.1"):
        command._check_image_version("0.19.1", "0.20.2", "an-image")
    command._check_image_version("0.20.2", "0.20.2", "an-image")


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ((), ("selected VLLM_CUTLASS or ", "B12X")),
        (("--verbose",), ("VLLM_CUTLASS SELECTED", "B12X usable, only when asked for")),
    ],
)
def test_kept_answers_are_shown_with_what_forces_them(
    more: tuple[str, ...], options: tuple[str, ...], folder: Path
) -> None:
    kept.write((structs.replace(ANSWER, problems=("no cache of type nvfp4",)),))
    line = ("--gpu", "sm121", "--family", "gemma4", "--kept", "--release", "0.20.2")
    told = " ".join(run(*line, *more).split())
    for words in (
        "sm121 (capability 12.1)",
        *options,
        "this image selects MARLIN: it sets VLLM_TEST_FORCE_FP8_MARLIN=1",
        "models/families/gemma4.yaml sets --moe-backend marlin",
        "not asked: no cache of type nvfp4",
    ):
        assert words in told, words


def test_kept_answers_as_json(folder: Path) -> None:
    kept.write((ANSWER,))
    said = run("--gpu", "sm121", "--family", "gemma4", "--kept", "--release", "0.20.2", "--json")
    (told,) = json.loads(said)
    assert told.pop("kernels")["experts"] and told.pop("compilers")["nvcc"] == ""
    assert msgspec.convert(told, BackendAnswer) == ANSWER


def test_an_answer_that_was_not_kept_is_asked_for(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no answer of 0\.20\.2 for gemma4 on sm121"):
        run("--gpu", "sm121", "--family", "gemma4", "--kept", "--release", "0.20.2")
