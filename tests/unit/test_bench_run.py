"""Runs of ``build.py bench`` against a server and a docker that are fakes: no request is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fp4forge.bench import identity, soak, suite_run
from fp4forge.bench import result as results
from fp4forge.cli.bench import bench
from fp4forge.core.errors import BenchError, EngineError, RegressionError, ServingError, UsageError
from fp4forge.core.paths import ROOT
from tests import bench_fakes
from tests.bench_fakes import Fake

SUITE = """
title: A small suite
warmup: {prompt: 20, output: 2}
tables:
  - id: one
    title: One stream
    show: [decode_median, ttft_median, acceptance]
    trials: 4
    points: [{label: a, prompt: 40, output: 16}]
  - id: many
    title: Several
    show: [errors, aggregate]
    points:
      - {label: "1", prompt: 40, output: 16, concurrency: 1}
      - {label: "4", prompt: 200, output: 16, concurrency: 4}
  - id: gain
    title: Scaling
    of: many
    show: [gain, efficiency]
"""
WARM, TRIALS = 1, 6  # runs of the load generator


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def url(fake: Fake) -> Iterator[str]:
    with bench_fakes.serving(fake) as found:
        yield found


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{bench_fakes.install(folder)}:{os.environ['PATH']}")
    monkeypatch.setattr(identity, "gpus", lambda: ())
    return folder


Run = Callable[..., Result]


@pytest.fixture
def run(url: str, programs: Path, tmp_path: Path) -> Run:
    (tmp_path / "small.yaml").write_text(SUITE)
    line = ["--url", url, "--suite", str(tmp_path / "small.yaml"), "--image", "image"]

    def invoke(*options: str, out: str = "out") -> Result:
        given = [*line, "--out", str(tmp_path / out), *options]
        return CliRunner().invoke(bench, given)

    return invoke


def asked(programs: Path) -> list[list[str]]:
    """The load generator's command lines."""
    text = (programs / "lines.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def misbehave(programs: Path, **runs: Any) -> None:
    """What the load generator does wrong, by the number of its run."""
    named = {name.removeprefix("run"): changes for name, changes in runs.items()}
    (programs / "plan.json").write_text(json.dumps(named))


def failure(done: Result, kind: type[Exception]) -> str:
    assert isinstance(done.exception, kind), (done.exception, done.output)
    return str(done.exception)


def test_a_run(run: Run, programs: Path, tmp_path: Path) -> None:
    done = run("--json")
    assert done.exit_code == 0, done.exception
    data = json.loads(done.stdout)
    assert data["complete"] and not data["problems"]
    assert data["tables"]["one"]["a"]["decode_median"] == pytest.approx(100, rel=0.01)
    assert data["identity"]["client_version"] == "0.20.2"
    assert data["tables"]["gain"]["4"]["gain"] == pytest.approx(1.0)
    assert len(asked(programs)) == WARM + TRIALS
    page = (tmp_path / "out/index.html").read_text()
    assert "Several" in page and "<svg" in page and "http" not in page.split("</style>")[1][:400]
    assert "| 4 | 0 |" in (tmp_path / "out/README.md").read_text()
    assert not list((tmp_path / "out").rglob("prompts.jsonl"))
    assert list((tmp_path / "out/raw").rglob("raw.json"))


def test_what_no_trial_has_is_not_shown(run: Run, tmp_path: Path) -> None:
    assert run().exit_code == 0
    assert "drafts accepted" not in (tmp_path / "out/README.md").read_text()


def test_a_run_that_is_there_is_not_repeated(run: Run, programs: Path) -> None:
    assert run().exit_code == run().exit_code == 0
    assert len(asked(programs)) == WARM + TRIALS


def test_a_killed_run_resumes(run: Run, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: suite_run.SuiteRun, load: Any, number: int, made: Any) -> None:
        real(self, load, number, made)
        if number == 3:
            raise KeyboardInterrupt

    real = suite_run.SuiteRun._keep
    monkeypatch.setattr(suite_run.SuiteRun, "_keep", die)
    assert run().exit_code != 0
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(identity, "gpus", lambda: ())
    assert run().exit_code == 0
    assert len(asked(programs)) == 2 * WARM + TRIALS


def test_a_run_that_is_killed_outright(run: Run, url: str, programs: Path, tmp_path: Path) -> None:
    """SIGKILL at any time loses at most the trial that ran."""
    line = [sys.executable, str(ROOT / "build.py"), "bench", "--url", url, "--image", "image"]
    line += ["--suite", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out")]
    started = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    while not (tmp_path / "out/result.json").is_file():
        assert started.poll() is None, "it ended"
        time.sleep(0.01)
    started.kill()
    started.wait()
    kept = results.load(tmp_path / "out")
    number = sum(len(trials) for points in kept.tables.values() for trials in points.values())
    assert number >= 1
    before = len(asked(programs))
    assert run().exit_code == 0
    assert len(asked(programs)) <= before + WARM + TRIALS - number
    assert results.load(tmp_path / "out").complete


def test_a_fault_is_exit_code_24_and_is_repeated(run: Run, programs: Path, tmp_path: Path) -> None:
    misbehave(programs, run3={"output_lens": [7]})
    assert "short (1): 7 of 16 tokens" in failure(run(), BenchError)
    assert "These figures do not count" in (tmp_path / "out/index.html").read_text()
    (programs / "plan.json").unlink()
    assert run().exit_code == 0
    assert len(asked(programs)) == 2 * WARM + TRIALS + 1


def test_a_fault_in_json(run: Run, programs: Path) -> None:
    misbehave(programs, run3={"errors": ["Bad Gateway"], "completed": 0, "failed": 1})
    done = run("--json")
    assert done.exit_code == BenchError.exit_code == 24
    assert "Bad Gateway" in json.loads(done.stdout)["problems"][1]


def test_a_load_generator_that_fails_or_ends(run: Run, programs: Path, tmp_path: Path) -> None:
    misbehave(programs, run3={"error": "ValueError: no luck"}, run5={"exit": 137})
    said = failure(run(), BenchError)
    assert "one a, trial 2: ValueError: no luck" in said
    assert "one a, trial 4: the load generator ended with code 137: MemoryError: no room" in said
    # The others were measured: by a new container, where the old one had ended.
    kept = results.load(tmp_path / "out")
    assert [t.valid for t in kept.trials("one", "a")] == [True, False, True, False]
    assert kept.trials("many", "4")[0].valid


@pytest.mark.parametrize("code", [1, 125])
def test_an_engine_that_does_not_start_it(run: Run, programs: Path, code: int) -> None:
    misbehave(programs, start={"exit": code})
    assert "ValueError: no luck" in failure(run(), EngineError)


def test_a_server_that_dies(run: Run, fake: Fake, programs: Path, tmp_path: Path) -> None:
    class Dying(Fake):
        pass

    misbehave(programs, run4={"errors": ["refused"], "completed": 0, "failed": 1})
    real = fake.answer

    def answer(path: str, body: Any) -> tuple[int, Any]:
        fake.alive = not (programs / "lines.jsonl").exists() or len(asked(programs)) < 4
        return real(path, body)

    fake.answer = answer  # type: ignore[method-assign]
    said = failure(run(), ServingError)
    assert "the server died during one a" in said
    kept = results.load(tmp_path / "out")
    assert [trial.valid for trial in kept.trials("one", "a")] == [True, True, False]
    assert not kept.complete


def test_a_warm_up_that_fails(run: Run, programs: Path) -> None:
    misbehave(programs, run1={"generated_texts": [], "itls": []})
    assert "the warm-up failed" in failure(run(), BenchError)


def test_another_run_in_the_folder(run: Run, fake: Fake, tmp_path: Path) -> None:
    assert run().exit_code == 0
    text = (tmp_path / "small.yaml").read_text()
    (tmp_path / "small.yaml").write_text(text.replace("output: 16", "output: 17"))
    assert "has the result of another run (suite: " in failure(run(), BenchError)
    (tmp_path / "small.yaml").write_text(text)
    fake.context = 9999
    assert "context: 4096 and 9999" in failure(run(), BenchError)


def test_a_context_that_is_too_short(run: Run, fake: Fake) -> None:
    fake.context = 128
    said = failure(run(), BenchError)
    assert said.startswith("the server's context of 128 tokens is too short for: many 4 (216)")
    done = run("--max-context", "128", "--json")
    assert done.exit_code == 0, done.exception
    data = json.loads(done.stdout)
    assert data["left_out"] == {"many 4": "216 tokens, --max-context is 128"}
    assert set(data["tables"]["many"]) == {"1"}


def test_servers_that_are_none(run: Run, fake: Fake) -> None:
    assert "no model 'other'" in failure(run("--model", "other"), ServingError)
    fake.status["/version"] = 404
    assert "/version answers HTTP 404" in failure(run(), ServingError)
    fake.status = {"/v1/models": 401}
    assert "asks for an API key" in failure(run(), ServingError)
    fake.status = {"/tokenize": 404}
    assert "/tokenize answers HTTP 404" in failure(run(), BenchError)


@pytest.mark.parametrize("bad", ["", "h:1", "ftp://h", "http://", "http://h:x", "http://h?x"])
def test_addresses_that_are_none(bad: str) -> None:
    done = CliRunner().invoke(bench, ["--url", bad])
    failure(done, UsageError)


def test_nobody_at_the_address(programs: Path, tmp_path: Path) -> None:
    line = ["--url", "http://127.0.0.1:9", "--out", str(tmp_path / "out")]
    assert "no server answers" in failure(CliRunner().invoke(bench, line), ServingError)


def test_without_an_image(url: str, programs: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(bench, ["--url", url, "--out", str(tmp_path / "out")])
    assert "no image to run vllm bench serve in" in failure(done, UsageError)


def test_comparing(run: Run, programs: Path, tmp_path: Path) -> None:
    assert run().exit_code == 0
    misbehave(programs, **{"*": {"ttfts": [0.1] * 1}})
    slow = run("--only", "one", out="slow")
    assert slow.exit_code == 0, slow.exception
    old, new = str(tmp_path / "out"), str(tmp_path / "slow")
    same = CliRunner().invoke(bench, ["compare", old, old, "--json"])
    assert same.exit_code == 0
    assert {c["verdict"] for c in json.loads(same.stdout)["changes"]} <= {"same", "unsure"}
    said = failure(CliRunner().invoke(bench, ["compare", old, new]), RegressionError)
    assert said.startswith("one a: ttft_median 50 -> 100")
    assert RegressionError.exit_code == 23
    done = CliRunner().invoke(bench, ["compare", old, new, "--json", "--card"])
    assert done.exit_code == 23
    assert CliRunner().invoke(bench, ["compare", new, old]).exit_code == 0
    failure(CliRunner().invoke(bench, ["compare", old]), UsageError)
    shown = CliRunner().invoke(bench, ["compare", old, "--card"])
    assert shown.exit_code == 0 and "probably repeated prompts" in shown.output


def test_showing(run: Run, tmp_path: Path) -> None:
    assert run().exit_code == 0
    (tmp_path / "out/index.html").unlink()
    done = CliRunner().invoke(bench, ["show", str(tmp_path / "out")])
    assert done.exit_code == 0 and "Several" in done.stdout
    assert (tmp_path / "out/index.html").is_file()


def soaked(url: str, out: Path, monkeypatch: pytest.MonkeyPatch, trials: int) -> Result:
    """A soak of a few trials, whose answers are checked after each."""
    real = suite_run.SuiteRun._keep

    def keep(self: suite_run.SuiteRun, load: Any, number: int, made: Any) -> None:
        real(self, load, number, made)
        if number == trials:
            self.until = 0.0

    monkeypatch.setattr(suite_run.SuiteRun, "_keep", keep)
    monkeypatch.setattr(soak, "PAUSE", 0.0)
    line = ["soak", "--url", url, "--image", "image", "--out", str(out), "--hours", "1"]
    return CliRunner().invoke(bench, line)


def test_a_soak(url: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = soaked(url, tmp_path / "out", monkeypatch, 2)
    assert done.exit_code == 0, done.exception
    found = results.load(tmp_path / "out")
    assert found.complete and len(found.trials("soak", "steady")) == 2
    # The fake says Paris, whatever it is asked.
    assert set(found.left_out) == {"question product", "question needle"}


def test_a_soak_whose_answers_become_wrong(
    url: str, fake: Fake, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fake.answer

    def answer(path: str, body: Any) -> tuple[int, Any]:
        status, found = real(path, body)
        if path.endswith("completions") and (programs / "lines.jsonl").is_file():
            found["choices"][0]["message"]["content"] = "Rome."
        return status, found

    fake.answer = answer  # type: ignore[method-assign]
    done = soaked(url, tmp_path / "out", monkeypatch, 1)
    assert "the answer to capital became wrong: it does not say paris" in failure(done, BenchError)


def test_a_soak_that_becomes_slower(
    url: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"ttfts": [0.5] * 64}
    misbehave(programs, **{f"run{number}": slow for number in range(WARM + 7, WARM + 10)})
    done = soaked(url, tmp_path / "out", monkeypatch, 9)
    assert "TTFT p50 drifted from 50.03 to 500" in failure(done, RegressionError)


def test_two_runs_in_one_folder(run: Run, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/lock"):
        assert "another run is measuring" in failure(run(), BenchError)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Cannot connect to the Docker daemon at unix:///x. Is it running?", EngineError),
        ("Error: No such image: image", UsageError),
    ],
)
def test_images_that_are_not_there(
    said: str, kind: type[Exception], run: Run, programs: Path
) -> None:
    (programs / "docker").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    failure(run(), kind)
