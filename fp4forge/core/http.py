"""HTTP with an end: an answer has a limit in bytes, and a time from the request to its last byte.

A timeout of a socket starts anew with each byte. So the request runs in a thread of its own, and
who asks waits for the thread: for names, connections, headers and bodies alike.
"""

from __future__ import annotations

import http.client
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from fp4forge.core.text import shown


class NoAnswer(Exception):
    """There is none; the message says why."""


@dataclass
class Answer:
    """What came; ``cut`` says why the rest of the content was not read."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    cut: str = ""


@dataclass(frozen=True)
class Limits:
    """How long an answer may take, and how large it may be."""

    seconds: float
    size: int
    connect_seconds: float = 10
    redirects: int = 0  # that are followed; the last answer is the answer otherwise


def ask(
    method: str, url: str, limits: Limits, *, headers: dict[str, str] | None = None,
    body: bytes | None = None, proxies: bool = True,
) -> Answer:  # fmt: skip
    """One request and its answer.

    Args:
        method: GET, HEAD, PUT or POST.
        url: http:// or https://.
        limits: content beyond them is not read; the answer's ``cut`` says so.
        headers: of the request. Compressed content is not asked for, and not unpacked.
        body: of the request.
        proxies: use those of the environment, and its netrc.

    Raises:
        NoAnswer: no status and headers came in time.
    """
    exchange = _Exchange(method, url, limits, headers or {}, body, proxies)
    thread = threading.Thread(target=exchange.run, daemon=True)
    thread.start()
    thread.join(limits.seconds + 0.5)  # the thread itself looks at the time between two bytes
    exchange.over = True
    if exchange.error and not exchange.answer.status:
        raise NoAnswer(exchange.error)
    if thread.is_alive() and not exchange.answer.status:
        raise NoAnswer(f"no answer within {limits.seconds:g} s")
    answer = replace(exchange.answer)  # the thread may go on with its own
    if thread.is_alive():
        answer.cut = f"no end within {limits.seconds:g} s"
    elif exchange.error:
        answer.cut = exchange.error
    return answer


@dataclass
class _Exchange:
    method: str
    url: str
    limits: Limits
    headers: dict[str, str]
    body: bytes | None
    proxies: bool
    answer: Answer = field(default_factory=Answer)
    error: str = ""
    over: bool = False  # nobody waits for it any more

    def run(self) -> None:
        """Sends and reads; every failure becomes ``error``."""
        import requests
        import urllib3

        try:
            with requests.Session() as session:
                session.trust_env = self.proxies
                session.max_redirects = self.limits.redirects
                self._run(session)
        except requests.TooManyRedirects:
            self.error = f"more than {self.limits.redirects} redirects"
        except requests.Timeout:
            self.error = f"no answer within {self.limits.seconds:g} s"
        except (OSError, ValueError, urllib3.exceptions.HTTPError,
                http.client.HTTPException) as error:  # fmt: skip
            # OSError: requests' own are, and that of a CA bundle which is not there.
            self.error = _reason(error)

    def _run(self, session: Any) -> None:
        deadline = time.monotonic() + self.limits.seconds
        with session.request(
            self.method, self.url, headers={"Accept-Encoding": "identity"} | self.headers,
            data=self.body, timeout=(self.limits.connect_seconds, self.limits.seconds),
            stream=True, allow_redirects=bool(self.limits.redirects),
        ) as found:  # fmt: skip
            self.answer.headers = {key.lower(): value for key, value in found.headers.items()}
            self.answer.status = found.status_code
            # read1 returns what has arrived: a byte now and then must not reset the deadline.
            while chunk := found.raw.read1(1 << 16, decode_content=False):
                room = self.limits.size - len(self.answer.content)
                self.answer.content += chunk[:room]
                if len(chunk) > room:
                    self.answer.cut = f"more than {self.limits.size:,} bytes"
                    return
                if self.over or time.monotonic() > deadline:
                    self.answer.cut = f"no end within {self.limits.seconds:g} s"
                    return


def _reason(error: BaseException) -> str:
    """Why, in the words of the innermost cause, which name no object's address."""
    import re

    text = str(error)
    found = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    if found:
        return shown(found[1], 200)
    return shown(
        re.sub(r"<[^>]* object at 0x[0-9a-f]+>:? ?", "", text) or type(error).__name__, 200
    )
