"""A proxy before a real registry, which spoils some of its answers: each fault is a named mode."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fp4forge.oci.layout import INDEX, image_index
from tests.e2e.faults import wire
from tests.e2e.faults.wire import STEERING, Act, Handler, Server, reset, say

NOT_FOUND = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown: not found"}]}'


@dataclass(frozen=True)
class Reply:
    """The real registry's answer."""

    status: int
    headers: dict[str, str]
    content: bytes


@dataclass(frozen=True)
class Fault:
    """What is spoilt: a method and a kind of path, from the first or a later such request on."""

    where: str  # METHOD KIND; kinds: root, tag, digest, blob, upload
    act: Callable[[Exchange], None]
    first: int = 1
    last: int = 1 << 30


class Exchange:
    """A request on its way through the proxy."""

    def __init__(self, proxy: Proxy, handler: Handler) -> None:
        self.proxy, self.handler = proxy, handler

    def forward(self) -> Reply:
        """Asks the real registry."""
        skipped = ("connection", "transfer-encoding", "content-length")
        names = {name for name in self.handler.headers if name.lower() not in skipped}
        headers = {n: ", ".join(self.handler.headers.get_all(n) or ()) for n in names}
        asked = http.client.HTTPConnection(self.proxy.upstream, timeout=20)
        asked.request(self.handler.command, self.handler.path, self.handler.body, headers)
        answer = asked.getresponse()
        content = answer.read()
        asked.close()
        return Reply(answer.status, dict(answer.headers.items()), content)

    def reply(self, reply: Reply) -> None:
        """Passes an answer on; HEAD keeps the length that was said."""
        fields = {k: v for k, v in reply.headers.items() if k.lower() != "connection"}
        if self.handler.command != "HEAD":
            fields["Content-Length"] = str(len(reply.content))
        self.handler.wfile.write(wire.head(reply.status, fields) + reply.content)


class Proxy:
    """The registry as clients see it at ``address``."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.fault: Fault | None = None
        self.seen = 0
        self.hits = 0
        self._lock = threading.Lock()
        self.server = Server(self._answer)
        self.address = self.server.address

    def spoil(self, fault: Fault) -> None:
        """From now on answers have this fault."""
        self.heal()
        self.server.released = threading.Event()
        self.seen = self.hits = 0
        self.fault = fault

    def heal(self) -> None:
        """From now on answers are the real registry's."""
        self.fault = None
        self.server.released.set()

    def close(self) -> None:
        self.heal()
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, handler: Handler) -> None:
        exchange, fault = Exchange(self, handler), self.fault
        if fault and self._hit(fault, handler):
            fault.act(exchange)
        else:
            exchange.reply(exchange.forward())

    def _hit(self, fault: Fault, handler: Handler) -> bool:
        method, kind = fault.where.split()
        if method not in ("*", handler.command) or kind not in ("*", _kind(handler.path)):
            return False
        with self._lock:
            self.seen += 1
            hit = fault.first <= self.seen <= fault.last
            self.hits += hit
        return hit


def _kind(path: str) -> str:
    for part, kind in (
        ("/manifests/sha256:", "digest"),
        ("/manifests/", "tag"),
        ("/blobs/uploads/", "upload"),
        ("/blobs/sha256:", "blob"),
    ):
        if part in path:
            return kind
    return "root"


# What a fault does


def on_wire(act: Act) -> Callable[[Exchange], None]:
    """A fault that needs no real answer."""
    return lambda x: act(x.handler)


def status(code: int, content: bytes = NOT_FOUND) -> Callable[[Exchange], None]:
    """A refusal, whose text says that there is nothing."""
    return on_wire(say(code, content))


def after_forwarding(act: Act) -> Callable[[Exchange], None]:
    """The real registry gets the request; its answer is lost."""

    def run(x: Exchange) -> None:
        x.forward()
        act(x.handler)

    return run


def changed(change: Callable[[bytes], bytes]) -> Callable[[Exchange], None]:
    """The real answer with another content."""

    def run(x: Exchange) -> None:
        reply = x.forward()
        x.reply(Reply(reply.status, reply.headers, change(reply.content)))

    return run


def not_stored(x: Exchange) -> None:
    """Accepted, and forgotten."""
    digest = x.handler.path.rpartition("digest=")[2] or x.handler.path.rpartition("/")[2]
    say(201, b"", Location=x.handler.path, Docker_Content_Digest=digest.replace("%3A", ":"))(
        x.handler
    )


def length_less_one(x: Exchange) -> None:
    """A blob that the registry's storage cut by a byte."""
    reply = x.forward()
    size = int(reply.headers.get("Content-Length", "1")) - 1
    x.reply(Reply(reply.status, reply.headers | {"Content-Length": str(size)}, reply.content[:-1]))


def flipped(content: bytes) -> bytes:
    """A bit in the middle is another one."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def index(entries: Any) -> Callable[[Exchange], None]:
    """An index with these entries in place of the real one."""
    data = image_index(entries)
    return on_wire(say(200, json.dumps(data).encode(), INDEX))


SELF = "sha256:" + "5e1f" * 16
ENTRY = {"digest": SELF, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
LONELY = json.dumps(image_index([ENTRY])).encode()

# A tag is looked up: serve compose --image HOST/NAME:1.
LOOK_UP: dict[str, Fault] = {
    **{name: Fault("GET tag", on_wire(act)) for name, act in wire.WIRE.items()},
    **{
        f"status-{code}": Fault("GET tag", status(code))
        for code in (400, 401, 403, 405, 410, 418, 429, 500, 502, 503, 504)
    },
    "login-without-end": Fault(
        "GET tag",
        on_wire(say(401, b"{}", WWW_Authenticate='Bearer realm="http://127.0.0.1:9/",service="x"')),
    ),
    "login-of-no-form": Fault(
        "GET tag",
        on_wire(say(401, b"{}", WWW_Authenticate='Bearer realm="https://[x/",service="\x1b"')),
    ),
    "short-length": Fault(
        "GET tag", on_wire(wire.raw(wire.START + b"Content-Length: 5\r\n\r\n" + LONELY))
    ),
    "sizes-are-huge": Fault("GET tag", index([ENTRY | {"size": 10**400}])),
    "sizes-are-negative": Fault("GET tag", index([ENTRY | {"size": -1}])),
    "digest-is-a-path": Fault("GET tag", index([ENTRY | {"digest": "../../etc/passwd"}])),
    "entries-are-no-list": Fault("GET tag", index("none")),
    "forty-thousand-images": Fault("GET tag", index([ENTRY] * 40_000)),
}

# An image is published: unbundle --to.
PUSH: dict[str, Fault] = {
    "look-up-500": Fault("GET tag", status(500)),
    "look-up-hangs": Fault("GET tag", on_wire(wire.then_hang())),
    "look-up-empty": Fault("GET tag", status(200, b"")),
    **{f"blob-head-{code}": Fault("HEAD blob", status(code)) for code in (403, 500)},
    "blob-head-hangs": Fault("HEAD blob", on_wire(wire.then_hang())),
    **{f"upload-post-{code}": Fault("POST upload", status(code)) for code in (401, 403, 429, 500)},
    "upload-post-hangs": Fault("POST upload", on_wire(wire.then_hang())),
    "upload-post-resets": Fault("POST upload", on_wire(reset)),
    "upload-post-steers": Fault("POST upload", status(400, STEERING)),
    "upload-post-slowly": Fault("POST upload", on_wire(wire.slowly(wire.START))),
    "upload-post-loops": Fault("POST upload", on_wire(wire.redirect("{self}"))),
    "upload-goes-to-nobody": Fault(
        "POST upload",
        on_wire(say(202, b"", Location="http://127.0.0.1:9/x", Docker_Upload_UUID="x")),
    ),
    "upload-goes-to-a-file": Fault(
        "POST upload", on_wire(say(202, b"", Location="file:///etc/passwd", Docker_Upload_UUID="x"))
    ),
    "upload-patch-500": Fault("PATCH upload", status(500)),
    "upload-patch-hangs": Fault("PATCH upload", on_wire(wire.then_hang())),
    "upload-patch-resets": Fault("PATCH upload", on_wire(reset)),
    "upload-put-500": Fault("PUT upload", status(500)),
    "upload-put-reset-after": Fault("PUT upload", after_forwarding(reset)),
    "upload-put-not-stored": Fault("PUT upload", not_stored),
    "disk-is-full": Fault("PUT upload", status(507, b"no space left on device")),
    **{f"manifest-put-{code}": Fault("PUT digest", status(code)) for code in (400, 500)},
    "manifest-put-steers": Fault("PUT digest", status(400, STEERING)),
    "manifest-put-hangs": Fault("PUT digest", on_wire(wire.then_hang())),
    "manifest-put-not-stored": Fault("PUT digest", not_stored),
    "blob-cut-by-a-byte": Fault("HEAD blob", length_less_one, first=3),
    "blob-with-another-byte": Fault("GET blob", changed(flipped)),
    "blob-gone": Fault("HEAD blob", status(404), first=3),
    "blob-read-back-hangs": Fault("GET blob", on_wire(wire.then_hang())),
    "manifest-with-another-byte": Fault("GET digest", changed(flipped)),
    "manifest-gone": Fault("GET digest", status(404)),
    "index-names-itself": Fault("GET digest", on_wire(say(200, LONELY, INDEX))),
    "manifest-read-back-bomb": Fault("GET digest", on_wire(wire.WIRE["gzip-bomb"])),
    **{f"tag-put-{code}": Fault("PUT tag", status(code)) for code in (401, 404, 429, 500)},
    "tag-put-resets": Fault("PUT tag", on_wire(reset)),
    "tag-put-steers": Fault("PUT tag", status(400, STEERING)),
    "tag-put-hangs": Fault("PUT tag", on_wire(wire.then_hang())),
    "tag-put-redirects": Fault("PUT tag", on_wire(wire.redirect("{self}"))),
    "tag-put-not-moved": Fault("PUT tag", not_stored),
    "tag-put-page-of-html": Fault("PUT tag", on_wire(wire.WIRE["a-page-of-html"])),
    "tag-moved-answer-lost": Fault("PUT tag", after_forwarding(reset)),
    "tag-moved-answer-hangs": Fault("PUT tag", after_forwarding(wire.then_hang())),
    "tag-moved-said-500": Fault("PUT tag", after_forwarding(say(500, NOT_FOUND))),
}

# An image is read: bundle HOST/NAME:1.
PULL: dict[str, Fault] = {
    "blob-500": Fault("GET blob", status(500)),
    "blob-404": Fault("GET blob", status(404)),
    "blob-cut": Fault("GET blob", changed(lambda content: content[:-1])),
    "blob-with-another-byte": Fault("GET blob", changed(flipped)),
    "blob-hangs": Fault("GET blob", on_wire(wire.then_hang())),
    "blob-resets-in-body": Fault("GET blob", on_wire(wire.reset_after(wire.LENGTH + b"{"))),
    "blob-loops": Fault("GET blob", on_wire(wire.redirect("{self}"))),
    "blob-steers": Fault("GET blob", status(400, STEERING)),
    "manifest-with-another-byte": Fault("GET digest", changed(flipped)),
    "manifest-deep": Fault("GET digest", on_wire(wire.WIRE["deep-json"])),
    "manifest-hangs": Fault("GET digest", on_wire(wire.then_hang())),
    "manifest-without-end": Fault("GET digest", on_wire(wire.WIRE["body-without-end"])),
}
