"""The image that quantises: the same plan, context and checks as one that serves, from its data."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fp4forge.advisories import installed, vex
from fp4forge.cli import cli
from fp4forge.core import errors
from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.paths import IMAGE_TESTS, LOCKS, RELEASES, ROOT
from fp4forge.image import context as contexts
from fp4forge.image import render
from fp4forge.inputs import locks, modelopt
from fp4forge.inputs.broken_releases import Failures
from fp4forge.maintain import locking
from fp4forge.plan import packages, tags
from fp4forge.plan.image_kinds import QUANTISE
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve

REQUEST = ImageRequest("", base="bootstrap", platform="linux/amd64", kind=QUANTISE)
SERVING = ImageRequest(
    "blackwell", strategy="wheel", base="bootstrap", platform="linux/amd64", aot="none"
)


def test_the_plan_has_modelopt_and_nothing_of_vllm() -> None:
    plan = contexts.assemble(resolve(REQUEST)).plan
    what = modelopt.load()
    assert (plan.release, plan.serves) == (what.release, False)
    assert plan.packages["nvidia-modelopt"] == what.version
    assert plan.packages["torch"] == what.torch == plan.torch
    assert plan.packages["transformers"] == what.transformers
    assert "vllm" not in plan.packages and not (plan.predicted or plan.backends or plan.gpus)
    assert plan.epoch == what.epoch and plan.unpacked_gb == what.unpacked_gb


def test_the_context_has_what_the_dockerfile_copies_and_no_more() -> None:
    found = contexts.assemble(resolve(REQUEST))
    copied = re.findall(r"(?m)^COPY (?:--link )?(?!-)(\S+) ", found.files["Dockerfile"].decode())
    wanted = {name.rstrip("/") for name in copied}
    there = {name for name in found.files if name != "Dockerfile"}
    assert all(any(n == w or n.startswith(f"{w}/") for w in wanted) for n in there), there
    assert all(any(n == w or n.startswith(f"{w}/") for n in there) for w in wanted), wanted
    assert not [name for name in there if "/bin/" in name or name.startswith("kernels/")]
    assert RELEASES / found.plan.inputs.release.source_file in found.sources


def test_every_build_argument_is_one_that_the_dockerfile_declares() -> None:
    plan = resolve(REQUEST)
    declared = set(re.findall(r"(?m)^ARG ([A-Z_]+)", render.dockerfile(plan)))
    assert set(render.arguments(plan)) <= declared


def test_each_platform_and_python_has_a_lock_with_hashes_and_without_vllm() -> None:
    for base in ("bootstrap", "ubuntu:24.04"):
        for platform in ("linux/amd64", "linux/arm64"):
            plan = resolve(replace(REQUEST, base=base, platform=platform))
            name, tools = packages.files(plan)
            assert tools == locks.TOOLS and (LOCKS / name).is_file()
            layers = packages.layers(plan)
            assert layers.keys() == {*locks.LAYERS, "tools"}
            blocks = locks.entries("".join(layers[group] for group in locks.LAYERS))
            assert all("--hash=sha256:" in block for block in blocks.values())
            assert "vllm" not in blocks and "nvidia-modelopt" in blocks


def test_its_tags_have_the_forms_of_tags_that_a_user_may_not_give() -> None:
    plan = contexts.assemble(resolve(REQUEST)).plan
    assert tags.is_immutable(plan.immutable_tag) and tags.is_moving(plan.moving_tag)
    for tag in (plan.immutable_tag, plan.moving_tag, plan.index_tag + "-"):
        with pytest.raises(UsageError):
            tags.check(tag)
    for tag in ("modelopt", "modelopt-latest", f"{plan.release}-mine"):
        assert tags.check(tag) == tag
    assert plan.moving_tag != resolve(replace(REQUEST, platform="linux/arm64")).moving_tag


def test_its_packages_are_audited_without_a_vllm() -> None:
    names = {package.name for package in installed.of_packages({"torch": "2.13.0"}, "")}
    assert names == {"torch"}
    assert installed.VLLM in {package.name for package in installed.of_packages({}, "1.0")}


def test_an_audit_takes_the_same_names_as_a_build() -> None:
    assert installed.of_release("modelopt-0.47") == installed.of_release("modelopt-0.47.0")


def test_its_locks_are_audited_like_a_release_of_vllm() -> None:
    name = modelopt.release_names()[-1]
    found = installed.of_release(name)
    components = {package.name for package in found.components}
    assert found.release == name and "nvidia-modelopt" in components and "vllm" not in components
    assert vex.load(name) == ()
    with pytest.raises(UsageError):
        installed.of_release("modelopt-9.9")


def test_modelopt_is_in_the_layer_that_changes_most() -> None:
    layers = packages.layers(resolve(REQUEST))
    assert "nvidia-modelopt==" in layers["python"] and "nvidia-modelopt" not in layers["cuda"]


def test_a_lock_is_resolved_from_the_releases_requirements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[list[str], tuple[str, ...]]] = []

    def compiled(requirements: list[str], _: list[str], *options: str) -> str:
        asked.append((requirements, options))
        return "torch==2.13.0 \\\n    --hash=sha256:00\n"

    monkeypatch.setattr(locking, "compile_", compiled)
    failures = Failures()
    texts = locking.resolve_releases(modelopt.release_names(), failures)
    failures.check()
    what = modelopt.load()
    assert all(requirements == [*what.requirements] for requirements, _ in asked)
    assert all(f"--exclude-newer={what.resolve_before}" in options for _, options in asked)
    assert len(texts) == len(asked) == 4  # two platforms, two Pythons, no extras
    assert all("releases/quantise/" in text and "vllm" not in text for text in texts.values())


@pytest.mark.parametrize("name", ["modelopt-0.47.0", "0.47.0", "modelopt-0.47", None])
def test_a_release_is_named_with_or_without_its_prefix_and_last_numbers(name: str | None) -> None:
    assert modelopt.load(name).release == "modelopt-0.47.0"


@pytest.mark.parametrize(
    "name", ["", "0.4", "modelopt-", "modelopt-0.47.0.1", "../0.47.0", "0.33.0"]
)
def test_a_release_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no ModelOpt"):
        modelopt.load(name)


def test_a_folder_without_any_release_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelopt, "_FOLDER", tmp_path)
    with pytest.raises(UsageError, match="no release of ModelOpt"):
        modelopt.load()


def build(*options: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["--kind", "quantise", "--dry-run", *options])
    error = done.exception
    if isinstance(error, errors.ForgeError):
        return error.exit_code, error.message
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "options",
    [
        ("--arch", "sm121"),
        ("--arch-list", "12.0"),
        ("--allow-missing", "sm120"),
        ("--variant", "plain"),
        ("--from", "wheel"),
        ("--components", "core"),
        ("--source", "cutlass=pypi"),
        ("--cross",),
        ("--aot", "none"),
        ("--with", "ray"),
    ],
)
def test_an_option_of_vllms_image_is_refused(options: tuple[str, ...]) -> None:
    code, message = build(*options)
    assert code == UsageError.exit_code and options[0] in message


def test_a_dry_run_prints_what_is_decided_and_nothing_of_vllm() -> None:
    code, output = build("--base", "bootstrap", "--platform", "linux/amd64")
    assert code == 0 and "modelopt-0.47.0" in output and "every GPU" in output
    assert "FlashInfer" not in output and "build.py backends" not in output


def test_a_release_with_a_check_that_has_no_reason_is_refused() -> None:
    path = RELEASES / "quantise/modelopt-0.47.0.yaml"
    text = path.read_text()
    assert modelopt.FORMAT.parse(text, path.name)
    for old, new, field in (
        ("why: it is not a server", "why: no", "checks_left_out"),
        ('resolve_before: "2026-11-27"', 'resolve_before: "2026-02-30"', "resolve_before"),
        ("  - torch==2.13.0\n", "  - torch @ file:///tmp/x\n", "requirements"),
    ):
        assert old in text
        with pytest.raises(ReleaseError, match=field):
            modelopt.FORMAT.parse(text.replace(old, new), path.name)


def collected(tmp_path: Path, plan: dict[str, object]) -> set[str]:
    """The image tests that a plan's image is held to."""
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    line = [sys.executable, "-m", "pytest", str(IMAGE_TESTS), "--collect-only", "-q"]
    line += ["--rootdir", str(ROOT), "--image=x", "--container=x", f"--plan={tmp_path}/plan.json"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return {row for row in done.stdout.splitlines() if "::" in row}


def test_an_image_is_held_to_the_checks_of_its_kind(tmp_path: Path) -> None:
    serving = collected(tmp_path, resolve(SERVING).as_json())
    quantising = collected(tmp_path, resolve(REQUEST).as_json())
    own = {row for row in quantising if "tests/image/quantise/" in row}
    assert len(own) == 5 and not own & serving
    left_out = serving - quantising
    assert quantising - own == serving - left_out
    for test in ("test_user", "test_files", "test_layers", "test_secrets", "test_unpacked_size"):
        assert any(row.endswith(f"::{test}") for row in quantising), test
    parts = {
        part for row in left_out for part in (Path(row.split("::")[0]).name, row.split("::")[1])
    }
    named = {check.test for check in modelopt.load().checks_left_out}
    assert named <= parts, f"no such image test: {named - parts}"
