"""What a registry answers is judged by status, held to its digest, and bounded in time and size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import ForgeError, RegistryError, TagError
from fp4forge.oci import api, copying, referrers, registry, registry_tags
from fp4forge.oci.layout import OciLayout, image_index

Answer = Callable[[BaseHTTPRequestHandler], None]
INDEX: dict[str, Any] = image_index([])


def say(status: int, content: bytes, headers: dict[str, str] | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte every tenth of a second, without end."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def flood(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(64):
        handler.wfile.write(b" " * (1 << 20))


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(5)


class Evil:
    """A server on loopback whose answer is chosen by each test."""

    def __init__(self) -> None:
        self.answer: Answer = say(200, b"{}")
        self.asked: list[tuple[str, str]] = []
        evil = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile.read(length)
                evil.asked.append((self.command, self.path))
                with contextlib.suppress(OSError):  # the client gives up, as it should
                    evil.answer(self)

            do_GET = do_PUT = do_HEAD = do_POST = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.repository = f"127.0.0.1:{self.server.server_address[1]}/team/image"


@pytest.fixture
def evil(monkeypatch: pytest.MonkeyPatch) -> Iterator[Evil]:
    monkeypatch.setattr(api, "REGISTRY_SECONDS", 2)
    monkeypatch.setattr(api, "REGISTRY_CONNECT_SECONDS", 1)
    monkeypatch.setattr(api, "REGISTRY_PAUSES", (0.01, 0.01))
    server = Evil()
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_a_free_tag_is_status_404_and_nothing_else(evil: Evil) -> None:
    evil.answer = say(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
    assert registry.resolve(evil.repository, "tag") is None


@pytest.mark.parametrize("status", [400, 401, 403, 405, 429, 500, 502, 503])
def test_an_error_that_says_not_found_is_no_free_tag(evil: Evil, status: int) -> None:
    evil.answer = say(status, b"manifest unknown: not found")
    with pytest.raises(RegistryError, match=str(status)):
        registry.resolve(evil.repository, "tag")


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("HEAD", 2), ("PUT", 1), ("POST", 1)])
def test_a_read_that_meets_a_passing_error_of_the_server_is_repeated(
    evil: Evil, method: str, times: int
) -> None:
    answers = [say(500, b"unknown error"), say(200, b"")]
    evil.answer = lambda handler: answers.pop(0)(handler)
    status = api.ask(method, evil.repository, "manifests/tag", {}).status
    assert (status, len(evil.asked)) == (200 if times == 2 else 500, times)


@pytest.mark.parametrize("answer", [drip, flood, hang], ids=["drip", "flood", "hang"])
def test_every_wait_has_an_end(evil: Evil, answer: Answer) -> None:
    evil.answer = answer
    start = time.monotonic()
    with pytest.raises(RegistryError):
        registry.resolve(evil.repository, "tag")
    assert time.monotonic() - start < 30  # a busy machine; without limits it is for ever


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'"text"', b"{"],
    ids=["empty", "list", "null", "bytes", "deep", "text", "cut"],
)
def test_what_is_not_a_manifest(evil: Evil, content: bytes) -> None:
    evil.answer = say(200, content)
    with pytest.raises(RegistryError, match="manifest sha256"):
        registry.resolve(evil.repository, "tag")


def test_other_content_than_the_digest_says(evil: Evil) -> None:
    evil.answer = say(200, json.dumps(INDEX).encode())
    with pytest.raises(RegistryError, match="does not match its digest"):
        registry.manifest(evil.repository, "sha256:" + "0" * 64)


def test_no_control_character_of_an_answer_is_shown(evil: Evil) -> None:
    evil.answer = say(500, b"\x1b[31mred\x1b]0;title\x07")
    with pytest.raises(RegistryError) as caught:
        registry.resolve(evil.repository, "tag")
    assert caught.value.message.isprintable()


def test_a_tag_that_names_something_else_afterwards_is_an_error(evil: Evil) -> None:
    content = json.dumps(INDEX).encode()
    digest = "sha256:" + hashlib.sha256(content).hexdigest()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "PUT":
            say(201, b"")(handler)
        elif handler.path.endswith(digest):
            say(200, content)(handler)
        else:
            say(200, b'{"another": "image"}')(handler)

    evil.answer = answer
    with pytest.raises(RegistryError, match="latest names sha256"):
        registry_tags.tag(evil.repository, digest, "latest")


def test_a_blob_that_was_cut_does_not_pass(evil: Evil, tmp_path: Path) -> None:
    layout = OciLayout(tmp_path)
    blob = b"layer" * 1000
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    layout.path(digest).parent.mkdir(parents=True)
    layout.path(digest).write_bytes(blob)
    image = {"config": {"digest": digest}, "layers": []}
    contents: dict[str, bytes] = {}
    for data in (image, {**INDEX, "manifests": [{"digest": ""}]}):
        if "manifests" in data:
            data = {**data, "manifests": [{"digest": next(iter(contents))}]}
        text = json.dumps(data).encode()
        contents["sha256:" + hashlib.sha256(text).hexdigest()] = text
    index = list(contents)[-1]

    def keep(stored: bytes) -> Answer:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            name = handler.path.rsplit("/", 1)[1]
            content = stored if "/blobs/" in handler.path else contents[name]
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(content)

        return answer

    evil.answer = keep(blob)
    copying.read_back(layout, evil.repository, index)
    for damaged in (blob[:-1], blob[:-1] + b"?", b""):
        evil.answer = keep(damaged)
        with pytest.raises(RegistryError, match="does not keep blob"):
            copying.read_back(layout, evil.repository, index)


def labelled(platform: str, strategy: str, base: str) -> dict[str, str]:
    return {
        "platform": platform,
        "io.fp4forge.strategy": strategy,
        "org.opencontainers.image.base.name": base,
    }


OLD = labelled("linux/amd64", "wheel", "fp4forge.local/bootstrap:trixie-amd64-00000000")


@pytest.mark.parametrize(
    ("new", "refused"),
    [
        (labelled("linux/arm64", "wheel", "fp4forge.local/bootstrap:trixie-arm64-00000000"), True),
        (labelled("linux/amd64", "source", "fp4forge.local/bootstrap:trixie-amd64-11111111"), True),
        (labelled("linux/amd64", "wheel", "ubuntu:24.04@sha256:1"), True),
        (labelled("linux/amd64", "wheel", "fp4forge.local/bootstrap:trixie-amd64-11111111"), False),
    ],
)
def test_a_push_takes_no_tag_away_from_another_kind_of_image(
    evil: Evil, monkeypatch: pytest.MonkeyPatch, new: dict[str, str], refused: bool
) -> None:
    evil.answer = say(200, json.dumps(INDEX).encode())
    monkeypatch.setattr(registry, "image_labels", lambda *_: [OLD])
    try:
        registry_tags.check_takes_nothing_away(evil.repository, "latest", [new])
        assert not refused
    except TagError as error:
        assert refused and "latest names an image" in error.message


def test_nobody_there() -> None:
    with pytest.raises(ForgeError, match="no registry answers"):
        registry.resolve("127.0.0.1:9/team/image", "tag")


class Shelf:
    """What a registry keeps: manifests and blobs by digest or tag; anything else is not there."""

    def __init__(self, evil: Evil) -> None:
        self.kept: dict[str, bytes] = {}
        evil.answer = self.answer

    def put(self, content: bytes | dict[str, Any], *tags: str) -> str:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.kept |= dict.fromkeys((digest, *tags), data)
        return digest

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        found = self.kept.get(handler.path.rsplit("/", 1)[1])
        say(404 if found is None else 200, found or b"")(handler)


def image_of(shelf: Shelf, architecture: str, *tags: str) -> str:
    config = {"os": "linux", "architecture": architecture, "config": {"Labels": {"a": "b"}}}
    return shelf.put({"config": {"digest": shelf.put(config)}, "layers": []}, *tags)


def test_no_tag_is_taken_away_from_a_single_image(evil: Evil) -> None:
    shelf = Shelf(evil)
    image_of(shelf, "arm64", "latest")
    new = [{"a": "b", "platform": "linux/amd64"}]
    with pytest.raises(TagError, match="names an image of platform linux/arm64"):
        registry_tags.check_takes_nothing_away(evil.repository, "latest", new)


def test_labels_are_those_that_the_digest_says(evil: Evil) -> None:
    shelf = Shelf(evil)
    image = image_of(shelf, "arm64")
    (config,) = (d for d in shelf.kept if d != image)
    shelf.kept[config] = b'{"os": "linux", "architecture": "amd64"}'
    with pytest.raises(RegistryError, match="a configuration is not what its digest says"):
        registry.image_labels(evil.repository, image)


@pytest.mark.parametrize(
    "more", [{"config": {"digest": "sha256:" + "0" * 64}}, {"layers": []}], ids=["config", "layers"]
)
def test_an_index_that_is_an_image_too_is_refused(evil: Evil, more: dict[str, Any]) -> None:
    Shelf(evil).put(INDEX | more, "tag")
    with pytest.raises(RegistryError, match="an index and the manifest of an image at once"):
        registry.resolve(evil.repository, "tag")


@pytest.mark.parametrize(
    "change",
    [
        {"platform": {"os": "linux", "architecture": "arm64", "variant": "v9"}},
        {"platform": {"os": "linux", "architecture": "amd64"}},
        {"mediaType": "application/vnd.docker.distribution.manifest.v2+json"},
        {"size": 8},
    ],
    ids=["variant", "architecture", "type", "size"],
)
@pytest.mark.parametrize("twice", [False, True])
def test_an_index_that_says_something_else_of_the_same_image_is_another(
    evil: Evil, change: dict[str, Any], twice: bool
) -> None:
    shelf = Shelf(evil)
    entry = {
        "digest": image_of(shelf, "arm64"),
        "size": 7,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "platform": {"os": "linux", "architecture": "arm64"},
    }
    own = shelf.put({"manifests": [entry]})
    shelf.put({"manifests": [*([entry] if twice else []), entry | change]}, "plan")
    index = registry.existing(evil.repository, own).data
    name, known = registry_tags.immutable(evil.repository, "plan", index, own)
    assert name != "plan" and known is None
    shelf.put({"manifests": [entry], "annotations": {"other": "time"}}, "plan")
    assert registry_tags.immutable(evil.repository, "plan", index, own)[0] == "plan"


@pytest.mark.parametrize("digest", ["sha512:" + "0" * 128, "sha256:" + "A" * 64, "md5:0"])
def test_what_cannot_be_held_to_its_digest_is_refused(evil: Evil, digest: str) -> None:
    Shelf(evil).kept[digest] = json.dumps(INDEX).encode()
    with pytest.raises(RegistryError, match="does not match its digest"):
        registry.manifest(evil.repository, digest)


@pytest.mark.parametrize("place", ["http://[", "http://h:99999999/v2/x/blobs/uploads/y", "//[::1"])
def test_an_upload_that_leads_nowhere(evil: Evil, place: str) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        found = handler.command == "POST"
        say(202 if found else 404, b"", {"Location": place} if found else None)(handler)

    evil.answer = answer
    with pytest.raises(RegistryError, match="keep a record"):
        referrers.store(evil.repository, b"{}")
