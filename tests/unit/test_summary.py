"""The closing summary: short, whole digests, every check that did not pass by its name."""

from __future__ import annotations

from typing import Any

from fp4forge.cli import summary
from fp4forge.publish.pipeline import PublishedIndex, PublishOutcome

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
