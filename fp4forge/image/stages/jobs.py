"""Runs ninja within the memory that there is, with progress; shared by the compile stages."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SETTINGS = Path("/run/secrets/compile.env")
# Memory of one nvcc on CUTLASS templates, in GiB: 3 to 8 measured; the uncapped default has run
# hosts out of memory (vllm-project/vllm#8448, #13281).
JOB_GIB = 5.0
KEPT = 3  # build folders that stay in a cache mount
_KILLED = re.compile(r"died due to signal 9|Killed signal terminated|signal: 9|out of memory", re.I)
_COMPILERS = ("sccache", "nvcc", "c++")
# An object in ninja's output: CMake's description of the step, or FlashInfer's bare command.
_OBJECT = re.compile(r"^\[(\d+)/(\d+)\](?:.*? (?:object|-o) (\S+\.o)\b)?", re.M)
# Milliseconds, the file's time, its name, in ninja's log; ninja may be writing the last line.
_LOGGED = re.compile(r"^(\d+)\t(\d+)\t(\d+)\t(.+)\t\w+$", re.M)


class Failed(Exception):
    """The compile cannot go on; the message is for the user."""


def settings() -> dict[str, str]:
    """KEY=VALUE lines of the secret: FP4FORGE_JOBS and sccache's settings."""
    if not SETTINGS.is_file():
        return {}
    lines = (line.partition("=") for line in SETTINGS.read_text().splitlines())
    return {key: value for key, equals, value in lines if equals}


@contextlib.contextmanager
def alone(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds a folder for this process, by its file "lock".

    Args:
        waiting: called where another process has it, before the wait.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def alone_on_engine(cache: Path) -> contextlib.AbstractContextManager[None]:
    """Holds a cache mount; BuildKit's own lock (sharing=locked) would wait without a word."""
    return alone(cache, lambda: say("waiting: another build is compiling on this engine"))


def folder_of(cache: Path, key: str) -> Path:
    """The build folder of a key in a cache mount; a new one takes the place of the oldest."""
    folder = cache / key
    if not folder.is_dir():
        for old in sorted(cache.glob("*/"), key=lambda p: p.stat().st_mtime)[: -KEPT + 1]:
            shutil.rmtree(old)
        folder.mkdir(parents=True)
    folder.touch()
    return folder


def jobs_for(cores: int, free_gib: float) -> int:
    """Parallel compile jobs that cores and free memory allow; at least one."""
    return max(1, min(cores, int(free_gib / JOB_GIB)))


def free_gib() -> float:
    """Memory that can be had now, in GiB: of the machine or of the container's limit."""
    text = Path("/proc/meminfo").read_text()
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    free = int(match[1]) / 2**20 if match else 4.0
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (value := limit.read_text().strip()).isdigit():
        free = min(free, int(value) / 2**30)
    return free


def run(
    arguments: list[str],
    environment: dict[str, str],
    given_jobs: str | None,
    past: Callable[[], dict[str, float]],
    after: Callable[[], None] = lambda: None,
) -> None:
    """Compiles; after an out-of-memory kill again with half the jobs.

    Args:
        arguments: ninja's, without -j.
        environment: the compilers'.
        given_jobs: parallel jobs; by default as many as cores and memory allow.
        past: seconds that objects took, asked again and again for the time left.
        after: called when ninja has ended, whether well or not.

    Raises:
        Failed: an object cannot be compiled; its command and last lines are in the message.
    """
    jobs = int(given_jobs) if given_jobs else jobs_for(os.cpu_count() or 1, free_gib())
    while True:
        waiting = remaining(arguments)
        say(f"{len(waiting)} objects to compile, {jobs} jobs, {free_gib():.0f} GiB free")
        output = _run(["-j", str(jobs), *arguments], environment, Progress(waiting, past, jobs))
        after()
        if output is None:
            return
        if not _KILLED.search(output):
            raise Failed(failure(output))
        if jobs == 1:
            raise Failed("the OOM killer ended the only compiler\n" + tail(output))
        jobs //= 2
        say(f"the OOM killer ended a compiler: going on with {jobs} jobs")


def timings(build: Path, since_ns: int = 0) -> dict[str, float]:
    """Wall seconds by output, by a folder's ninja log; of what was made after since_ns (epoch)."""
    log = build / ".ninja_log"
    text = log.read_text() if log.is_file() else ""
    return {
        short(output): (int(end) - int(start)) / 1000
        for start, end, time_ns, output in _LOGGED.findall(text)
        if int(time_ns) > since_ns
    }


def remaining(arguments: list[str]) -> list[str]:
    """The objects that ninja would compile."""
    listed = subprocess.run(["ninja", "-n", *arguments], capture_output=True, text=True).stdout
    return [short(match[3]) for match in _OBJECT.finditer(listed) if match[3]]


def time_left(waiting: list[str], past: dict[str, float]) -> float:
    """Seconds that objects will take one after another; 0 if too little is known.

    An object takes what it took before, or what its source took on average in other modules, of
    which FlashInfer has hundreds, or else the mean.
    """
    known = {name: took for name, took in past.items() if not name.endswith(".so")}
    if not waiting or len(known) * 20 < len(waiting):  # the first few foretell nothing
        return 0.0
    mean = statistics.fmean(known.values())
    of_source: dict[str, list[float]] = {}
    for name, took in known.items():
        of_source.setdefault(_source(name), []).append(took)
    means = {source: statistics.fmean(took) for source, took in of_source.items()}
    return sum(known.get(name, means.get(_source(name), mean)) for name in waiting)


def _run(arguments: list[str], environment: dict[str, str], progress: Progress) -> str | None:
    """None when all is built, else ninja's output."""
    process = subprocess.Popen(
        ["nice", "-n", "10", "ninja", *arguments],
        env=environment | {"NINJA_STATUS": "[%f/%t] "},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    stop = threading.Event()
    threading.Thread(target=progress.watch, args=(stop,), daemon=True).start()
    lines: list[str] = []
    for text in process.stdout:
        lines.append(text)
        progress.line(text)
    stop.set()
    return None if process.wait() == 0 else "".join(lines)


class Progress:
    """Objects done of all, time left from past timings, and the slowest that runs."""

    def __init__(self, waiting: list[str], past: Callable[[], dict[str, float]], jobs: int) -> None:
        self.waiting, self.past, self.jobs = set(waiting), past, jobs
        self.done, self.total = 0, 0
        self.start = time.monotonic()

    def line(self, text: str) -> None:
        """Takes in one line of ninja's output."""
        if match := _OBJECT.match(text):
            self.done, self.total = int(match[1]), int(match[2])
            self.waiting.discard(short(match[3] or ""))

    def watch(self, stop: threading.Event) -> None:
        """Says every five seconds where the compile stands."""
        while not stop.wait(5):
            say(self.text())

    def text(self) -> str:
        """One line for people."""
        seconds = time.monotonic() - self.start
        rest = time_left(list(self.waiting), self.past()) / self.jobs
        left = f", about {max(1, round(rest / 60))} min left" if rest else ""
        slowest = max(running(), default=(0.0, ""))
        now = f", {slowest[1]} since {slowest[0]:.0f} s" if slowest[1] else ""
        total = self.total or "all"
        return f"{self.done} of {total} objects, {seconds:.0f} s{left}{now}"


def running() -> list[tuple[float, str]]:
    """Seconds and short name of the objects being compiled, from the compilers' processes."""
    found: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            age = time.time() - folder.stat().st_ctime
        except OSError:
            continue
        program = words[0].decode().rsplit("/", 1)[-1]
        if program in _COMPILERS and b"-c" in words and b"-o" in words[:-1]:
            name = short(words[words.index(b"-o") + 1].decode())
            found[name] = max(age, found.get(name, 0.0))
    return [(age, name) for name, age in found.items()]


def short(output: str) -> str:
    """An object's name without CMake's folders; of FlashInfer's, module/source."""
    name = re.sub(r"^CMakeFiles/[^/]*\.dir/|\.o$", "", output)
    return re.sub(r"^/(?:.*/)?([^/]+)/(?:\1_)?([^/]+)$", r"\1/\2", name)


def _source(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def failure(output: str) -> str:
    """The first failed object of ninja's output: its name, its command, its last lines."""
    match = re.search(r"^FAILED: (?:\[code=\d+\] )?(\S+).*\n(.*)\n", output, re.M)
    if not match:
        return "ninja failed:\n" + tail(output)
    rest = re.split(r"^\[\d+/\d+\]|^FAILED: ", output[match.end() :], maxsplit=1, flags=re.M)[0]
    return f"{short(match[1])} does not compile\ncommand: {match[2]}\n{tail(rest, 12)}"


def tail(text: str, lines: int = 20) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def say(text: str) -> None:
    """One line of progress; the builder shows it while it is the last."""
    print(f"fp4forge: progress {text}", flush=True)
