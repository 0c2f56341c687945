"""What a faulty server does on the wire, whatever protocol it pretends to speak."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LONG = 30.0  # seconds: no test waits for so long
STEERING = b"\x1b[31mhi\x1b]0;title\x07\r\x9b2J\x00\xe2\x80\xae"  # of a terminal
JSON = "application/json"


class Handler(BaseHTTPRequestHandler):
    """One request on a connection of its own."""

    server: Server

    def handle_any(self) -> None:
        """Reads the request whole and has the server's own function answer it."""
        self.close_connection = True
        self.body = self._read()
        with contextlib.suppress(OSError):  # the client gives up, as it should
            self.server.answer(self)
            self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    """A server on loopback whose answers a function gives."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Callable[[Handler], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """A client that gives up is no error."""


Act = Callable[[Handler], None]


def head(status: int, headers: Mapping[str, object], reason: str = "OK") -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


def say(status: int, content: bytes = b"", kind: str = JSON, **more: object) -> Act:
    """An answer with its length; HEAD gets no content."""

    def act(x: Handler) -> None:
        fields = {"Content-Type": kind, "Content-Length": len(content)}
        fields |= {name.replace("_", "-"): value for name, value in more.items()}
        x.wfile.write(head(status, fields) + (b"" if x.command == "HEAD" else content))

    return act


def raw(content: bytes) -> Act:
    """Bytes as they are, then the end of the connection."""
    return lambda x: _none(x.wfile.write(content))


def then_hang(content: bytes = b"") -> Act:
    """Bytes, and then nothing more on an open connection."""

    def act(x: Handler) -> None:
        x.wfile.write(content)
        x.wfile.flush()
        x.server.released.wait(LONG)

    return act


def in_pieces(*pieces: bytes) -> Act:
    """Pieces that arrive one by one."""

    def act(x: Handler) -> None:
        for piece in pieces:
            x.wfile.write(piece)
            x.wfile.flush()
            x.server.released.wait(0.1)

    return act


def slowly(content: bytes, seconds: float = 0.5) -> Act:
    """A byte every half second."""

    def act(x: Handler) -> None:
        for byte in itertools.chain(content, itertools.repeat(32)):
            x.wfile.write(bytes([byte]))
            x.wfile.flush()
            if x.server.released.wait(seconds):
                return

    return act


def endlessly(start: bytes, piece: bytes) -> Act:
    """The same piece again and again, as fast as it is read."""

    def act(x: Handler) -> None:
        x.wfile.write(start)
        while not x.server.released.is_set():
            x.wfile.write(piece)

    return act


def reset(x: Handler) -> None:
    """A connection that is reset."""
    x.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    x.connection.close()


def reset_after(content: bytes) -> Act:
    """Bytes, then a reset."""

    def act(x: Handler) -> None:
        x.wfile.write(content)
        x.wfile.flush()
        x.server.released.wait(0.1)
        reset(x)

    return act


def redirect(to: str) -> Act:
    """To an address; ``{self}`` stands for this server's own."""

    def act(x: Handler) -> None:
        place = to.replace("{self}", f"http://{x.server.address}{x.path}")
        say(307, b"", Location=place)(x)

    return act


def bomb() -> bytes:
    """256 MB of JSON's white space in some 250 kB of gzip."""
    return gzip.compress(bytes(1 << 20) * 256, 6)


OK = head(200, {"Content-Type": JSON})
LENGTH = head(200, {"Content-Type": JSON, "Content-Length": 1000})
CHUNKED = head(200, {"Content-Type": JSON, "Transfer-Encoding": "chunked"})
START = b"HTTP/1.1 200 OK\r\n"

# Faults of any HTTP server, whatever was asked for.
WIRE: dict[str, Act] = {
    "hangs-before-headers": then_hang(),
    "hangs-in-headers": then_hang(START + b"Content-Type: a"),
    "hangs-in-body": then_hang(LENGTH + b"{"),
    "byte-every-half-second": slowly(OK + b"{"),
    "byte-every-half-second-of-body": lambda x: (x.wfile.write(OK), slowly(b"{")(x))[1],
    "continues-for-ever": endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
    "cuts-body": raw(LENGTH + b'{"schemaVersion": 2'),
    "cuts-headers": raw(START + b"Content-Len"),
    "closes-at-once": raw(b""),
    "resets-at-once": reset,
    "resets-in-body": reset_after(LENGTH + b"{"),
    "says-another-protocol": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "says-status-abc": raw(b"HTTP/1.1 abc OK\r\n\r\n"),
    "says-status-99999": raw(b"HTTP/1.1 99999 OK\r\n\r\n"),
    "says-negative-length": raw(START + b"Content-Length: -5\r\n\r\n{"),
    "says-two-lengths": raw(START + b"Content-Length: 1, 2\r\n\r\n{"),
    "says-length-of-an-exabyte": raw(START + b"Content-Length: 1000000000000000000\r\n\r\n{"),
    "header-without-end": endlessly(START + b"A: ", b"x" * 65536),
    "headers-without-end": endlessly(START, b"A: b\r\n" * 1000),
    "body-without-end": endlessly(OK, b" " * 65536),
    "chunks-without-end": endlessly(CHUNKED, b"4\r\nxxxx\r\n" * 1000),
    "chunk-size-is-no-number": raw(CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
    "chunk-size-is-negative": raw(CHUNKED + b"-5\r\n{}\r\n0\r\n\r\n"),
    "chunk-size-is-huge": raw(CHUNKED + b"ffffffffffffffff\r\n{}"),
    "chunk-size-without-end": endlessly(CHUNKED, b"0" * 65536),
    "gzip-bomb": lambda x: say(200, bomb(), Content_Encoding="gzip")(x),
    "redirects-in-a-loop": redirect("{self}"),
    "redirects-to-nobody": redirect("http://127.0.0.1:9/"),
    "redirects-to-a-file": redirect("file:///etc/passwd"),
    "redirects-to-no-address": redirect("http://[::1/"),
    "empty-200": say(200),
    "status-204": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "a-page-of-html": say(200, b"<html>Sign in</html>", "text/html"),
    "not-utf-8": say(200, b'{"schemaVersion": "\xff\xfe"}'),
    "deep-json": say(200, b'{"manifests":' + b"[" * 100_000),
    "json-null": say(200, b"null"),
    "json-list": say(200, b"[]"),
    "steers-in-error": say(500, STEERING),
    "steers-in-status": raw(b"HTTP/1.1 500 " + STEERING + b"\r\n\r\n"),
    "steers-in-headers": raw(START + b"Content-Type: " + STEERING + b"\r\n\r\n" + STEERING),
    "steers-in-redirect": raw(b"HTTP/1.1 307 x\r\nLocation: http://" + STEERING + b"\r\n\r\n"),
}


def _none(_: object) -> None:
    return None
