"""What the benchmark asks the server itself: its models, its tokens, its counters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct

from fp4forge.core import http, reading
from fp4forge.core.errors import BenchError, ServingError, UsageError
from fp4forge.core.limits import METRICS_BYTES, SERVER_BYTES, SERVER_SECONDS, TOKENIZE_SECONDS
from fp4forge.core.text import shown
from fp4forge.serve import client

T = TypeVar("T")


class _ListedModel(Struct, frozen=True):
    """An entry of /v1/models, with vLLM's own fields."""

    id: str
    root: str | None = None
    max_model_len: int | None = None


class _ListedModels(Struct, frozen=True):
    data: list[_ListedModel]


class _Version(Struct, frozen=True):
    version: str


class _Count(Struct, frozen=True):
    """An answer of /tokenize."""

    count: int


@dataclass(frozen=True)
class ServedModel:
    """A model as the server lists it; context 0: it does not say."""

    model: str
    root: str
    context: int
    version: str


@dataclass(frozen=True)
class MeasuredServer:
    """A server under test."""

    url: str
    model: str = ""
    key: str = ""

    def _ask(
        self, method: str, path: str, limits: http.HttpLimits, body: Any = None
    ) -> http.HttpAnswer:
        headers = {"Content-Type": "application/json"} if body else {}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return http.ask(
            method,
            self.url + path,
            limits,
            headers=headers,
            body=json.dumps(body).encode() if body else None,
            proxies=urlsplit(self.url).hostname not in ("127.0.0.1", "localhost"),
        )

    def _get(self, path: str, shape: type[T]) -> T:
        try:
            done = self._ask("GET", path, http.HttpLimits(SERVER_SECONDS, SERVER_BYTES))
        except http.NoHttpAnswer as error:
            raise ServingError(
                f"no server answers at {self.url}: {shown(error, 200)}", rule=f"GET {path}"
            ) from None
        if done.status in (401, 403):
            raise ServingError(
                f"{self.url} asks for an API key (HTTP {done.status})",
                remedy="set OPENAI_API_KEY",
            )
        if done.status != 200:
            raise ServingError(
                f"{self.url}{path} answers HTTP {done.status}:"
                f" {shown(_response_text(done), 120)!r}",
                rule="a vLLM server; bench measures no other",
                remedy="give --url the server's root, without /v1",
            )
        return reading.json(done.content, shape, f"{self.url}{path}", ServingError)

    def describe(self) -> ServedModel:
        """The model to measure: the given one, or the first that the server lists.

        Raises:
            ServingError: no server answers, it is no vLLM, or it has no such model.
        """
        if reason := client.unreachable(self.url):
            raise ServingError(
                f"no server answers at {self.url}: {reason}",
                rule="GET /health",
                remedy="build.py serve doctor --container NAME says why",
            )
        listed = self._get("/v1/models", _ListedModels).data
        found = [entry for entry in listed if self.model in ("", entry.id)]
        if not found:
            names = ", ".join(shown(entry.id, 80) for entry in listed[:10]) or "none"
            raise ServingError(
                f"the server has no model {self.model!r}",
                rule=f"GET /v1/models lists: {names}",
                remedy="give --model one of these",
            )
        version = self._get("/version", _Version).version
        entry = found[0]
        return ServedModel(entry.id, entry.root or "", entry.max_model_len or 0, version)

    def context(self) -> int:
        """The model's context in tokens, its answer included; 0 if the server does not say.

        Raises:
            ServingError: the server does not list its models.
        """
        listed = self._get("/v1/models", _ListedModels).data
        return next((entry.max_model_len or 0 for entry in listed if entry.id == self.model), 0)

    def is_there(self) -> bool:
        """Whether it still answers."""
        return not client.unreachable(self.url)

    def count(self, text: str) -> int:
        """Tokens of a chat with one message, its template included, by the server's tokenizer.

        Raises:
            ServingError: it does not say.
        """
        content = [{"type": "text", "text": text}]  # as the load generator sends it
        body = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        try:
            done = self._ask(
                "POST", "/tokenize", http.HttpLimits(TOKENIZE_SECONDS, SERVER_BYTES), body
            )
        except http.NoHttpAnswer as error:
            raise ServingError(f"/tokenize: {shown(error, 200)}", remedy="is it alive?") from None
        if done.status != 200 or done.cut:
            raise ServingError(
                f"/tokenize answers HTTP {done.status}:"
                f" {shown(done.cut or _response_text(done), 200)}",
                rule="vLLM's /tokenize counts the prompts' tokens, with the model's chat template",
                remedy="serve a model that has a chat template, and do not hide /tokenize",
            )
        return reading.json(done.content, _Count, "/tokenize", ServingError).count

    def metrics(self) -> str:
        """What /metrics says; empty if it says nothing."""
        try:
            done = self._ask("GET", "/metrics", http.HttpLimits(SERVER_SECONDS, METRICS_BYTES))
        except http.NoHttpAnswer:
            return ""
        return _response_text(done) if done.status == 200 and not done.cut else ""


def _response_text(done: http.HttpAnswer) -> str:
    return done.content.decode(errors="replace")


def checked_url(url: str) -> str:
    """A server's root without a slash at its end.

    Raises:
        UsageError: it is none.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username or not url.isprintable():
        raise UsageError(f"--url {shown(url, 200)!r}", rule="http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def check_context(loads: list[tuple[str, int]], context: int) -> None:
    """Refuses points that the server cannot take.

    Args:
        loads: a point's name, and the tokens of its prompt and answer.
        context: the server's, in tokens; 0 if it is not known.

    Raises:
        BenchError: a point has more.
    """
    if long := [f"{name} ({tokens:,})" for name, tokens in loads if 0 < context < tokens]:
        raise BenchError(
            f"the server's context of {context:,} tokens is too short for: {', '.join(long)}",
            rule="a point's prompt and answer fit into the server's --max-model-len",
            remedy=f"--max-context {context} leaves these out and notes it; or restart the server",
        )
