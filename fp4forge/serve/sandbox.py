"""Judges the prime function in a model's answer without letting its code near this machine.

Two walls stand around the code. Monty, an interpreter written in Rust, has no frames, files,
processes or network to reach. In case Monty itself has a bug, its worker runs as an unprivileged
process that can open no file or socket, start no process and write nothing (docs/security.md).
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from typing import Any

PRIMES = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47}
# For the definition and again for the calls; a prime function needs milliseconds.
SECONDS = 3.0
# What Monty and the child need beyond the code's own time: to start, to stop the code and to end.
OVERHEAD_SECONDS = 4.0
MEMORY = 64 * 2**20  # bytes that the code may hold
NOBODY = 65534
PR_SET_NO_NEW_PRIVS = 38

# This file is the child's program too: by path, as -I finds no package beside the working folder.
_CHILD = (sys.executable, "-I", __file__)
_DEFINITION = re.compile(
    r"^(?:async[ \t]+)?def[ \t]+(\w+)"
    r"|^(\w+)[ \t]*(?::[^=\n]*)?=(?=[ \t\\(]*lambda\b)"
    r"|^(is_prime)[ \t]*=",
    re.MULTILINE,
)
_BARE_LAMBDA = re.compile(r"^(?=\(*lambda\b.*:)", re.MULTILINE)
_FENCE = re.compile(r"```[^\n`]{0,40}\n(.*?)(?:```|\Z)", re.DOTALL)
# A line of code in an answer without a fence: a statement, a comment, or what goes on with one.
_CODE = re.compile(
    r"import |from [\w.]+ import |@\w|(?:async )?def |\(*lambda\b|\w+[ \t]*=[^=]"
    r"|\w+[ \t]*:[^=]*=[ \t\\(]*lambda\b|[\s#)\]}]|$"
)


class NotJudged(Exception):
    """The answer was found neither right nor wrong; the message says why."""


def wrong_prime(text: str) -> str:
    """What is wrong with the function in a model's answer; empty if it finds the primes.

    The verdict comes within 2 * SECONDS + OVERHEAD_SECONDS.

    Raises:
        NotJudged: the sandbox cannot run here, or may lack what the answer uses.
    """
    code, name = _code_and_name(text)
    if not code:
        return "no Python function in the answer"
    outcome, detail = _judge_apart({"code": code, "name": name, "seconds": SECONDS})
    if outcome == "right":
        return ""
    if outcome == "wrong":
        return str(detail)
    raise NotJudged(f"{outcome}: {detail}")


def _code_and_name(text: str) -> tuple[str, str]:
    """The code in an answer and its function's name: from a fence, bare lines or a `span`."""
    for candidate in (
        *_FENCE.findall(text),
        *_unfenced_code(text),
        *re.findall(r"`([^`\n]+)`", text),
    ):
        code = textwrap.dedent(candidate).strip()
        if not _DEFINITION.search(code):
            code = _BARE_LAMBDA.sub("is_prime = ", code, count=1)
        names = [name for groups in _DEFINITION.findall(code) for name in groups if name]
        if names:
            return code, "is_prime" if "is_prime" in names else names[0]
    return "", ""


def _unfenced_code(text: str) -> list[str]:
    """The runs of lines that look like Python in an answer without a fence."""
    runs = itertools.groupby(text.split("\n"), lambda line: bool(_CODE.match(line)))
    return ["\n".join(lines) for is_code, lines in runs if is_code]


def _judge_apart(request: dict[str, Any]) -> tuple[str, Any]:
    """Have a child judge the code, and end whatever it started: the outcome and its detail."""
    seconds = 2 * SECONDS + OVERHEAD_SECONDS
    try:
        # Files, not pipes: no process that keeps a handle open can make this one wait.
        with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answered:
            asked.write(json.dumps(request).encode())
            asked.seek(0)
            child = subprocess.Popen(
                _CHILD,
                stdin=asked,
                stdout=answered,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
            try:
                child.wait(seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            answered.seek(0)
            outcome, detail = json.loads(answered.read(4096))
            return outcome, detail
    except OSError as error:
        return "not run", f"the sandbox does not start: {error}"
    except subprocess.TimeoutExpired:
        return "not run", f"the sandbox gave no verdict within {seconds:g} s"
    except (TypeError, ValueError):
        return "not run", f"the sandbox gave no verdict (exit code {child.returncode})"


def _judge_in_monty(code: str, name: str, seconds: float) -> tuple[str, Any]:
    """In the child: define the function and call it in Monty; the outcome and its detail."""
    try:
        import pydantic_monty as monty

        program = shutil.which("monty", path=sysconfig.get_path("scripts"))
        if not program:
            return "not run", "the sandbox does not start: pydantic-monty's program is missing"
        # Open before the privileges go: nobody may lack the way to it, for example under /root.
        handle = os.open(program, os.O_RDONLY)
        _drop_privileges(seconds)
        with (
            monty.Monty(binary_path=f"/proc/self/fd/{handle}", max_processes=1) as pool,
            pool.checkout(
                limits={
                    "max_feed_duration_secs": seconds,
                    "max_memory": MEMORY,
                    "max_total_sleep_secs": 0,
                }
            ) as session,
        ):
            _wall_in(session.worker_pid, seconds)
            # Models assume that these are imported; and this shows that code runs at all.
            session.feed_run("import math\nfrom math import isqrt, sqrt")
            return _sandbox_verdict(session, code, name, seconds)
    except Exception as error:
        return "not run", f"the sandbox does not start: {_traceback_line(error)}"


def _sandbox_verdict(session: Any, code: str, name: str, seconds: float) -> tuple[str, Any]:
    import pydantic_monty as monty

    numbers = ", ".join(map(str, range(-2, 50)))
    # No name but the function's own: the answer may have bound range or print to something else.
    calls = f"[n for n in [{numbers}] if {name}(n)]"
    # JSON carries lone surrogates, UTF-8 does not. None: a value of the code's is not looked at.
    definition = code.encode(errors="replace").decode() + "\nNone"
    try:
        session.feed_run(definition, print_callback=lambda *_: None)
        found = session.feed_run(calls, print_callback=lambda *_: None)
    except monty.MontyCrashedError as error:
        if error.timed_out:
            return "wrong", f"it did not finish within {seconds:g} s"
        return "not judged", f"the sandbox broke: {_traceback_line(error)}"
    except monty.MontyError as error:
        if _monty_lacks(error.exception(), code):
            return "not judged", f"Monty may lack what it uses: {_traceback_line(error)}"
        if isinstance(error, monty.MontySyntaxError):
            return "wrong", f"not Python: {_traceback_line(error)}"
        if "time limit exceeded" in str(error):
            return "wrong", f"it did not finish within {seconds:g} s"
        return "wrong", f"it fails: {_traceback_line(error)}"
    wrong = sorted(PRIMES.symmetric_difference(found))
    return ("wrong", f"wrong for {', '.join(map(str, wrong))}") if wrong else ("right", "")


def _traceback_line(error: Exception) -> str:
    # The code may choose the message: no line breaks, and nothing that steers a terminal.
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _monty_lacks(error: BaseException, code: str) -> bool:
    """Whether the code may work in CPython, although Monty raised this."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError) or "Internal error in monty" in text:
        return True
    if isinstance(error, NotImplementedError | SyntaxError | RuntimeError):
        return "support" in text or "too deeply nested" in text
    # Monty's generators are lists: next() refuses them, and they never end over an endless source.
    if isinstance(error, TypeError):
        return "'list' object is not an iterator" in text
    if isinstance(error, TimeoutError | MemoryError):
        return bool(re.search(r"\b(?:count|cycle|repeat|iter)\(", code))
    if isinstance(error, NameError) and (found := re.search(r"name '(\w+)' is not", text)):
        return found[1] in dir(builtins)
    if found := re.search(r"'(\w+)'(?: object)? has no attribute '(\w+)'", text):
        owner, name = found.groups()
    elif found := re.search(r"cannot import name '(\w+)' from '(\w+)'", text):
        name, owner = found.groups()
    else:
        return False
    return name in dir(getattr(builtins, owner, sys.modules.get(owner)))


def _drop_privileges(seconds: float) -> None:
    """Limit this child, and with it the worker; root becomes nobody if the kernel permits it.

    Raises:
        OSError: the kernel refuses to rule setuid programs out; then no code runs.
    """
    _limit_process(
        os.getpid(),
        {
            resource.RLIMIT_AS: 2**30,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_FSIZE: 4096,
            resource.RLIMIT_NOFILE: 64,
            resource.RLIMIT_CPU: int(2 * seconds + OVERHEAD_SECONDS),
        },
    )
    if os.getuid() == 0:
        # In a user namespace with one user there is no nobody, and root is no more than that user.
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    if ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError("prctl(PR_SET_NO_NEW_PRIVS) fails")


def _wall_in(worker: int | None, seconds: float) -> None:
    """Take from the worker what it no longer needs: new files, sockets, processes and memory.

    The limit on CPU seconds stops a worker that ignores Monty's own clock and its grace of 1 s.

    Raises:
        OSError: the worker has no process id, or the kernel refuses; then no code runs.
    """
    if worker is None:
        raise OSError("Monty's worker has no process id")
    _limit_process(
        worker,
        {
            resource.RLIMIT_NOFILE: 0,
            resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_AS: 512 * 2**20,
            resource.RLIMIT_CPU: int(2 * seconds) + 2,
        },
    )


def _limit_process(process: int, limits: dict[int, int]) -> None:
    for limit, value in limits.items():
        _, hard = resource.prlimit(process, limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.prlimit(process, limit, (value, value))


if __name__ == "__main__":
    print(json.dumps(_judge_in_monty(**json.load(sys.stdin))))
