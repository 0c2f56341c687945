"""No answer of a registry, server or builder ends in a traceback, however it is spoilt."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp4forge.core import http
from fp4forge.core.text import steers
from fp4forge.oci import api, buildkit, registry, registry_tags
from fp4forge.oci.layout import INDEX
from fp4forge.serve import client, quality
from tests.fuzz import documents, fuzz, spoilt, spoilt_bytes, survives

DIGEST = "sha256:" + "a" * 64
OCI = {
    "schemaVersion": 2,
    "mediaType": INDEX,
    "manifests": [
        {
            "digest": DIGEST,
            "size": 3,
            "platform": {"os": "linux", "architecture": "x"},
            "annotations": {"vnd.docker.reference.digest": DIGEST},
        }
    ],
    "config": {"digest": DIGEST, "size": 1, "Labels": {"a": "b"}, "mediaType": "x"},
    "layers": [{"digest": DIGEST, "size": 1}],
    "os": "linux",
    "architecture": "amd64",
}


def ask_registry() -> None:
    repository = "127.0.0.1:1/team/image"
    found = registry.resolve(repository, "tag")
    survives(lambda: registry.layer_sizes(repository, "tag"))
    survives(lambda: registry.image_labels(repository, "tag"))
    survives(lambda: registry_tags.combine(repository, ["tag"], {DIGEST}))
    if found:
        survives(lambda: registry_tags.immutable(repository, "tag", found[1], DIGEST))


@fuzz
@given(content=documents(OCI), status=st.sampled_from([200, 200, 200, 401, 404, 507]))
def test_registries(content: bytes, status: int) -> None:
    def answer(*_: object, **__: object) -> http.HttpAnswer:
        challenge = f'Bearer realm="https://{content[:9]!r}",service="x"'
        return http.HttpAnswer(status, {"www-authenticate": challenge}, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "ask", answer)
        patch.setattr(api, "_docker_login", lambda _: ("me", "secret"))
        survives(ask_registry)


MESSAGE = {
    "content": "Paris",
    "reasoning": "x",
    "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}],
}
CHAT = {
    "choices": [{"message": MESSAGE, "delta": MESSAGE, "finish_reason": "stop"}],
    "data": [{"id": "m"}],
}


@fuzz
@given(content=documents(CHAT), stream=st.booleans(), cut=st.sampled_from(["", "no end"]))
def test_model_servers(content: bytes, stream: bool, cut: str) -> None:
    events = b"data: " + content + b"\n\ndata: [DONE]\n" if stream else content

    def answer(method: str, url: str, *_: object, **__: object) -> http.HttpAnswer:
        return http.HttpAnswer(200, {}, events if method == "POST" else content, cut)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "ask", answer)
        prompt = next(p for p in quality.PROMPTS if p.name == "tool")
        survives(lambda: quality.ask("http://x", prompt, "m", stream, 1))
        survives(lambda: client.paris("http://x"))
        survives(lambda: client.chat("http://x", [], stream=stream))


@pytest.fixture(scope="module")
def raw() -> Iterator[Callable[[bytes], str]]:
    """A server that answers with the given bytes, whatever it is asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    answers: list[bytes] = [b""]

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answers[0])

    threading.Thread(target=serve, daemon=True).start()

    def answer(content: bytes) -> str:
        answers[0] = content
        return f"http://127.0.0.1:{listener.getsockname()[1]}/x"

    yield answer
    listener.close()


HTTP = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nContent-Type: a/b; charset=\xff\r\n"
    b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\nLocation: /y\r\n\r\n"
    b"3\r\n{}\n\r\n0\r\n\r\n"
)


@fuzz
@given(content=spoilt_bytes(HTTP) | st.binary(max_size=80))
def test_http(raw: Callable[[bytes], str], content: bytes) -> None:
    def ask() -> None:
        try:
            http.ask("GET", raw(content), http.HttpLimits(2, 1000, redirects=2), proxies=False)
        except http.NoHttpAnswer as error:
            assert not steers(str(error))

    survives(ask)


EVENT = {
    "vertexes": [{"digest": "a", "name": "RUN x", "started": "1", "error": "failed"}],
    "logs": [{"vertex": "a", "data": "aGVsbG8="}],
}


@fuzz
@given(content=documents(EVENT), indented=spoilt(EVENT))
def test_build_events(content: bytes, indented: Any) -> None:
    def follow() -> None:
        text = (
            content.decode(errors="replace") + "\nnoise\n" + json.dumps(indented, indent=1) + "\n"
        )
        vertices: dict[str, buildkit.BuildVertex] = {}
        rest: list[str] = []
        for event in buildkit.events(io.StringIO(text), rest):
            buildkit._follow_event(event, vertices, lambda _: None)
        buildkit.explain(vertices.values(), "".join(rest))

    survives(follow)
