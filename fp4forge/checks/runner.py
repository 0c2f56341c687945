"""Runs the image tests (tests/image, pytest-testinfra) against an image and reads their report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from fp4forge.checks.check import ImageCheck
from fp4forge.checks.image_page import page
from fp4forge.core import files, reading
from fp4forge.core.errors import VerifyError
from fp4forge.core.paths import IMAGE_TESTS, ROOT
from fp4forge.core.text import as_json
from fp4forge.kernels.base import Progress
from fp4forge.oci import engine

# A test's ID as pytest -v and the tests' own progress have it at the start of a line.
_RUNS = re.compile(r"\S+?\.py::(.*\S)")


class LogLineKind(msgspec.Struct):
    """What a line of the log is about: a test, a warning, the session."""

    name: str = msgspec.field(name="$report_type", default="")


class PhaseReport(msgspec.Struct):
    """One phase of one test, as pytest-reportlog writes pytest's own report."""

    nodeid: str
    when: str  # setup, call or teardown
    outcome: str
    duration: float  # seconds
    longrepr: Any
    user_properties: list[tuple[str, Any]]

    @property
    def ends(self) -> bool:
        """Whether it decides its test: the call, or a set-up that did not pass."""
        return self.when == "call" or (self.when == "setup" and self.outcome != "passed")

    def message(self) -> str:
        """Why a test was skipped or failed."""
        if isinstance(self.longrepr, list):  # skipped: file, line, reason
            return str(self.longrepr[2])
        crash = self.longrepr.get("reprcrash") if isinstance(self.longrepr, dict) else None
        text = str(crash["message"] if crash else self.longrepr or "")
        text = text.removeprefix("AssertionError: ").strip()
        # pytest's own explanation follows an assert's message, or is all there is.
        return text.splitlines()[0] if text.startswith("assert ") else text.split("\nassert ")[0]

    def check(self) -> ImageCheck:
        """The report as a check."""
        facts = dict(self.user_properties)
        return ImageCheck(
            test=self.nodeid.rpartition("::")[2],
            name=facts.pop("name", self.nodeid),
            outcome=self.outcome,
            message=self.message(),
            seconds=round(self.duration, 3),
            facts=facts,
        )


def read_log(log: bytes) -> tuple[ImageCheck, ...]:
    """The checks in a pytest-reportlog file; it has lines of other kinds, too.

    Raises:
        VerifyError: a line is not what pytest-reportlog writes.
    """
    where = "the report log of the image tests"
    reports = [
        reading.json(line, PhaseReport, where, VerifyError)
        for line in log.splitlines()
        if reading.json(line, LogLineKind, where, VerifyError).name == "TestReport"
    ]
    return tuple(report.check() for report in reports if report.ends)


def run(
    image: str,
    plan: dict[str, Any],
    report: Progress,
    reports: Path | None = None,
    only: str = "",
    gpu: bool = False,
) -> tuple[ImageCheck, ...]:
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
        plan_file, result = Path(folder, "plan.json"), Path(folder, "log.jsonl")
        plan_file.write_text(json.dumps(plan))
        result.touch()
        line = [sys.executable, "-m", "pytest", str(IMAGE_TESTS), "-v", "-p", "no:cacheprovider"]
        line += ["-p", "no:randomly", "--rootdir", str(ROOT), f"--image={image}"]
        line += [f"--container={container}", f"--plan={plan_file}", f"--report-log={result}"]
        line += [f"--junitxml={reports / stem}.xml"] if reports else []
        line += ["--gpu"] if gpu else []
        line += ["-k", only] if only else []
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
        process = subprocess.Popen(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
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
        checks = read_log(result.read_bytes())
    if process.returncode not in (0, 1) or not checks:
        raise VerifyError(
            "the image tests could not run:\n" + "".join(said), remedy="run make setup"
        )
    if reports:
        text = as_json([asdict(check) for check in checks])
        files.replace(reports / f"{stem}.json", text + "\n")
        files.replace(reports / f"{stem}.html", page(image, plan, checks))
    return checks


def demand(checks: tuple[ImageCheck, ...]) -> None:
    """Refuses an image of which any check failed.

    Raises:
        VerifyError: with each failed check and its message.
    """
    failed = [check for check in checks if check.outcome == "failed"]
    if failed:
        raise VerifyError(
            "\n".join(f"{check.name}: {check.message}" for check in failed),
            rule="a tag never points at an image that was not verified",
            remedy="no tag was moved; the image can be examined by its digest",
        )
