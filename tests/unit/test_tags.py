"""Names of images: an immutable tag for ever, moving tags that nobody else's push takes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from fp4forge.core.errors import UsageError
from fp4forge.core.paths import ROOT
from fp4forge.inputs import defaults, release
from fp4forge.oci import reference
from fp4forge.plan import tags
from fp4forge.plan.plan import Plan
from fp4forge.plan.request import ImageRequest, decide
from fp4forge.plan.resolve import resolve
from fp4forge.publish import destination

WHEEL = ImageRequest(
    "blackwell", strategy="wheel", base="bootstrap", platform="linux/amd64", aot="none"
)


@pytest.mark.parametrize(
    "change",
    [
        {"platform": "linux/arm64"},
        {"strategy": "source"},
        {"base": "ubuntu:24.04"},
        {"variant": "plain"},
        {"arch": "sm120"},
    ],
)
def test_another_kind_of_image_has_another_moving_tag(change: dict[str, Any]) -> None:
    assert resolve(replace(WHEEL, **change)).moving_tag != resolve(WHEEL).moving_tag


def test_no_two_kinds_share_a_tag() -> None:
    names = [
        tags.moving("1.0", arch, variant, strategy, base, platform)
        for arch, variant, strategy, base, platform in itertools.product(
            ("sm120", "blackwell"),
            ("awq", "plain"),
            release.STRATEGIES,
            ("bootstrap", "ubuntu-24.04"),
            ("linux/amd64", "linux/arm64"),
        )
    ]
    assert len(set(names)) == len(names)


def test_the_tag_without_a_platform_is_the_indexs() -> None:
    plan: Plan = resolve(WHEEL)
    assert plan.moving_tag == f"{plan.index_tag}-amd64"


@pytest.mark.parametrize("tag", ["x-0123456789ab", "1.0-sm120-awq-0123456789ab-01234567"])
def test_a_users_tag_never_has_the_form_of_an_immutable_one(tag: str) -> None:
    with pytest.raises(UsageError, match="immutable"):
        tags.check(tag)


@pytest.mark.parametrize(
    "tag", ["0.20.2-sm120-awq-wheel-bootstrap-arm64", "0.20.2-blackwell-plain-source-ubuntu-24.04"]
)
def test_a_users_tag_never_has_the_form_of_a_plans_moving_one(tag: str) -> None:
    with pytest.raises(UsageError, match="moving"):
        tags.check(tag)


@pytest.mark.parametrize("suffix", ["", ".sig", ".att"])
def test_a_users_tag_never_names_what_lies_beside_an_image(suffix: str) -> None:
    with pytest.raises(UsageError, match="form of a digest"):
        destination.checked("h/x", True, False, (f"sha256-{'0' * 64}{suffix}",))


def test_a_users_tag() -> None:
    assert tags.check("latest") == "latest"


def test_defaults_are_decided_in_one_place() -> None:
    reference_ = defaults.table().reference
    bare = decide(ImageRequest("sm121"))
    assert (bare.release, bare.strategy) == (reference_.release, reference_.strategy)
    wheel = decide(ImageRequest("sm121", strategy="wheel"))
    assert wheel.release == defaults.newest("wheel", "awq")
    assert decide(ImageRequest("sm121", release=wheel.release)).strategy in release.STRATEGIES


def test_from_wheel_alone_plans_the_newest_release_that_has_one() -> None:
    line = [sys.executable, "build.py", "--arch", "sm121", "--from", "wheel", "--dry-run", "--json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout)["release"] == defaults.newest("wheel", "awq"), done.stderr


def test_make_image_and_serve_compose_name_the_same_image() -> None:
    text = (ROOT / "Makefile").read_text()
    usual = defaults.table().image
    assert f"FROM ?= {usual.strategy}\n" in text
    assert f"ARCH ?= {usual.arch}\n" in text
    assert f"BASE ?= {usual.base}\n" in text
    assert f"VARIANT ?= {usual.variant}\n" in text
    assert "RELEASE ?=\n" in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:5000/a/b:t", ("127.0.0.1:5000/a/b", "t", "")),
        ("ghcr.example/a/b", ("ghcr.example/a/b", "", "")),
        (f"host:1/a@sha256:{'0' * 64}", ("host:1/a", "", f"sha256:{'0' * 64}")),
        (f"a:t@sha256:{'0' * 64}", ("a", "t", f"sha256:{'0' * 64}")),
    ],
)
def test_references(text: str, parts: tuple[str, str, str]) -> None:
    found = reference.parse(text)
    assert (found.repository, found.tag, found.digest) == parts
    assert str(found) == text


@pytest.mark.parametrize("text", ["", "A/B", "a:b:c", "a@sha256:12", "a b", "a:-x", "-a", "a\n"])
def test_what_is_not_a_reference(text: str) -> None:
    with pytest.raises(UsageError):
        reference.parse(text)
