"""The reference card's prompts at temperature 0, each with a check on its answer."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import ServingError
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress
from fp4forge.serve import client, sandbox
from fp4forge.serve.client import ChatAnswer

CITIES = (
    "tokyo",
    "osaka",
    "kyoto",
    "yokohama",
    "nagoya",
    "sapporo",
    "kobe",
    "fukuoka",
    "hiroshima",
    "sendai",
    "nara",
    "kawasaki",
    "saitama",
    "nagasaki",
    "kanazawa",
    "naha",
    "okinawa",
    "niigata",
    "kumamoto",
)


@dataclass(frozen=True)
class CardPrompt:
    """One question: its body, and a check that says what is wrong with an answer.

    The check may raise sandbox.NotJudged.
    """

    name: str
    text: str
    wrong: Callable[[ChatAnswer], str]
    kind: str = "text"
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class PromptVerdict:
    """What came of one prompt; seconds of wall time.

    ``passed`` is None if the answer could not be judged; ``problem`` then says why.
    """

    name: str
    passed: bool | None
    answer: str
    problem: str
    seconds: float

    @property
    def outcome(self) -> str:
        """The verdict in a word or two, as the table shows it."""
        return "not judged" if self.passed is None else "ok" if self.passed else "wrong"


def _lacks_words(text: str, *wanted: str) -> str:
    missing = [word for word in wanted if word not in text.lower()]
    return f"it does not say {', '.join(missing)}" if missing else ""


def _haiku(answer: ChatAnswer) -> str:
    lines = [line for line in re.split(r"\n|\s/\s", answer.text.strip()) if line.strip()]
    return "" if 3 <= len(lines) <= 4 else f"{len(lines)} lines, a haiku has 3"


def _cities(answer: ChatAnswer) -> str:
    named = {city for city in CITIES if city in answer.text.lower()}
    return "" if len(named) >= 3 else f"{len(named)} known Japanese cities named, 3 asked for"


def _photosynthesis(answer: ChatAnswer) -> str:
    text = answer.text.strip()
    sentences = len(re.findall(r"[.!?](?=\s+[A-Z]|$)", text))
    problem = _lacks_words(text, "light") if "sun" not in text.lower() else ""
    if not problem and not re.search(r"energy|sugar|glucose|oxygen|carbon", text.lower()):
        problem = "it names neither energy, sugar, oxygen nor carbon dioxide"
    return problem or ("" if sentences <= 1 else f"{sentences} sentences, one asked for")


def _product_reasoned(answer: ChatAnswer) -> str:
    if not answer.reasoning.strip():
        return "no reasoning apart from the answer: is --reasoning-parser set?"
    return _lacks_words(answer.text, "391")


class _City(Struct, frozen=True):
    """What the weather's tool is called with."""

    city: str = ""


def _weather_called(answer: ChatAnswer) -> str:
    if not answer.tool_calls:
        return "no tool call: are --enable-auto-tool-choice and --tool-call-parser set?"
    called = answer.tool_calls[0].function
    try:
        given = reading.json(called.arguments, _City, "its arguments", ServingError)
    except ServingError as error:
        return f"a broken tool call: {error.message}"
    if called.name != "get_weather" or "paris" not in given.city.lower():
        arguments = f"{shown(called.name, 60)}({shown(called.arguments, 200)})"
        return f"called {arguments}, not get_weather(city=Paris)"
    return ""


def red_square() -> str:
    """A 64 x 64 red PNG as a data URL (PNG specification, RGB of 8 bits)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + b"\xe0\x10\x10" * 64 for _ in range(64))
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}

PROMPTS = (
    CardPrompt("capital", client.PARIS, lambda a: _lacks_words(a.text, "paris")),
    CardPrompt("product", "What is 17 * 23?", lambda a: _lacks_words(a.text, "391")),
    CardPrompt("haiku", "Write a haiku about the ocean.", _haiku),
    CardPrompt("cities", "Name three cities in Japan.", _cities),
    CardPrompt(
        "prime",
        "Write a one-line Python function is_prime(n). Only the code.",
        lambda a: sandbox.wrong_prime(a.text),
    ),
    CardPrompt("photosynthesis", "Explain photosynthesis in one sentence.", _photosynthesis),
    CardPrompt(
        "reasoning",
        "What is 17 * 23? Think first.",
        _product_reasoned,
        "reasoning",
        {"chat_template_kwargs": {"enable_thinking": True}, "max_tokens": 2048},
    ),
    CardPrompt(
        "tool",
        "What is the weather in Paris now? Use the tool.",
        _weather_called,
        "tool",
        {"tools": [_WEATHER]},
    ),
    CardPrompt(
        "vision",
        "What colour is this square? One word.",
        lambda a: _lacks_words(a.text, "red"),
        "vision",
    ),
)


def answer(url: str, prompt: CardPrompt, model: str, stream: bool, timeout: float) -> ChatAnswer:
    """Asks one prompt."""
    content: Any = prompt.text
    if prompt.kind == "vision":
        content = [
            {"type": "image_url", "image_url": {"url": red_square()}},
            {"type": "text", "text": prompt.text},
        ]
    return client.chat(
        url,
        [{"role": "user", "content": content}],
        model=model,
        timeout=timeout,
        stream=stream,
        **(prompt.options or {}),
    )


def ask(url: str, prompt: CardPrompt, model: str, stream: bool, timeout: float) -> PromptVerdict:
    """Asks one prompt and checks the answer."""
    given = answer(url, prompt, model, stream, timeout)
    problem = given.problem
    if not problem and not given.text.strip() and not given.tool_calls:
        problem = "an empty answer"
    passed: bool | None
    try:
        problem = problem or prompt.wrong(given)
        passed = not problem
    except sandbox.NotJudged as reason:
        passed, problem = None, str(reason)
    return PromptVerdict(prompt.name, passed, given.text, problem, given.seconds)


def examine(
    url: str,
    report: Progress,
    *,
    kinds: tuple[str, ...] = ("text", "vision", "reasoning", "tool"),
    names: tuple[str, ...] = (),
    stream: bool = False,
    timeout: float = client.TIMEOUT,
) -> Iterator[PromptVerdict]:
    """Asks the prompts of some kinds (or of some names) one after the other."""
    known = client.models(url)
    for prompt in PROMPTS:
        if prompt.name in names or (not names and prompt.kind in kinds):
            report(prompt.name)
            yield ask(url, prompt, known[0] if known else "default", stream, timeout)
