"""What people get to read fits a screen: the closing summary, a plan, a difference, a list."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from fp4forge.cli import cli, summary
from fp4forge.core.console import fields
from fp4forge.inputs import release
from fp4forge.kernels.gpus import TARGETS
from fp4forge.publish.pipeline import PublishOutcome
from fp4forge.publish.platform_index import PublishedIndex

DIGEST = "sha256:" + "0123456789abcdef" * 4
REPOSITORY = "127.0.0.1:5000/fp4forge/vllm"


def check(number: int, outcome: str) -> dict[str, Any]:
    return {"name": f"check number {number} " + "of an image, at length, " * 5, "outcome": outcome}


def outcome(skipped: int, passed: int = 40) -> PublishOutcome:
    checks = [check(n, "passed") for n in range(passed)]
    checks += [check(passed + n, "skipped") for n in range(skipped)]
    return PublishOutcome(
        plan={"platform": "linux/amd64"},
        image=f"{REPOSITORY}@{DIGEST}",
        digest=DIGEST,
        tags=("1.0-blackwell-awq-0123456789ab", "1.0-blackwell-awq-wheel-bootstrap-amd64"),
        verified_before=False,
        unpacked_bytes=8_560_000_000,
        compressed_bytes=3_510_000_000,
        checks=checks,
        steps=[
            {"name": name, "seconds": 12.3}
            for name in (
                "plan",
                "check",
                "base",
                "ledger",
                "build",
                "push",
                "pull",
                "verify",
                "publish",
            )
        ],
    )


def test_the_summary_fits_a_screen() -> None:
    text = summary.lines([outcome(skipped=8)])
    assert len(text.splitlines()) <= 20
    assert max(map(len, text.splitlines())) <= 80
    assert DIGEST in text and "8.6 GB unpacked" in text and "3.5 GB to pull" in text
    assert "40 passed, 8 skipped" in text
    assert text.count("check number") == 8
    assert "verify 12.3 s" in text


def test_what_does_not_fit_is_counted() -> None:
    text = summary.lines([outcome(skipped=30)])
    assert len(text.splitlines()) <= 20
    assert "more (--verbose)" in text


def test_verbose_names_every_check() -> None:
    assert summary.lines([outcome(skipped=3)], verbose=True).count("check number") == 43


def test_several_platforms() -> None:
    index = PublishedIndex(f"{REPOSITORY}@{DIGEST}", DIGEST, ("a", "b"), {"linux/amd64": DIGEST})
    text = summary.lines([outcome(2), outcome(2)], index)
    assert len(text.splitlines()) <= 20
    assert text.count("linux/amd64") == 2 and "verified a, b" in text


def test_an_image_that_was_checked_before() -> None:
    assert "when the immutable tag was made" in summary.lines([outcome(skipped=0, passed=0)])


def shown(*words: str) -> list[str]:
    """What a command prints for a person; no line is wider than a terminal."""
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def test_a_name_that_is_too_long_has_a_line_of_its_own() -> None:
    assert fields([("a", "x\ny"), ("long name", "z"), ("b", "")], 4) == [
        "a   x",
        "    y",
        "long name",
        "    z",
        "b",
    ]
    wide = fields([("a", "word " * 40), ("n" * 100, "text")], 4)
    assert max(map(len, wide)) <= 80 and "".join(wide).count("word") == 40


@pytest.mark.parametrize("name", release.names())
@pytest.mark.parametrize("arch", TARGETS)
def test_a_plan_fits_a_screen(name: str, arch: str) -> None:
    strategy = next(iter(release.load(name).strategies))
    line = ("--arch", arch, "--release", name, "--from", strategy, "--aot", "gemma4", "--dry-run")
    short = shown(*line)
    plan = json.loads(CliRunner().invoke(cli, [*line, "--json"]).stdout)
    assert len(short) <= 40
    words = " ".join(short).split()
    assert {plan["id"], plan["platform"], plan["base_image"] + ",", plan["arch_list"]} <= {*words}
    assert all(name in " ".join(words) for name in [*plan["predicted"], *plan["patches"]])


def test_a_plan_says_the_rest_on_request() -> None:
    line = ("--arch", "sm121", "--dry-run")
    plan = json.loads(CliRunner().invoke(cli, [*line, "--json"]).stdout)
    all_of_it = "".join(part.strip() for part in shown(*line, "--verbose"))
    short = "".join(shown(*line))
    for digest in plan["patched_files"].values():
        assert digest[:12] in all_of_it and digest[:12] not in short
    for source in plan["sources"].values():
        assert source["where"] in all_of_it.replace(" ", "")
    assert f"files by {len(plan['leave_out'])} rules (--verbose)" in short


def test_a_difference_between_releases_fits_a_screen() -> None:
    old, new = release.names()[0], release.names()[-1]
    rows = json.loads(CliRunner().invoke(cli, ["release", "diff", old, new, "--json"]).stdout)
    short, verbose = (
        shown("release", "diff", old, new),
        shown("release", "diff", old, new, "--verbose"),
    )
    assert len(short) <= 40 < len(verbose)
    said = " ".join(" ".join(short).split())
    for row in rows:
        kind, _, name = row["name"].partition(" ")
        whole = f"{name}: {row['old'] or 'none'} -> {row['new'] or 'none'}"
        assert kind != "patch" or whole in said
        assert kind != "package" or (row["old"] and row["new"]) or name in said
        assert row["name"] in " ".join(" ".join(verbose).split())
    moved = [r for r in rows if r["name"].startswith("package ") and r["old"] and r["new"]]
    assert f"{len(moved)} in another version" in said
    assert shown("release", "diff", new, new) == ["no difference"]


def test_the_patches_fit_a_screen() -> None:
    lines = shown("patch", "list")
    listed = json.loads(CliRunner().invoke(cli, ["patch", "list", "--json"]).stdout)
    assert len(lines) <= 40
    said = " ".join(" ".join(lines).split())
    titles: dict[str, str] = {}
    for series in listed.values():
        for one in series:
            titles.setdefault(one["id"], one["title"])  # a later release may word it otherwise
    assert all(f"{name} {title}" in said for name, title in titles.items())


def test_what_vllm_selects_for_a_model_fits_a_screen() -> None:
    line = ("backends", "--kept", "--gpu", "sm121", "--family", "gemma4")
    short = shown(*line)
    (answer,) = json.loads(CliRunner().invoke(cli, [*line, "--json"]).stdout)
    assert len(short) <= 40
    assert {one["selected"] for one in answer["decisions"]} - {""} <= {*" ".join(short).split()}
