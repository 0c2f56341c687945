"""Every wait has an end, and nothing from outside is larger than its limit."""

from __future__ import annotations

import gzip
import itertools
import os
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fp4forge.advisories import database
from fp4forge.checks import ledgers
from fp4forge.core import http, limits, paths, reading
from fp4forge.core.errors import ArtefactError, BinaryError, CheckpointError, UsageError
from fp4forge.doctor import described, evidence
from fp4forge.doctor import examine as doctor
from fp4forge.inputs.release import Artefact
from fp4forge.maintain import index, rechecks, sources
from fp4forge.oci import process
from fp4forge.oci.layout import OciLayout
from fp4forge.publish import bundle
from fp4forge.serve import client

Serve = Callable[[socket.socket], None]
SECONDS = 1.0


@pytest.fixture
def quick() -> Iterator[None]:
    """Fails a test that waits for much longer than the limits that it sets."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 30  # a busy machine; without the limits it is for ever


def serve(answer: Serve) -> str:
    """A server whose connections are handled by a function; its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        try:
            with connection:
                answer(connection)
        except OSError:
            pass  # the client gave up, as it should

    threading.Thread(target=run, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


OK = b"HTTP/1.1 200 OK\r\n"


def silent(connection: socket.socket) -> None:
    time.sleep(20)


def slow(what: bytes) -> Serve:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(what)
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.2)

    return answer


def redirected(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nConnection: close\r\n\r\n")


def bomb(connection: socket.socket) -> None:
    connection.recv(65536)
    packed = gzip.compress(bytes(64 << 20))
    connection.sendall(OK + b"Content-Encoding: gzip\r\n\r\n" + packed)


def flood(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(OK + b"\r\n")
    while True:
        connection.sendall(b" " * 65536)


@pytest.mark.parametrize(
    "answer",
    [silent, slow(b""), slow(OK), slow(OK + b"A: "), slow(OK + b"\r\n"), redirected, flood],
    ids=["silent", "status", "headers", "header", "content", "redirects", "flood"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_answers_end(quick: None, answer: Serve, method: str) -> None:
    bounds = http.HttpLimits(SECONDS, 1 << 20, redirects=3)
    try:
        found = http.ask(method, serve(answer), bounds, body=b"x" * 4096, proxies=False)
    except http.NoHttpAnswer as error:
        assert str(error).startswith(("no answer within 1 s", "more than 3 redirects"))
    else:
        assert found.cut or found.status == 302
        assert len(found.content) <= 1 << 20


def test_a_body_that_nobody_reads_ends(quick: None) -> None:
    bounds = http.HttpLimits(SECONDS, 100)
    with pytest.raises(http.NoHttpAnswer, match="no answer within 1 s"):
        http.ask("PUT", serve(silent), bounds, body=bytes(64 << 20), proxies=False)


def test_compressed_content_is_not_unpacked(quick: None) -> None:
    found = http.ask("GET", serve(bomb), http.HttpLimits(20, 1 << 20), proxies=False)
    assert not found.cut
    assert len(found.content) < 1 << 20


def test_a_login_does_not_follow_a_redirect_to_another_server() -> None:
    heard: list[bytes] = []

    def other(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(OK + b"Content-Length: 2\r\n\r\n{}")

    target = serve(other)

    def first(connection: socket.socket) -> None:
        connection.recv(65536)
        place = f"Location: {target}/blob\r\nContent-Length: 0\r\n\r\n".encode()
        connection.sendall(b"HTTP/1.1 307 Moved\r\n" + place)

    login = {"Authorization": "Bearer secret"}
    found = http.ask(
        "GET", serve(first), http.HttpLimits(3, 100, redirects=1), headers=login, proxies=False
    )
    assert found.content == b"{}"
    assert b"secret" not in heard[0]


def test_an_endless_server_is_a_sentence(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.unreachable(serve(slow(OK + b"\r\n")), 1) == "no end within 1 s"
    assert client.chat(serve(silent), [], model="m", timeout=1).problem == "no answer within 1 s"
    monkeypatch.setattr(client, "SERVER_BYTES", 1 << 16)
    assert client.chat(serve(flood), [], model="m", timeout=2).problem == "more than 65,536 bytes"


def test_a_stream_ends_with_its_last_event_though_the_connection_stays_open(quick: None) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        event = b'data: {"choices": [{"delta": {"content": "Paris"}, "finish_reason": "stop"}]}\n\n'
        connection.sendall(OK + b"\r\n" + event + b"data: [DONE]\n\n")
        time.sleep(20)

    found = client.chat(serve(answer), [], model="m", stream=True, timeout=15)
    assert (found.text, found.problem) == ("Paris", "")


def test_programs_end(quick: None) -> None:
    with pytest.raises(UsageError, match="sleep 20 did not finish within 1 s"):
        process.run(["sleep", "20"], 1, UsageError)


# Files


def test_only_plain_files_are_read(quick: None, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, what in (
        ("pipe", "is a pipe"),
        ("loop", "Too many levels"),
        ("zero", "is a device"),
        (".", "is a folder"),
        ("none", "No such file"),
        ("/proc/self/mem", "Input/output error"),
        ("a" * 5000, "name too long"),
        ("a\0b", "cannot be the name of a file"),
        ("\ud800", "cannot be the name of a file"),
    ):
        with pytest.raises(UsageError, match=what):
            reading.content(tmp_path / name, UsageError)


def test_a_message_names_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 11)
    with pytest.raises(UsageError, match="is too large") as caught:
        reading.content(tmp_path / "file", UsageError, 10)
    assert caught.value.rule == "at most 10 bytes are read"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"x": ' + b"[" * 100_000, "nests too deeply"),
        (b'{"a": 1', "is not JSON"),
        (b'{"model_type": "\xff"}', "is not UTF-8"),
        (b'{"num_hidden_layers": "2"}', "num_hidden_layers: expected int | null, got str"),
        (b'{"text_config": {"head_dim": -1}}', "text_config.head_dim: expected int >= 0"),
        (b'{"hidden_size": 1e999}', "hidden_size"),
        (b"[]", "expected object, got array"),
    ],
)
def test_json_is_bounded_and_the_field_is_named(text: bytes, says: str, tmp_path: Path) -> None:
    from fp4forge.checkpoint import config

    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        config.read(tmp_path)
    assert says in caught.value.message
    assert "config.json" in caught.value.message


def aliases(merge: bool) -> str:
    lines = ["a: &a {x: 1}" if merge else "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        inner = ", ".join([f"*{old}"] * 9)
        lines.append(f"{new}: &{new} " + (f"{{<<: [{inner}]}}" if merge else f"[{inner}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (aliases(False), "is too large"),
        (aliases(True), "is too large"),
        ("a: &a [*a]", "contains itself"),
        ("[" * 100_000, "nests too deeply"),
        ("{a: " * 100_000, "nests too deeply"),
        ("a: 2001-99-99", "has no meaning"),
        ("a: [", "is not YAML"),
    ],
)
def test_yaml_is_bounded(quick: None, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        described.from_compose(tmp_path / "compose.yaml")
    assert says in caught.value.message


def test_anchors_of_an_ordinary_file_stay_usable(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text("x: &x {image: vllm}\nservices: {a: {<<: *x, ipc: host}, b: *x}")
    assert described.from_compose(file).ipc == "host"


@pytest.mark.parametrize("log", ["\n" * 200_000, "KeyError: " * 400_000, "x" * (8 << 20)])
def test_logs_of_any_form_are_read_quickly(quick: None, log: str) -> None:
    doctor.examine(evidence.Evidence(log=evidence.as_log(log.encode())))


def test_notes_of_one_long_word_are_read_quickly(quick: None) -> None:
    before = rechecks.due("see o/r#1 and #2", "o/r")
    assert len(rechecks.due("k" * 3_000_000 + " see o/r#1 and #2", "o/r")) == len(before)


def test_a_header_that_claims_a_million_experts(quick: None, tmp_path: Path) -> None:
    from fp4forge.checkpoint import inspect

    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 10000, "num_experts": 10000000, "quantization_config":'
        ' {"quant_algo": "NVFP4"}}'
    )
    header = b'{"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    content = struct.pack("<Q", len(header)) + header + b"x"
    (tmp_path / "model.safetensors").write_bytes(content)
    assert not inspect.inspect(tmp_path).servable


def test_a_zip_bomb_is_not_unpacked(quick: None, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for number in range(10):
            archive.writestr(f"{number}.so", bytes(16 << 20))
    with pytest.raises(BinaryError, match="would unpack 10 files, 167,772,160 bytes"):
        ledgers.read(str(tmp_path / "x.whl"), lambda _: None)


def test_an_encrypted_wheel_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("a.so", b"\x7fELF")
    content = bytearray((tmp_path / "x.whl").read_bytes())
    content[6] |= 1  # the flag, in the local header and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.whl").write_bytes(content)
    with pytest.raises(BinaryError, match="encrypted"):
        ledgers.read(str(tmp_path / "x.whl"), lambda _: None)


def test_indexes_that_name_each_other(tmp_path: Path) -> None:
    names = [f"sha256:{digit * 64}" for digit in "ab"]
    layout = OciLayout(tmp_path)
    for name, other in zip(names, reversed(names), strict=True):
        layout.path(name).parent.mkdir(parents=True, exist_ok=True)
        layout.path(name).write_text(f'{{"manifests": [{{"digest": "{other}"}}]}}')
    bundle._check_blobs(layout, names[0], "x")  # each is there, and is looked at once
    chain = [f"sha256:{number:064x}" for number in range(limits.INDEX_DEPTH + 2)]
    for name, other in itertools.pairwise(chain):
        layout.path(name).write_text(f'{{"manifests": [{{"digest": "{other}"}}]}}')
    layout.path(chain[-1]).write_text("{}")
    with pytest.raises(ArtefactError, match="name each other"):
        bundle._check_blobs(layout, chain[0], "x")


# Addresses


@pytest.mark.parametrize("target", ["http://[", "http://h:x/", "http://h:999999/", "//[::1"])
def test_an_address_that_is_none(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(http.NoHttpAnswer, match="is not an address"):
        http.address(target, "https://index/simple/")
    if "//h" in target or target == "http://[":
        with pytest.raises(UsageError, match="is not an address"):
            database.of(target)
        monkeypatch.setenv("UV_DEFAULT_INDEX", target)
        with pytest.raises(ArtefactError, match="is not an address"):
            index.listing("vllm")


def test_a_file_of_the_index_that_never_arrives(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "STATE", tmp_path)
    monkeypatch.setattr(sources, "FETCH_SECONDS", SECONDS)
    wanted = Artefact("vllm-1.tar.gz", "0" * 64)
    for place, says in ((serve(slow(OK + b"\r\n")), "does not arrive"), ("http://[", "address")):
        listed = [index.IndexFile(wanted.file, place)]
        monkeypatch.setattr(index, "listing", lambda _, listed=listed: listed)
        with pytest.raises(ArtefactError, match=says):
            sources.fetch(wanted)
    assert [path.name for path in (tmp_path / "sources").iterdir()] == []
