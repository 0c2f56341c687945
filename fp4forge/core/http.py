"""HTTP with an end: an answer has a limit in bytes, and a time from the request to its last byte.

A timeout of a socket starts anew with each byte. So the request runs in a thread of its own, and
who asks waits for the thread: for names, connections, headers and bodies alike.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from fp4forge.core.text import shown

# Beyond the limit: the thread itself looks at the time between two bytes.
GRACE = 0.5


class NoHttpAnswer(Exception):
    """There is none; the message says why."""


@dataclass
class HttpAnswer:
    """What came; ``cut`` says why the rest of the content was not read."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    cut: str = ""


@dataclass(frozen=True)
class HttpLimits:
    """How long an answer may take, and how large it may be."""

    seconds: float
    size: int
    connect_seconds: float = 10
    redirects: int = 0  # that are followed; the last answer is the answer otherwise


def address(target: str, base: str = "") -> SplitResult:
    """An address in its parts; one without a host is relative to ``base``.

    Raises:
        NoHttpAnswer: it is none.
    """
    try:
        found = urlsplit(urljoin(base, target))
        _ = found.port
    except ValueError as error:
        raise NoHttpAnswer(f"{shown(target, 200)!r} is not an address: {error}") from None
    return found


def ask(
    method: str,
    url: str,
    limits: HttpLimits,
    *,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    proxies: bool = True,
    until: bytes = b"",
) -> HttpAnswer:
    """One request and its answer.

    Args:
        method: GET, HEAD, PUT, POST or DELETE.
        url: http:// or https://.
        limits: content beyond them is not read; the answer's ``cut`` says so.
        headers: of the request. Compressed content is not asked for, and not unpacked.
        body: of the request.
        proxies: use those of the environment, and its netrc.
        until: bytes after which a stream has ended, though its connection stays open.

    Raises:
        NoHttpAnswer: no status and headers came in time.
    """
    exchange = _Exchange(method, url, limits, headers or {}, body, proxies, until)
    thread = threading.Thread(target=exchange.run, daemon=True)
    thread.start()
    thread.join(limits.seconds + GRACE)
    exchange.over = True
    if exchange.error and not exchange.answer.status:
        raise NoHttpAnswer(exchange.error)
    if not exchange.answer.status:
        raise NoHttpAnswer(f"no answer within {limits.seconds:g} s")
    answer = replace(exchange.answer, content=bytes(exchange.content))  # the thread may go on
    if thread.is_alive():
        answer.cut = f"no end within {limits.seconds:g} s"
    elif exchange.error:
        answer.cut = exchange.error
    return answer


@dataclass
class _Exchange:
    method: str
    url: str
    limits: HttpLimits
    headers: dict[str, str]
    body: bytes | None
    proxies: bool
    until: bytes
    content: bytearray = field(default_factory=bytearray)
    answer: HttpAnswer = field(default_factory=HttpAnswer)
    error: str = ""
    over: bool = False  # nobody waits for it any more

    def run(self) -> None:
        """Sends and reads; every failure becomes ``error``."""
        import requests
        import urllib3

        try:
            with requests.Session() as session:
                session.trust_env = self.proxies
                deadline = time.monotonic() + self.limits.seconds
                # Not requests' own: it reads, and unpacks, the content of each redirect whole.
                for _ in range(self.limits.redirects + 1):
                    target = self._send(session, deadline)
                    if not target:
                        return
                    self._follow(target)
            self.error = f"more than {self.limits.redirects} redirects"
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            what = "end" if self.answer.status else "answer"
            self.error = f"no {what} within {self.limits.seconds:g} s"
        except (
            NoHttpAnswer,
            OSError,
            ValueError,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
        ) as error:
            # OSError: requests' own are, and that of a CA bundle which is not there.
            self.error = _network_reason(error)

    def _follow(self, target: str) -> None:
        old, new = urlsplit(self.url), address(target, self.url)
        if new.scheme not in ("https", old.scheme):
            raise ValueError(f"a redirect from {old.scheme} to {new.scheme}")
        if new[:2] != old[:2]:  # another server: the login is not for it
            self.headers = {k: v for k, v in self.headers.items() if k.lower() != "authorization"}
        self.url = new.geturl()

    def _send(self, session: Any, deadline: float) -> str:
        """One request; returns where it is redirected to, if that is to be followed."""
        with session.request(
            self.method,
            self.url,
            headers={"Accept-Encoding": "identity"} | self.headers,
            data=self.body,
            timeout=(self.limits.connect_seconds, self.limits.seconds),
            stream=True,
            allow_redirects=False,
        ) as found:
            target = found.headers.get("location", "") if found.is_redirect else ""
            if target and self.limits.redirects and self.method in ("GET", "HEAD"):
                return str(target)
            self.answer.headers = {key.lower(): value for key, value in found.headers.items()}
            self.answer.status = found.status_code
            # read1 returns what has arrived: a byte now and then must not reset the deadline.
            while chunk := found.raw.read1(1 << 16, decode_content=False):
                room = self.limits.size - len(self.content)
                self.content += chunk[:room]
                if len(chunk) > room:
                    self.answer.cut = f"more than {self.limits.size:,} bytes"
                    break
                if self.until and self.until in self.content[-len(chunk) - len(self.until) :]:
                    break
                if self.over or time.monotonic() > deadline:
                    self.answer.cut = f"no end within {self.limits.seconds:g} s"
                    break
        return ""


def _network_reason(error: BaseException) -> str:
    """Why, in the words of the innermost cause."""
    while inner := [
        arg
        for arg in (getattr(error, "reason", None), *error.args)
        if isinstance(arg, BaseException)
    ]:
        error = inner[-1]
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(r"^.*\[Errno -?[0-9]+\] ([^()]*).*$", r"\1", text)
    text = re.sub(r"^HTTPS?Connection[^:]*: ", "", text)
    return shown(text[:1].lower() + text[1:], 200)
