"""``bench images``: two images in turn, with a stand-in for Docker and for the server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from docker.errors import NotFound

from fp4forge.bench import identity, suite_run
from fp4forge.bench import result as results
from fp4forge.bench import suite as suites
from fp4forge.cli.bench import bench
from fp4forge.core.errors import (
    BenchError,
    CheckpointError,
    ForgeError,
    NoGpuError,
    PlatformError,
    RegressionError,
    UsageError,
)
from fp4forge.core.paths import ROOT
from fp4forge.core.platform import host_platform
from fp4forge.doctor import evidence, gather
from fp4forge.launch import alternation, deployment, starting
from fp4forge.oci import engine
from fp4forge.serve import settings
from tests import bench_fakes
from tests.bench_fakes import Fake
from tests.unit.test_serving import model

OLD, NEW = (f"127.0.0.1:1/fp4forge/vllm@sha256:{letter * 64}" for letter in "ab")
SUITE = """
title: A small suite
warmup: {prompt: 20, output: 2}
tables:
  - id: one
    title: One stream
    show: [decode_median, ttft_median]
    trials: 2
    points: [{label: a, prompt: 40, output: 16}]
"""
TRIALS = 2
# Docker as far as it is used: each image's labels, a file for the container that runs and one for
# the container that is there, a list of calls.
DOCKER = """\
import json, pathlib, sys
sys.path.insert(0, {root!r})
from tests import bench_fakes
here, words = pathlib.Path({folder!r}), sys.argv[1:]
running, there = here / "running", here / "there"
images = json.loads((here / "images.json").read_text())
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
if words == ["compose", "version"]:
    print("Docker Compose version v2")
elif words[:2] == ["image", "inspect"]:
    found = images.get(words[-1])
    if found is None:
        sys.exit("no such image")
    system, _, machine = found["platform"].partition("/")
    print(json.dumps([dict(Id="sha256:" + "f" * 64, RepoDigests=[words[-1]], Os=system,
        Architecture=machine, Config=dict(Labels=found["labels"]))]))
elif words[:2] == ["container", "inspect"]:
    if not running.exists():
        sys.exit("no such container")
    print(json.dumps([dict(Image=running.read_text(), Args=["serve"], State=dict(
        StartedAt="2026-11-28T10:00:00Z", Running=True))]))
elif words[0] == "compose" and "up" in words:
    text = pathlib.Path(words[words.index("-f") + 1]).read_text()
    image = next(name for name in images if name in text)
    there.touch()
    if not (here / ("broken-" + image[-1])).exists():
        running.write_text(image)
    with (here / "started").open("a") as started:
        started.write(image + "\\n")
elif words[0] == "compose" and ("down" in words or "stop" in words):
    running.unlink(missing_ok=True)
    if "down" in words:
        there.unlink(missing_ok=True)
elif words[0] == "run":
    bench_fakes.docker(here, words)
"""


class Here:
    """This machine, with a Docker that runs nothing and a server on the port."""

    def __init__(self, folder: Path, fake: Fake, port: int) -> None:
        self.folder, self.fake, self.port, self.out = folder, fake, port, folder / "out"
        self.model = model(folder, "m")
        (folder / "small.yaml").write_text(SUITE)
        self.labelled: dict[str, dict[str, Any]] = {}
        for image in (OLD, NEW):
            self.label(image)
        self.images = SimpleNamespace(get=lambda name: None)
        self.containers = SimpleNamespace(get=self.container)

    def label(self, image: str, platform: str = "", **labels: str) -> None:
        """What the engine knows of an image."""
        named = {"release": "0.20.2", "arch": "blackwell", "variant": "awq", "strategy": "wheel"}
        found = {f"io.fp4forge.{name}": value for name, value in (named | labels).items()}
        found["org.opencontainers.image.version"] = "0.20.2"
        self.labelled[image] = {"platform": platform or host_platform(), "labels": found}
        (self.folder / "images.json").write_text(json.dumps(self.labelled))

    def container(self, name: str) -> Any:
        """As the Docker SDK has it."""
        running = (self.folder / "running").exists()
        if not running and not (self.folder / "there").exists():
            raise NotFound(name)
        state = {"Running": running, "ExitCode": int(not running)}
        return SimpleNamespace(
            status="running" if running else "exited",
            attrs={"RestartCount": 0, "State": state},
            reload=lambda: None,
        )

    def __call__(self, *words: str, images: tuple[str, str] = (OLD, NEW)) -> Result:
        line = ["--suite", str(self.folder / "small.yaml"), "--gpu", "rtx5090", "--name", "m"]
        line += ["--workload", "balanced", "--port", str(self.port), "--out", str(self.out)]
        given = ["images", *images, "--model", str(self.model), *line, *words]
        return CliRunner().invoke(bench, given)

    def listed(self, name: str) -> list[str]:
        """The lines of one of Docker's files."""
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    @property
    def started(self) -> list[str]:
        """The images that were started, in order."""
        return ["old" if image == OLD else "new" for image in self.listed("started")]

    def trials(self, side: str) -> int:
        """How many valid trials a result has."""
        found = results.load(self.out / side).measured_trials("one", "a")
        return sum(trial.valid for trial in found)

    @property
    def nothing_runs(self) -> bool:
        return not (self.folder / "running").exists()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/docker"
    text = DOCKER.format(folder=str(tmp_path), root=str(ROOT))
    program.write_text(f"#!{sys.executable} -IS\n{text}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(deployment, "FOLDER", tmp_path / "state")
    monkeypatch.setattr(identity, "gpus", lambda: ())
    monkeypatch.setattr(identity, "patches", lambda reference: ())
    for pause in ("_PAUSE", "_LOOK"):
        monkeypatch.setattr(starting, pause, 0.02)
    fake = Fake()
    with bench_fakes.serving(fake) as url:
        found = Here(tmp_path, fake, int(url.rpartition(":")[2]))
        monkeypatch.setattr(engine, "connect", lambda: found)
        monkeypatch.setattr("fp4forge.launch.this_machine.check_port", lambda *_: None)
        yield found


def failure(done: Result, kind: type[ForgeError]) -> str:
    assert isinstance(done.exception, kind), (done.exception, done.output)
    return done.exception.message


def test_the_order_pairs_the_images() -> None:
    order = [(turn.side, turn.round) for turn in alternation.turns(3)]
    assert order == [("old", 1), ("new", 1), ("new", 2), ("old", 2), ("old", 3), ("new", 3)]


def test_both_are_measured_and_compared(here: Here) -> None:
    done = here("--rounds", "2", "--json")
    assert done.exit_code == 0, (done.exception, done.output)
    said = json.loads(done.stdout)
    assert (said["old"], said["new"], said["folder"]) == (OLD, NEW, str(here.out))
    assert here.started == ["old", "new", "new", "old"]
    assert here.trials("old") == here.trials("new") == 2 * TRIALS
    images = next(each for each in said["differences"] if each[0] == "image")
    assert images[1:] == [OLD.partition("@")[2], NEW.partition("@")[2]]
    assert {each["figure"] for each in said["changes"]} == {"decode_median", "ttft_median"}
    assert here.nothing_runs and not deployment.names()
    assert (here.out / "new/index.html").is_file()
    again = CliRunner().invoke(bench, ["compare", str(here.out / "old"), str(here.out / "new")])
    assert again.exit_code == 0, again.exception


def test_one_load_generator_measures_both(here: Here) -> None:
    assert here().exit_code == 0
    found = [results.load(here.out / side).identity for side in ("old", "new")]
    assert {each.client_image for each in found} == {OLD.partition("@")[2]}
    assert found[0].model_hash == found[1].model_hash != ""


def slower(here: Here) -> None:
    """Every trial of the second image takes twice as long."""
    itls = [[6.6e-06] + [2 * bench_fakes.ITL] * 15]
    first = 1 + TRIALS  # with a warm-up
    plan = {str(number): {"itls": itls} for number in range(first + 2, 2 * first + 1)}
    (here.folder / "plan.json").write_text(json.dumps(plan))


def test_a_regression_has_its_exit_code(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fp4forge.bench.compare.LEAST", 2)
    slower(here)
    done = here()
    assert "one a: decode_median" in failure(done, RegressionError)
    assert RegressionError.exit_code == 23 and here.nothing_runs
    assert here("--threshold", "0.9").exit_code == 0  # nothing is measured again
    assert here.started == ["old", "new"]


def test_a_dry_run_starts_nothing(here: Here) -> None:
    done = here("--dry-run", "--rounds", "2")
    assert done.exit_code == 0, (done.exception, done.output)
    assert "vllm serve" in done.stdout and "old new new old" in done.stdout
    said = json.loads(here("--dry-run", "--json").stdout)
    assert said["order"] == ["old", "new"] and said["new"]["image"] == NEW
    assert not here.started and not here.out.exists() and not deployment.names()


def interrupt(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts the command after so many trials."""
    real, made = suite_run.SuiteRun._keep, []

    def keep(self: suite_run.SuiteRun, load: Any, number: int, trial: Any) -> None:
        real(self, load, number, trial)
        made.append(number)
        if len(made) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(suite_run.SuiteRun, "_keep", keep)


def test_an_interrupt_stops_the_server_and_the_same_line_goes_on(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt(TRIALS + 1, patched)
        done = here()
    assert done.exit_code != 0 and here.nothing_runs and not deployment.names()
    assert (here.trials("old"), here.trials("new")) == (TRIALS, 1)
    assert here().exit_code == 0
    assert here.started == ["old", "new", "new"] and here.trials("new") == TRIALS


def test_what_a_killed_run_left_is_removed_first(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kill -9 leaves it: the server runs, its record is there, the trial in work is lost."""
    name = alternation.server_name(here.out, "old")
    with monkeypatch.context() as patched:
        interrupt(1, patched)
        patched.setattr(alternation, "remove", lambda made: None)
        here()
    assert deployment.names() == [name] and not here.nothing_runs
    before = len(here.listed("calls"))
    assert here().exit_code == 0
    words = [json.loads(line) for line in here.listed("calls")[before:]]
    down = next(line for line in words if "down" in line or "up" in line)
    assert "down" in down and name in down
    assert here.started == ["old", "old", "new"] and here.trials("old") == TRIALS
    assert here.nothing_runs and not deployment.names()


def test_a_server_that_does_not_start_ends_in_the_doctors_verdict(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "evidence", lambda sources: evidence.Evidence())
    (here.folder / "broken-b").touch()
    done = here()
    name = alternation.server_name(here.out, "new")
    assert f"{name} did not come up: it ended with exit code 1" in failure(done, ForgeError)
    assert here.nothing_runs and here.trials("old") == TRIALS
    assert deployment.names() == [name]  # its log stays
    (here.folder / "broken-b").unlink()
    assert here().exit_code == 0
    assert here.started == ["old", "new", "new"] and not deployment.names()


def test_a_trial_with_a_fault_ends_it_and_is_made_again(here: Here) -> None:
    (here.folder / "plan.json").write_text('{"3": {"completed": 0, "failed": 1}}')
    assert "do not count" in failure(here(), BenchError)
    assert here.nothing_runs and here.started == ["old"]
    (here.folder / "plan.json").unlink()
    assert here().exit_code == 0 and here.trials("old") == TRIALS


def test_a_server_that_is_up_at_the_port_is_not_touched(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(address: str, port: int) -> None:
        raise UsageError(f"port {port}")

    monkeypatch.setattr("fp4forge.launch.this_machine.check_port", taken)
    assert f"port {here.port}" in failure(here(), UsageError)  # another program's
    (here.folder / "running").write_text(OLD)
    deployment.Deployment(
        name="vllm-m",
        model=str(here.model),
        served_name="m",
        image=OLD,
        release="0.20.2",
        url=f"http://127.0.0.1:{here.port}",
    ).save()
    said = failure(here(), UsageError)
    assert said.startswith(f"vllm-m is running at http://127.0.0.1:{here.port}, and is not touched")
    assert not here.nothing_runs and not here.started


def test_images_that_cannot_be_compared(here: Here) -> None:
    twice = here(images=(OLD, OLD.replace("/fp4forge/", "/elsewhere/")))
    assert "OLD and NEW are one image" in failure(twice, UsageError)
    here.label(NEW, arch="sm121")
    assert "is for sm121, and this machine has" in failure(here(), NoGpuError)
    here.label(NEW, platform="linux/riscv64")
    assert "is for linux/riscv64, not for" in failure(here(), PlatformError)
    assert "UPPER" in failure(here(images=(OLD, "UPPER")), UsageError)
    assert not here.started and not here.out.exists()


def test_a_model_that_cannot_be_read(here: Here) -> None:
    (here.model / "config.json").write_text("{")
    failure(here(), CheckpointError)
    here.model = here.folder / "nowhere"
    assert "is not a folder" in failure(here(), UsageError)
    assert not here.started and not here.out.exists()


def test_a_folder_is_of_one_comparison(here: Here) -> None:
    assert here().exit_code == 0
    assert "another comparison (old: " in failure(here(images=(NEW, OLD)), BenchError)
    assert "max_context: 0 and 32" in failure(here("--max-context", "32"), BenchError)
    assert here.started == ["old", "new"]


def test_a_run_that_is_there_is_shown_again(here: Here) -> None:
    assert here().exit_code == 0
    done = here()
    assert done.exit_code == 0 and "everything is measured already" in done.stderr
    assert here.started == ["old", "new"]
    found = results.load(here.out / "old")
    found.complete = False  # as if killed after its last trial
    results.save(found, here.out / "old")
    assert here().exit_code == 0 and results.load(here.out / "old").complete


def test_each_image_is_served_as_its_own_release(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = []
    real = settings.server

    def server(folder: Path, image: str, wishes: settings.ServerWishes) -> settings.ServerSettings:
        versions.append((image, wishes.version))
        return real(folder, image, wishes)

    monkeypatch.setattr(settings, "server", server)
    here.label(NEW, release="0.33.0")
    assert here("--dry-run").exit_code == 0
    assert versions == [(OLD, "0.20.2"), (NEW, "0.33.0")]
    here.label(NEW, release="9.9.9")
    assert "9.9.9" in failure(here("--dry-run"), ForgeError)


def test_open_trials_are_numbered_over_rounds(here: Here) -> None:
    assert here().exit_code == 0
    suite = suites.load(str(here.folder / "small.yaml"))
    found = results.load(here.out / "old")
    assert suite_run.open_trials(found, suite, 1) == []
    assert [number for _, number in suite_run.open_trials(found, suite, 2)] == [3, 4]
    found.left_out["one"] = "why"
    assert suite_run.open_trials(found, suite, 2) == []
