"""Calibration samples: windows of equal length, so there is no padding to keep out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator

_FIELDS = ("text", "article", "content", "prompt")


class TooShort(Exception):
    """A text has fewer windows than were asked for."""


def documents(path: str) -> Iterator[str]:
    """The texts of a file: one a line of JSON (.jsonl), else separated by empty lines.

    A line of JSON is a text, or an object with "text", "article", "content" or "prompt", or a chat
    ("messages", each with "content").

    Raises:
        ValueError: a line is not one of these.
    """
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        if not path.endswith(".jsonl"):
            yield from (text for text in file.read().split("\n\n") if text.strip())
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _text(line, number)


def _text(line: str, number: int) -> str:
    try:
        found = json.loads(line)
    except ValueError:
        raise ValueError(f"line {number} is not JSON") from None
    if isinstance(found, dict) and isinstance(found.get("messages"), list):
        parts = [m.get("content") for m in found["messages"] if isinstance(m, dict)]
        found = "\n".join(part for part in parts if isinstance(part, str))
    elif isinstance(found, dict):
        found = next((found[name] for name in _FIELDS if name in found), None)
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"line {number} has no text")
    return found


def windows(
    texts: Iterable[str],
    tokens: Callable[[str], list[int]],
    samples: int,
    length: int,
    separator: int | None,
    seed: int,
) -> list[list[int]]:
    """Samples of exactly ``length`` tokens: texts in a seeded order, joined and cut.

    Args:
        texts: documents.
        tokens: a document's token ids.
        samples: how many; 0: as many as there are.
        length: tokens of each.
        separator: a token between documents; None: none.
        seed: of the order.

    Raises:
        TooShort: there are fewer samples.
    """
    shuffled = list(texts)
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    found: list[list[int]] = []
    rest: list[int] = []
    seen = 0
    for text in shuffled:
        ids = tokens(text)
        seen += len(ids)
        rest += [*ids, separator] if separator is not None else ids
        while len(rest) >= length and (not samples or len(found) < samples):
            found.append(rest[:length])
            rest = rest[length:]
        if samples and len(found) == samples:
            return found
    if not found or samples:
        raise TooShort(
            f"the calibration text has {seen:,} tokens:"
            f" {len(found)} samples of {length:,}, {samples or 1} were asked for"
        )
    return found
