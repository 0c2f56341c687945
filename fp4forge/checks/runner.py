"""Runs the image tests (tests/image, pytest-testinfra) against an image and reads their report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fp4forge.core import files, reading
from fp4forge.core.errors import VerifyError
from fp4forge.core.paths import IMAGE_TESTS, ROOT
from fp4forge.core.text import as_json
from fp4forge.kernels.base import Progress
from fp4forge.oci import engine

# A test's ID as pytest -v and the tests' own progress have it at the begin of a line.
_RUNS = re.compile(r"\S+?\.py::(.*\S)")


@dataclass(frozen=True)
class Check:
    """One image test: its outcome (passed, failed, skipped), the reason if not passed, figures.

    ``test`` is its function, ``name`` what it says of an image that passes.
    """

    test: str
    name: str
    outcome: str
    message: str
    seconds: float
    facts: dict[str, Any]


def run(
    image: str, plan: dict[str, Any], report: Progress, reports: Path | None = None, only: str = "",
    gpu: bool = False,
) -> tuple[Check, ...]:  # fmt: skip
    """Runs every image test against an image that the engine has.

    Args:
        image: reference by digest or tag.
        plan: the plan as JSON; the image is held to it.
        report: called with the name of each check as it begins, and what a long one is at.
        reports: folder for JUnit XML, JSON and a page for people, if wanted.
        only: a pytest expression that selects checks; all by default.
        gpu: the container gets the machine's GPUs, and is tested on them too.

    Raises:
        VerifyError: the suite itself could not run.
    """
    client = engine.connect()
    stem = "image-" + plan["platform"].partition("/")[2]
    with (
        tempfile.TemporaryDirectory(prefix="fp4forge-verify-") as folder,
        engine.container(client, image, plan["platform"], gpu) as container,
    ):
        plan_file, result = Path(folder, "plan.json"), Path(folder, "checks.jsonl")
        plan_file.write_text(json.dumps(plan))
        result.touch()
        line = [sys.executable, "-m", "pytest", str(IMAGE_TESTS), "-v", "-p", "no:cacheprovider"]
        line += ["-p", "no:randomly", "--rootdir", str(ROOT), f"--image={image}"]
        line += [f"--container={container}", f"--plan={plan_file}", f"--checks={result}"]
        line += [f"--junitxml={reports / stem}.xml"] if reports else []
        line += ["--gpu"] if gpu else []
        line += ["-k", only] if only else []
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
            errors="replace", env=environment,
        )  # fmt: skip
        assert process.stdout is not None
        said = []
        try:
            for text in process.stdout:
                said.append(text)
                del said[:-15]
                if match := _RUNS.match(text):
                    report(match[1])
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        checks = tuple(
            reading.json(text, Check, "a check's record", VerifyError)
            for text in result.read_bytes().splitlines()
        )
    if process.returncode not in (0, 1) or not checks:
        raise VerifyError(
            "the image tests could not run:\n" + "".join(said), remedy="run make setup"
        )
    if reports:
        from fp4forge.checks.page import page

        text = as_json([asdict(check) for check in checks])
        files.replace(reports / f"{stem}.json", text + "\n")
        files.replace(reports / f"{stem}.html", page(image, plan, checks))
    return checks


def summary(checks: tuple[Check, ...]) -> str:
    """How many passed, failed and were skipped."""
    counts = {word: sum(c.outcome == word for c in checks) for word in ("failed", "skipped")}
    passed = sum(c.outcome == "passed" for c in checks)
    rest = "".join(f", {count} {word}" for word, count in counts.items() if count)
    return f"{passed} of {len(checks)} checks passed{rest}"


def demand(checks: tuple[Check, ...]) -> None:
    """Refuses an image of which any check failed.

    Raises:
        VerifyError: with each failed check and its message.
    """
    failed = [check for check in checks if check.outcome == "failed"]
    if failed:
        raise VerifyError(
            "\n".join(f"{check.name}: {check.message}" for check in failed),
            rule="a tag never points at an image that was not verified",
            remedy="no tag was moved; the image is there by digest for a look",
        )
