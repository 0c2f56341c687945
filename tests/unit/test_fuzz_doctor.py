"""The doctor on 16,000 spoilt inputs: a verdict or a message, at once, and nothing that steers.

CI runs 2,000 inputs in each of eight tests, ``make unit`` 200 (``FUZZ_EXAMPLES``). Every input goes
through the command itself, and starts from a case (tests/unit/data/doctor) or from a log that a
GPU gave (tests/unit/data/logs).
"""

from __future__ import annotations

import io
import itertools
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fp4forge.cli import defects
from fp4forge.cli.serve import doctor
from fp4forge.core.errors import DefectError
from fp4forge.core.limits import LOG_LINE_CHARACTERS
from fp4forge.core.text import steers
from fp4forge.doctor import evidence, smi
from tests.fuzz import VALUES, as_json, fuzz, spoilt_bytes
from tests.unit.test_doctor_verdict import BAD

DATA = Path(__file__).parent / "data"
SECONDS = 2.0  # of processor time, for one input
READY = re.compile("Application startup complete|Uvicorn running on")
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
READY_LOG = b"INFO:     Application startup complete.\n"


def seeds(*names: str) -> list[bytes]:
    """What stands in the cases and logs under these names, each once."""
    found = (path for path in sorted(DATA.rglob("*")) if path.is_file())
    return list(dict.fromkeys(p.read_bytes() for p in found if any(p.match(n) for n in names)))


LOGS = seeds("server.log", "logs/*/*.log")
INSPECTED = [text for text in seeds("inspect.json") if not text.startswith(b"Name:")]
DESCRIBED = [text for text in seeds("inspect.json") if text.startswith(b"Name:")]
COMPOSED = seeds("compose.yaml")
SMI = seeds("smi.txt")
HEALTHY_LOGS = seeds("healthy-*/server.log")

# What a terminal obeys, what patterns and numbers stumble over, and what vLLM says at its worst.
HOSTILE = [
    *("\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x1bP+q\x1b\\", "\r", "\b" * 9, "\x00", "\x7f"),
    *("\u202e", "\u2066", "\u200b", "\ufeff", "\u2028", "\udc80", "²", "٣", "💥"),
    *("9" * 400, "-1", "1e999", "0x", "a" * 3000, " " * 3000, "(" * 400, "%s", "${A:-${B}}", "$("),
    *("\\", '"', "'", "{", "]", ":", "|", "--", "=", "&a *a", "!!binary x", "- ", "\t"),
    *BAD,
]


@st.composite
def mutated(draw: st.DrawFn, given_: list[bytes]) -> bytes:
    """A seed with one to five changes to its lines, of which some splice it with another seed."""
    lines = draw(st.sampled_from(given_)).decode(errors="surrogateescape").split("\n")
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(lines) - 1)) if lines else 0
        action = draw(
            st.sampled_from(["hostile", "hostile", "drop", "double", "cut", "splice", "number"])
        )
        line = lines[place] if lines else ""
        if action == "hostile":
            column = draw(st.integers(0, min(len(line), 200)))
            lines[place : place + 1] = [line[:column] + draw(HOSTILES) + line[column:]]
        elif action == "drop":
            del lines[place : place + draw(st.integers(1, 20))]
        elif action == "double":
            lines[place:place] = lines[place : place + 3] * draw(st.sampled_from([1, 2, 300]))
        elif action == "cut":
            lines = [*lines[:place], line[: draw(st.integers(0, 80))]]
        elif action == "splice":
            other = draw(st.sampled_from(given_)).decode(errors="surrogateescape").split("\n")
            start = draw(st.integers(0, len(other) - 1))
            lines[place:place] = other[start : start + draw(st.integers(1, 60))]
        else:
            number = draw(st.sampled_from(["0", "-1", "99999999999999999999", "²", "1.5", ""]))
            lines[place : place + 1] = [re.sub("[0-9]+", number, line, count=1)]
    ending = draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"]))
    return ending.join(lines).encode(errors="surrogatepass")


HOSTILES = st.sampled_from(HOSTILE)


def inputs(given_: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mutated by lines, by bytes, or saved by PowerShell."""
    by_lines = mutated(given_)
    return st.one_of(
        by_lines,
        by_lines,
        by_lines,
        st.sampled_from(given_).flatmap(spoilt_bytes),
        by_lines.map(lambda text: text.decode(errors="replace").encode("utf-16")),
    )


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in inner:
        yield (*path, key)
        if isinstance(entry, dict | list):
            yield from nodes(entry, (*path, key))


@st.composite
def spoilt_values(draw: st.DrawFn, given_: list[bytes]) -> bytes:
    """A seed's JSON or YAML with one to four values replaced or removed, wherever they stand."""
    found = yaml.safe_load(draw(st.sampled_from(given_)))
    for _ in range(draw(st.integers(1, 4))):
        *path, key = draw(st.sampled_from(list(nodes(found)) or [(0,)]))
        place = found
        for step in path:
            place = place[step]
        if not place:
            break
        if draw(st.integers(0, 4)) == 0:
            del place[key]
        elif isinstance(place[key], str) and draw(st.booleans()):
            column = draw(st.integers(0, min(len(place[key]), 60)))
            place[key] = place[key][:column] + draw(HOSTILES) + place[key][column:]
        else:
            place[key] = draw(VALUES)
    return as_json(found)


def documents(given_: list[bytes]) -> st.SearchStrategy[bytes]:
    """Inputs of which three in four are still JSON or YAML."""
    whole = spoilt_values(given_)
    return st.one_of(whole, whole, whole, inputs(given_))


Examine = Callable[..., bool]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Examine:
    """Runs the command on files of these contents, by option; whether the server is healthy."""
    root, numbers = tmp_path_factory.mktemp("doctor"), itertools.count()

    def run(variables: bytes = b"", **contents: bytes) -> bool:
        folder = root / f"{next(numbers)}\x1b[31m"
        folder.mkdir()
        arguments = []
        (folder / ".env").write_bytes(variables)
        for option, content in contents.items():
            (folder / option).write_bytes(content)
            arguments += [f"--{option.replace('_', '-')}", str(folder / option)]
        begun = time.process_time()
        done = CliRunner().invoke(doctor, arguments)
        assert time.process_time() - begun < SECONDS
        if done.exception is not None:
            assert not isinstance(defects.expected(done.exception), DefectError), contents
        assert not steers(done.output.replace("\n", "")), contents
        return done.exit_code == 0

    return run


def says_ready(log: bytes) -> bool:
    """Whether some line says that the server is ready, colours aside."""
    return bool(READY.search(COLOURS.sub("", evidence.decoded(log))))


@fuzz
@given(log=inputs(LOGS), smi=inputs(SMI))
def test_logs(healthy: Examine, log: bytes, smi: bytes) -> None:
    assert not healthy(logs=log, nvidia_smi=smi) or says_ready(log)


@fuzz
@given(content=documents(INSPECTED), log=st.sampled_from(LOGS))
def test_inspects(healthy: Examine, content: bytes, log: bytes) -> None:
    assert not healthy(inspect=content)
    assert not healthy(inspect=content, logs=log) or says_ready(log)


@fuzz
@given(content=documents(COMPOSED), variables=inputs([b"MODEL=/models/x\nA=b\n"]))
def test_compose_files(healthy: Examine, content: bytes, variables: bytes) -> None:
    assert not healthy(variables, compose=content)


@fuzz
@given(content=inputs(DESCRIBED))
def test_described_pods(healthy: Examine, content: bytes) -> None:
    assert not healthy(inspect=content)


@fuzz
@given(content=inputs(SMI))
def test_forms_of_nvidia_smi(healthy: Examine, content: bytes) -> None:
    text = evidence.as_log(content)
    begun = time.process_time()
    smi.gpus(text), smi.failure(text)
    assert time.process_time() - begun < SECONDS
    healthy(nvidia_smi=content, logs=READY_LOG)


@fuzz
@given(
    log=inputs(LOGS),
    described=documents(INSPECTED) | inputs(DESCRIBED),
    composed=documents(COMPOSED),
    smi=inputs(SMI),
    spoil=st.booleans(),
    data=st.data(),
)
def test_bundles(
    healthy: Examine,
    log: bytes,
    described: bytes,
    composed: bytes,
    smi: bytes,
    spoil: bool,
    data: st.DataObject,
) -> None:
    parts = {"log.txt": log, "inspect.json": described, "compose.yaml": composed}
    del parts[data.draw(st.sampled_from(["inspect.json", "compose.yaml"]))]
    content = bundle({**parts, "nvidia-smi.txt": smi})
    if spoil:
        healthy(bundle=data.draw(spoilt_bytes(content)))
    else:
        assert not healthy(bundle=content) or says_ready(log)


def bundle(parts: dict[str, bytes]) -> bytes:
    """An archive as ``--bundle`` writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, content in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


# What the verdict may not get wrong, however a healthy server's log is changed.


@fuzz
@given(data=st.data(), log=st.sampled_from(HEALTHY_LOGS))
def test_verdicts_on_healthy_logs_that_are_spoilt(
    healthy: Examine, data: st.DataObject, log: bytes
) -> None:
    """Without its ready line never healthy; with something bad at its end neither."""
    lines = log.decode().rstrip("\n").split("\n")
    if data.draw(st.booleans()):
        kept = mutated([log])
        lines = data.draw(kept).decode(errors="replace").split("\n")
    unready = [line for line in lines if not READY.search(COLOURS.sub("", line))]
    assert not healthy(logs="\n".join(unready).encode(errors="replace"))
    bad = data.draw(st.sampled_from(BAD))
    assert not healthy(logs="\n".join([*lines, bad]).encode(errors="replace"))


@fuzz
@given(data=st.data(), log=st.sampled_from(HEALTHY_LOGS))
def test_verdicts_on_parts_of_healthy_logs(
    healthy: Examine, data: st.DataObject, log: bytes
) -> None:
    """Whatever lines are missing before the ready line: healthy."""
    lines = log.decode().rstrip("\n").split("\n")
    kept = data.draw(st.lists(st.booleans(), min_size=len(lines), max_size=len(lines)))
    part = [line for line, keep in zip(lines, kept, strict=True) if keep or READY.search(line)]
    assert healthy(logs="\n".join(part).encode())


def test_a_log_of_long_lines(healthy: Examine) -> None:
    """3 MB without one space: `\\S+ invoked` alone took 3 s for it."""
    lines = (chr(97 + n % 26) * (n // 26 + 1) + " " + "a" * LOG_LINE_CHARACTERS for n in range(800))
    assert not healthy(logs="\n".join(lines).encode())
