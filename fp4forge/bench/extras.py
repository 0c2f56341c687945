"""What the load generator cannot ask by a file of prompts: images, and tool calls to check."""

from __future__ import annotations

import base64
import random
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fp4forge.bench.result import TimedRequest, Trial
from fp4forge.bench.server import MeasuredServer
from fp4forge.bench.suite import TrialLoad
from fp4forge.core.text import shown
from fp4forge.serve import client, quality

SIDE, TILE = 448, 32  # pixels
_QUESTION = "Describe this picture."
_TOOL = next(prompt for prompt in quality.PROMPTS if prompt.kind == "tool")


def mosaic(place: str) -> str:
    """A PNG of coloured tiles as a data URL: another picture for each place, and a small one."""
    choose = random.Random(place)  # noqa: S311 - colours are not secret
    tiles = SIDE // TILE
    rows = []
    for _ in range(tiles):
        row = b"".join(bytes(choose.randbytes(3)) * TILE for _ in range(tiles))
        rows.append((b"\0" + row) * TILE)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    data += _chunk(b"IDAT", zlib.compress(b"".join(rows), 9)) + _chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _messages(url: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": _QUESTION}]
    return [{"role": "user", "content": parts}]


def picture(load: TrialLoad, trial: int, seed: int) -> dict[str, object]:
    """What a trial's requests have in their bodies beside the prompt: a picture, or nothing."""
    if load.kind != "image":
        return {}
    return {"messages": _messages(mosaic(f"{seed} {load.table} {load.label} {trial}"))}


def why_not(server: MeasuredServer, kind: str) -> str:
    """Why the server cannot do a table's kind; empty if it can."""
    if kind == "image":
        options: dict[str, Any] = {"max_tokens": 1}
        messages = _messages(mosaic("probe"))
    elif kind == "tools":
        options = {"max_tokens": 1, **(_TOOL.options or {})}
        messages = [{"role": "user", "content": _TOOL.text}]
    else:
        return ""
    answer = client.chat(server.url, messages, model=server.model, key=server.key, **options)
    return answer.problem


def thinks(server: MeasuredServer) -> bool:
    """Whether the model reasons before it answers."""
    question = [{"role": "user", "content": client.PARIS}]
    answer = client.chat(server.url, question, model=server.model, key=server.key, max_tokens=64)
    return bool(answer.reasoning) and not answer.problem


def tool_calls(server: MeasuredServer, load: TrialLoad, date: str) -> Trial:
    """A trial of tool calls at once, each checked; a wrong call is a figure, not a fault."""
    begin = time.monotonic()
    with ThreadPoolExecutor(load.concurrency) as pool:
        answers = list(pool.map(lambda _: _call(server, load), range(load.requests)))
    failed = [answer.problem for answer in answers if answer.problem]
    right = sum(not answer.problem and not _TOOL.wrong(answer) for answer in answers)
    problems = [f"{len(failed)} requests failed: {shown(failed[0], 200)}"] if failed else []
    return Trial(
        requests=tuple(
            TimedRequest(prompt=0, output=0, ttft=answer.seconds, decode=0.0)
            for answer in answers
            if not answer.problem
        ),
        seconds=time.monotonic() - begin,
        failed=len(failed),
        right_calls=right,
        problems=tuple(problems),
        date=date,
    )


def _call(server: MeasuredServer, load: TrialLoad) -> client.ChatAnswer:
    return client.chat(
        server.url,
        [{"role": "user", "content": _TOOL.text}],
        model=server.model,
        key=server.key,
        max_tokens=load.output,
        temperature=load.temperature,
        **(_TOOL.options or {}),
    )
