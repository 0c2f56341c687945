"""A model server with a fault: each fault is a named mode."""

from __future__ import annotations

import json
import threading
from typing import Any

from tests.e2e.faults import wire
from tests.e2e.faults.wire import STEERING, Act, Handler, Server, say

TEXT_EVENTS = wire.head(200, {"Content-Type": "text/event-stream"})
WORD = b'data: {"choices": [{"delta": {"content": "Paris"}}]}\n\n'
END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def chunk(delta: object, finish: object = None) -> bytes:
    choice = {"delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def stream(*parts: bytes) -> Act:
    """Server-sent events, then the end of the connection."""
    return wire.raw(TEXT_EVENTS + b"".join(parts))


def answer(message: object, finish: object = "stop") -> Act:
    """A chat completion with this message."""
    choices = [{"message": message, "finish_reason": finish}]
    return say(200, json.dumps({"choices": choices}).encode())


def text(content: object) -> Act:
    return answer({"content": content})


def call(name: object, arguments: object) -> Act:
    """A tool call."""
    function = {"name": name, "arguments": arguments}
    return answer({"content": None, "tool_calls": [{"function": function}]})


CONTROL = STEERING.decode("latin-1") + "\u202e"
BAD_PRIMES = {
    "system": "import os\nis_prime = lambda n: os.system('touch /tmp/evil')",
    "recursion": "def is_prime(n): return is_prime(n + 1)",
    "loop": "def is_prime(n):\n  while True: pass",
    "memory": "def is_prime(n): return [0] * 10**12",
    "number": "is_prime = lambda n: 10 ** 10 ** 10 ** 10",
    "steering": f"is_prime = lambda n: 1/0 # {CONTROL}",
    "nul": "is_prime = lambda n: '\0' * n",
    "fences": "```python\n" * 9000,
    "brackets": "is_prime = " + "(" * 50_000,
    "lambdas": "is_prime = " + "lambda: " * 10_000 + "0",
    "spaces": "def is_prime(n):" + " " * 90_000 + "x",
}

# What POST /v1/chat/completions answers; smoke asks for France's capital.
CHAT: dict[str, Act] = {
    **wire.WIRE,
    **{f"status-{code}": say(code, b'{"error": "Paris"}') for code in (400, 401, 404, 429, 503)},
    "no-choices": say(200, b'{"choices": []}'),
    "choices-are-a-number": say(200, b'{"choices": 7}'),
    "choice-is-null": say(200, b'{"choices": [null]}'),
    "message-is-null": answer(None),
    "content-is-a-list": text(["Paris"]),
    "content-is-null": text(None),
    "content-is-empty": text(" \n\t"),
    "content-steers": text(CONTROL),
    "content-is-long": text("London " * 500_000),
    "content-is-half-a-pair": say(200, b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
    "content-hides": text("\u202eLondon\u2066\u200b\U000e0041"),
    "finish-is-a-number": answer({"content": "Paris"}, 7),
    "numbers-are-huge": say(200, b'{"choices": [{"message": ' + b"9" * 100_000 + b"}]}"),
    "twice-the-same-key": say(200, b'{"choices": [], "choices": []}'),
    "a-stream-unasked": stream(WORD, END),
    "a-million-choices": say(200, b'{"choices": [' + b"{}," * 1_000_000 + b"{}]}"),
}
# The same asked for as a stream: quality --stream.
STREAM: dict[str, Act] = {
    "cut": stream(WORD),
    "cut-in-an-event": stream(WORD, b'data: {"choices": [{"de'),
    "no-events": stream(),
    "only-done": stream(b"data: [DONE]\n\n"),
    "event-is-no-json": stream(WORD, b"data: {not json\n\n", END),
    "event-steers": stream(WORD, b"data: " + STEERING + b"\n\n", END),
    "event-is-an-error": stream(b'data: {"error": {"message": "CUDA error"}}\n\n', END),
    "delta-is-a-list": stream(chunk(["London"]), END),
    "content-steers": stream(chunk({"content": CONTROL}), END),
    "not-utf-8": stream(b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n', END),
    "never-ends": wire.endlessly(TEXT_EVENTS, chunk({"content": "London "}) * 100),
    "keeps-alive-for-ever": wire.endlessly(TEXT_EVENTS, b": ping\n\n" * 1000),
    "line-without-end": wire.endlessly(TEXT_EVENTS + b"data: ", b"x" * 65536),
    "word-every-half-second": wire.slowly(TEXT_EVENTS + WORD),
    "hangs-after-a-word": wire.then_hang(TEXT_EVENTS + WORD),
    "resets-after-a-word": wire.reset_after(TEXT_EVENTS + WORD),
    "a-whole-answer-unasked": text("Paris"),
}
# What /health answers.
HEALTH: dict[str, Act] = {
    name: wire.WIRE[name]
    for name in (
        "hangs-before-headers",
        "hangs-in-body",
        "byte-every-half-second",
        "continues-for-ever",
        "headers-without-end",
        "body-without-end",
        "chunks-without-end",
        "redirects-in-a-loop",
        "resets-at-once",
        "says-another-protocol",
        "steers-in-status",
        "steers-in-error",
    )
}
# What /v1/models answers: an answer is asked for all the same.
MODELS: dict[str, Act] = {
    **{
        name: wire.WIRE[name]
        for name in (
            "hangs-before-headers",
            "byte-every-half-second",
            "gzip-bomb",
            "deep-json",
            "not-utf-8",
            "json-null",
            "steers-in-error",
            "body-without-end",
            "resets-in-body",
        )
    },
    "none": say(200, b'{"data": []}'),
    "id-is-a-number": say(200, b'{"data": [{"id": 7}]}'),
    "id-steers": say(200, json.dumps({"data": [{"id": CONTROL}]}).encode()),
    "id-is-long": say(200, json.dumps({"data": [{"id": "m" * 3_000_000}]}).encode()),
}
# Tool calls, thinking and code; quality asks for each.
TOOL: dict[str, Act] = {
    "arguments-are-no-json": call("get_weather", "{city: Paris"),
    "arguments-are-an-object": call("get_weather", {"city": "Paris"}),
    "arguments-are-deep": call("get_weather", "[" * 100_000),
    "arguments-steer": call("get_weather", json.dumps({"city": CONTROL})),
    "name-steers": call(CONTROL, '{"city": "Paris"}'),
    "name-is-null": call(None, "{}"),
    "another-tool": call("rm", '{"city": "Paris"}'),
    "call-is-null": answer({"tool_calls": [None]}),
    "calls-are-text": answer({"tool_calls": "get_weather"}),
}
PRIME: dict[str, Act] = {name: text(code) for name, code in BAD_PRIMES.items()}


class Evil:
    """A server that answers rightly but for one path."""

    def __init__(self) -> None:
        self.faults: dict[str, Act] = {}
        self.asked: list[str] = []
        self.server = Server(self._answer)
        self.url = f"http://{self.server.address}"

    def spoil(self, path: str, act: Act) -> None:
        """From now on a path is answered with this fault."""
        self.faults[path] = act

    def close(self) -> None:
        self.server.released.set()
        threading.Thread(target=self.server.shutdown, daemon=True).start()
        self.server.server_close()

    def _answer(self, handler: Handler) -> None:
        self.asked.append(handler.path)
        (self.faults.get(handler.path) or _right)(handler)


def _right(handler: Handler) -> None:
    if handler.path == "/v1/models":
        say(200, b'{"data": [{"id": "m"}]}')(handler)
    elif handler.path == "/health":
        say(200)(handler)
    else:
        body: dict[str, Any] = json.loads(handler.body)
        (stream(WORD, END) if body["stream"] else text("Paris"))(handler)
