"""Questions to a live server: France's capital, a tool call, needles in long texts; its metrics.

Nothing is judged here: ``live_checks`` does that. Every question has a time limit.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import Any

from fp4forge.bench import metrics, needle
from fp4forge.bench.server import MeasuredServer
from fp4forge.core import interrupts
from fp4forge.core.errors import ForgeError
from fp4forge.core.limits import LONG_ANSWER_SECONDS
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress
from fp4forge.models import family
from fp4forge.serve import client, quality
from fp4forge.serve.client import ChatAnswer

NEEDLES = (8_192, 32_768)  # tokens
PAUSE = 60.0  # seconds between two short questions of a soak
CAPITAL, TOOL, STREAMED = "France's capital", "a tool call", "a streamed tool call"
_LABELS = ("status", "finished_reason")


@dataclass(frozen=True)
class LiveQuestion:
    """A question, what came, and what is wrong with it (empty: nothing); seconds since the first.

    ``length`` is that of a needle's text in tokens.
    """

    name: str
    answer: ChatAnswer
    answer_fault: str = ""
    seconds: float = 0.0
    length: int = 0


@dataclass
class LiveServer:
    """A live server, as its answers show it."""

    unreachable: str = ""
    asked: list[LiveQuestion] = field(default_factory=list)
    looks: list[metrics.Values] = field(default_factory=list)  # /metrics, in order
    left_out: dict[str, str] = field(default_factory=dict)  # what was not asked, and why
    off: dict[str, Any] = field(default_factory=dict)  # switches the model's thinking off
    ahead: float | None = None  # seconds that the server's clock is ahead of this one
    _began: float = field(default_factory=time.monotonic)

    @property
    def answered(self) -> bool:
        """Whether the server knew France's capital whenever it was asked."""
        capital = [asked for asked in self.asked if asked.name == CAPITAL]
        return bool(capital) and not any(asked.answer_fault for asked in capital)

    @property
    def seconds(self) -> float:
        """From the first question to the last."""
        return self.asked[-1].seconds if self.asked else 0.0

    @property
    def facts(self) -> tuple[str, ...]:
        """What the server contributed: each question with its outcome, and what was not asked."""
        if self.unreachable:
            return (f"/health: {self.unreachable}",)
        out = []
        for name in dict.fromkeys(asked.name for asked in self.asked):
            wrong = [asked.answer_fault for asked in self.asked if asked.name == name]
            times = f"{len(wrong)} times " if len(wrong) > 1 else ""
            bad = sum(bool(why) for why in wrong)
            out.append(f"{name}: {times}{f'wrong ({bad})' if bad else 'right'}")
        out += [f"{name} was not asked for: {why}" for name, why in self.left_out.items()]
        out += ["its metrics"] if self.looks else []
        return tuple(out)

    def keep(self, name: str, answer: ChatAnswer, wrong: str, length: int = 0) -> None:
        """Takes an answer."""
        passed = time.monotonic() - self._began
        self.asked.append(LiveQuestion(name, answer, wrong, passed, length))


def first(url: str, known: family.Family) -> LiveServer:
    """Whether a server answers at all, and whether it knows France's capital.

    Args:
        url: the server's root.
        known: the model's family; of an unknown one, the served model's name decides.
    """
    found = LiveServer(unreachable=client.unreachable(url))
    if found.unreachable:
        return found
    found.ahead = client.ahead(url)
    if not known.model_types and (names := client.models(url)):
        known = family.get(family.by_name(names[0]))
    found.off = dict(known.prompts)
    _ask_capital(found, url)
    return found


def _ask_capital(found: LiveServer, url: str) -> None:
    answer = client.paris(url, found.off)
    wrong = "" if answer.ok else answer.problem or "it does not say Paris"
    found.keep(CAPITAL, answer, wrong)


def more(found: LiveServer, url: str, report: Progress) -> None:
    """Tool calls, plain and streamed, needles as far as the server's context goes, and metrics."""
    server = MeasuredServer(url.rstrip("/"), "".join(client.models(url)[:1]), client.key())
    _read_metrics(found, server)
    _ask_tool_calls(found, server, report)
    _ask_needles(found, server, report)
    _read_metrics(found, server)


def _read_metrics(found: LiveServer, server: MeasuredServer) -> None:
    if text := server.metrics():
        found.looks.append(metrics.parse(text, *_LABELS))


def _without_thinking(found: LiveServer) -> dict[str, Any]:
    return {"chat_template_kwargs": found.off} if found.off else {}


def _ask_tool_calls(found: LiveServer, server: MeasuredServer, report: Progress) -> None:
    """The function is named: with tool_choice auto a model may well answer without it."""
    prompt = next(p for p in quality.PROMPTS if p.kind == "tool")
    choice = {"type": "function", "function": {"name": "get_weather"}}
    options = {**(prompt.options or {}), "tool_choice": choice} | _without_thinking(found)
    named = replace(prompt, options=options)
    for name, stream in ((TOOL, False), (STREAMED, True)):
        report(name)
        answer = quality.answer(server.url, named, server.model, stream, client.TIMEOUT)
        found.keep(name, answer, answer.problem or named.wrong(answer))


def _ask_needles(found: LiveServer, server: MeasuredServer, report: Progress) -> None:
    context, counts = 0, False
    with contextlib.suppress(ForgeError):
        context = server.context()
        counts = server.count("") > 0
    seed = time.time_ns()  # a text that no cache has
    asked = 0
    for wanted in NEEDLES:
        tokens = min(wanted, context - needle.ROOM) if context else wanted
        name = f"a needle in {tokens:,} tokens"
        if tokens <= max(asked, needle.ROOM):
            why = f"the server's context has {context:,} tokens"
            found.left_out[f"a needle in {wanted:,} tokens"] = why
            continue
        asked = tokens
        report(name)
        try:
            made = needle.of_length(seed + tokens, tokens, server.count if counts else None)
        except ForgeError as error:
            found.left_out[name] = shown(error.message, 200)
            continue
        answer = client.chat(
            server.url,
            [{"role": "user", "content": made.text}],
            model=server.model,
            timeout=LONG_ANSWER_SECONDS,
            max_tokens=needle.ANSWER,
            **_without_thinking(found),
        )
        found.keep(name, answer, answer.problem or made.wrong(answer), tokens)


def soak(found: LiveServer, url: str, seconds: float, report: Progress) -> None:
    """Asks the capital each minute and everything again at the end, or until an answer is wrong.

    An interrupt ends it; what was seen until then stays.
    """
    begin = time.monotonic()
    try:
        while (left := begin + seconds - time.monotonic()) > 0 and found.answered:
            report(f"{left / 60:.0f} minutes left; {len(found.asked)} answers so far")
            time.sleep(min(PAUSE, left))
            _ask_capital(found, url)
        if found.answered:
            more(found, url, report)
    except KeyboardInterrupt:
        interrupts.taken()
        report("interrupted")
