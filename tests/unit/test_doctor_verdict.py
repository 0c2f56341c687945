"""Healthy only with a ready line and nothing bad after it: healthy logs, spoilt in many ways."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fp4forge.core.limits import LOG_LINE_CHARACTERS
from fp4forge.doctor import examine, verdict
from fp4forge.doctor.evidence import Evidence
from tests import doctor_cases

LOGS = {
    name: (doctor_cases.DATA / name / "server.log").read_text().rstrip("\n").split("\n")
    for name in doctor_cases.NAMES
    if name.startswith("healthy") and (doctor_cases.DATA / name / "server.log").exists()
}
HOPPER = Path(__file__).parent / "data/logs/vllm-0.20.2-h200"
LATER = Path(__file__).parent / "data/logs/vllm-0.33.0-h100"
READY = ("Application startup complete", "Uvicorn running on")
ENGINE = "(EngineCore pid=7) "
BAD = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "AssertionError",
    ENGINE + "ERROR 11-24 05:49:19 [core.py:9] EngineCore encountered a fatal error.",
    ENGINE + "CRITICAL 11-24 05:49:19 [launcher.py:1] x",
    ENGINE + "Process EngineCore:",
    "CUDA error: an illegal memory access was encountered",
    "terminate called after throwing an instance of 'c10::Error'",
    "*** SIGSEGV received at time=1 on cpu 3 ***",
    "Fatal Python error: Segmentation fault",
    "Killed",
    "Aborted (core dumped)",
    "double free or corruption (!prev)",
    "malloc(): corrupted top size",
    "python3: ../x.cpp:12: foo: Assertion `x' failed.",
    "thread '<unnamed>' panicked at src/lib.rs:3:5:",
    "Exception in thread Thread-3 (_run):",
    "nvcc fatal   : Unsupported gpu architecture 'compute_121a'",
    "ninja: build stopped: subcommand failed.",
    "Traceback (most recent call last):",
    'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()',
    'Traceback (most recent call last):\n  File "x.py", line 1, in f\nzmq.error.Again: Resource',
    "FileNotFoundError: [Errno 2] No such file or directory: 'x.cubin'",
    'INFO:     127.0.0.1:1 - "POST /v1/chat/completions HTTP/1.1" 500 Internal Server Error',
    "vllm-1 exited with code 137",
    "command terminated with exit code 137",
    "systemd[1]: vllm.service: Main process exited, code=killed, status=9/KILL",
    "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2025 DUE TO TIME LIMIT ***",
)
HARMLESS = (
    'INFO:     127.0.0.1:1 - "POST /v1/chat/completions HTTP/1.1" 200 OK',
    'INFO:     127.0.0.1:1 - "POST /v1/chat/completions HTTP/1.1" 400 Bad Request',
    'Traceback (most recent call last):\n  File "x.py", line 1, in f\nBadRequestError: too long',
    'Traceback (most recent call last):\n  File "x.py", line 1, in f\nKeyboardInterrupt',
    "vllm-1 exited with code 0",
    "(APIServer pid=1) INFO:     Application shutdown complete.",
)


def judge(lines: list[str]) -> str:
    found = Evidence(log="\n".join(lines) + "\n")
    return examine.judge(found, examine.examine(found)).name


def is_ready(lines: list[str]) -> bool:
    return any(words in line for line in lines for words in READY)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["healthy-gemma4", "healthy-deepseek", "healthy-gpt-oss"])
def test_something_bad_after_the_ready_line(name: str, bad: str) -> None:
    assert judge([*LOGS[name], *bad.split("\n")]) != verdict.HEALTHY


@pytest.mark.parametrize("line", HARMLESS)
@pytest.mark.parametrize("name", ["healthy-gemma4", "healthy-deepseek", "healthy-gpt-oss"])
def test_what_a_healthy_server_logs_too(name: str, line: str) -> None:
    assert judge([*LOGS[name], *line.split("\n")]) == verdict.HEALTHY


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_is_cut_is_healthy_from_its_ready_line_on(name: str) -> None:
    lines = LOGS[name]
    for end in range(len(lines)):
        if not is_ready(lines[:end]):
            assert judge(lines[:end]) != verdict.HEALTHY, end
    assert judge(lines) == verdict.HEALTHY


@pytest.mark.parametrize("name", LOGS)
def test_a_server_that_starts_again_is_healthy_when_it_is_ready_again(name: str) -> None:
    lines = LOGS[name]
    end = next(n for n, line in enumerate(lines) if is_ready([line]))
    assert judge([*lines, *lines[:end]]) != verdict.HEALTHY
    assert judge([*lines, *lines]) == verdict.HEALTHY


@pytest.mark.parametrize("log", ["compiled.log", "eager.log"])
def test_a_real_log_with_an_orderly_end(log: str) -> None:
    found = Evidence(log=(HOPPER / log).read_text())
    judged = examine.judge(found, examine.examine(found))
    assert judged.name == verdict.HEALTHY and "shut down in order" in judged.why


def test_the_exception_is_quoted_and_not_an_earlier_error() -> None:
    found = Evidence(log=(LATER / "without-flashinfer.log").read_text())
    judged = examine.judge(found, examine.examine(found))
    assert judged.quote == "ModuleNotFoundError: No module named 'flashinfer'"


@pytest.mark.parametrize("word", ["a", "nvcc ", "ptxas ", "NVRM: Xid ", "NCCL WARN ", "oom-kill:"])
def test_no_pattern_takes_the_square_of_a_lines_length(word: str) -> None:
    line = word * (LOG_LINE_CHARACTERS // len(word))
    begun = time.process_time()
    judge([f"{chr(97 + n % 26) * (n // 26 + 1)} {line}" for n in range(100)])
    assert time.process_time() - begun < 2  # the limit for any input; it takes half a second
